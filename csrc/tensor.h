// What the kernels of both devices ask of a tensor. Python has validated every argument before it comes here.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "places.h"

namespace cnnviz {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// Whether the elements of (N, C, H, W) lie in the order N, H, W, C, and not as well in the order N, C, H, W.
inline bool is_channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (x.size(dim) == 1) continue;
    if (x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// Memory of the type and device of another tensor, not filled.
inline Tensor empty(const Tensor& like, const Sizes& sizes, bool channels_last) {
  Sizes strides(sizes.size());
  int64_t step = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const size_t dim = channels_last ? std::array<size_t, 4>{1, 3, 2, 0}[i] : sizes.size() - 1 - i;
    strides[dim] = step;
    step *= channels_last ? sizes[dim] : std::max<int64_t>(sizes[dim], 1);  // as torch has it for empty tensors
  }
  int32_t type = 0, device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                         type, device, like.get_device_index(), &made));
  return Tensor(made);
}

// The numbers of an int64 tensor on the CPU; `x` must outlive them.
inline const int64_t* numbers(const Tensor& x) { return static_cast<const int64_t*>(x.const_data_ptr()); }

// Python has checked these numbers, but not for graphs that torch exported, which hold the operator alone.
inline void check_index(const Tensor& index, int64_t count) {
  const int64_t wrong = first_outside(numbers(index), index.size(0), 0, count);
  STD_TORCH_CHECK(wrong < 0, "index ", wrong, " lies outside of the images");
}

inline void check_corners(const Tensor& yx, int64_t count) {
  STD_TORCH_CHECK(yx.numel() == 2 * count, "there is not one row and one column for each of ", count, " patches");
  const int64_t wrong = first_outside(numbers(yx), 2 * count, -kFar, kFar);
  STD_TORCH_CHECK(wrong < 0, "row and column ", wrong / 2, " lie too far away");
}

inline void check_windows(const Tensor& windows, int64_t count, int64_t height, int64_t width) {
  const int64_t wrong = first_bad_window(numbers(windows), windows.size(0), count, height, width);
  STD_TORCH_CHECK(wrong < 0, "window ", wrong, " lies outside of the images");
}

inline Tensor in_order(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// The tensor itself where its elements lie in the order asked for, otherwise a copy.
inline Tensor in_format(const Tensor& x, bool channels_last) {
  if (channels_last ? is_channels_last(x) : x.is_contiguous()) return x;
  Tensor made = empty(x, Sizes(x.sizes().begin(), x.sizes().end()), channels_last);
  torch::stable::copy_(made, x);
  return made;
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t dim = 0; dim < a.dim(); ++dim)
    if (a.size(dim) != 1 && a.stride(dim) != b.stride(dim)) return false;
  return true;
}

// The tensor itself where its elements lie as those of `like`, otherwise a copy that does.
inline Tensor laid_out_as(const Tensor& like, const Tensor& x) {
  if (same_strides(like, x)) return x;
  Tensor made = torch::stable::empty_like(like);
  torch::stable::copy_(made, x);
  return made;
}

// How (N, C, H, W) falls into planes of rows that are dense in memory: C planes of W elements a row, or, channels
// last, one plane of W * C.
struct Planes {
  int64_t count;  // planes of an image
  int64_t unit;   // elements of one pixel in a row

  Planes(int64_t channels, bool channels_last) : count(channels_last ? 1 : channels), unit(channels_last ? channels : 1) {}
};

// Moving elements asks only for their size: f is called with a value of an unsigned integer of that size.
template <class F>
void by_element_size(const Tensor& x, const F& f) {
  switch (x.element_size()) {
    case 2: return f(uint16_t{});
    case 4: return f(uint32_t{});
    default: return f(uint64_t{});
  }
}

template <class To, class From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To made;
  std::memcpy(&made, &value, sizeof(made));
  return made;
}

// A number as the bits that it has in the tensor's type.
template <class T>
T bits_in(const Tensor& x, double value) {
  if constexpr (sizeof(T) == 8) {
    return bits<T>(value);
  } else if constexpr (sizeof(T) == 4) {
    return bits<T>(static_cast<float>(value));
  } else {
    const auto narrow = static_cast<float>(value);
    return x.scalar_type() == ScalarType::Half ? bits<T>(Half(narrow)) : bits<T>(BFloat16(narrow));
  }
}

// Arithmetic asks for the type: f is called with a zero of it.
template <class F>
void by_type(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(Half{});
    case ScalarType::BFloat16: return f(BFloat16{});
    default: return f(float{});
  }
}

}  // namespace cnnviz
