// The maximum of each window of a map, and its gradient. torch.max_pool2d notes where each maximum lies, whether or not
// somebody will ask; here the backward pass looks again.
#include <limits>

#include "memory.h"
#include "processor.h"

namespace cnnviz::cpu {
namespace {

constexpr int64_t kColumns = 256;  // of a row of windows: what is found of them stays in the cache

// Windows along one axis.
struct Axis {
  int64_t kernel, stride, padding, dilation, from, made;

  int64_t offset(int64_t k) const { return k * dilation - padding; }

  // The first window whose k-th element is no padding, and the one behind the last.
  std::array<int64_t, 2> inside(int64_t k) const {
    const int64_t first = std::max<int64_t>(0, -offset(k)), stop = std::max<int64_t>(0, from - offset(k));
    return {(first + stride - 1) / stride, std::min(made, (stop + stride - 1) / stride)};
  }
};

struct Windows {
  Axis rows, columns;

  Windows(const Tensor& x, const Sizes& kernel, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
          bool ceil_mode) {
    // Python has checked all this, but not for graphs that torch exported, which hold the operator alone.
    const bool real = x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double;
    const size_t numbers = std::min({kernel.size(), stride.size(), padding.size(), dilation.size()});
    STD_TORCH_CHECK(real && x.dim() == 4 && numbers == 2, "these are no maps, or no heights and widths");
    for (const int64_t a : {0, 1}) {
      const int64_t from = x.size(2 + a);
      STD_TORCH_CHECK(std::max({kernel[a], stride[a], dilation[a], from}) < kFar, "windows reach too far");
      STD_TORCH_CHECK(std::min({kernel[a], stride[a], dilation[a], from}) > 0, "windows are empty");
      STD_TORCH_CHECK(padding[a] >= 0 && padding[a] <= kernel[a] / 2, "windows are padded by more than half of them");
      const int64_t room = from + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1;
      STD_TORCH_CHECK(room >= 0, "windows do not fit");
      int64_t made = (room + (ceil_mode ? stride[a] - 1 : 0)) / stride[a] + 1;
      if ((made - 1) * stride[a] >= from + padding[a]) --made;  // the last one would lie in the padding behind
      (a ? columns : rows) = {kernel[a], stride[a], padding[a], dilation[a], from, made};
    }
  }

  int64_t plane() const { return rows.from * columns.from; }
  int64_t made() const { return rows.made * columns.made; }
};

// An integer as wide as a number, so that vectors hold as many of both.
template <class T>
using Place = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// One element of each of some windows.
template <int64_t kStride, class T>
CNNVIZ_CLONES void gather(T* to, const T* from, int64_t count, int64_t stride) {
  if constexpr (kStride > 0) stride = kStride;
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
}

// Looks at it: of equals the first one is the maximum, and what is not a number is more than any.
template <class T>
CNNVIZ_CLONES void look(T* most, const T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) most[i] = (values[i] > most[i]) | (values[i] != values[i]) ? values[i] : most[i];
}

// Notes where it lies as well: `stride` elements apart, from `place` on.
template <class T>
CNNVIZ_CLONES void look(T* most, Place<T>* at, const T* values, int64_t count, Place<T> place, Place<T> stride) {
  for (int64_t i = 0; i < count; ++i) {
    const Place<T> larger = (values[i] > most[i]) | (values[i] != values[i]) | (at[i] < 0);
    at[i] = larger ? place : at[i];
    most[i] = larger ? values[i] : most[i];
    place += stride;
  }
}

// Looks at windows begin to end - 1 of row y of them; `at` may be null.
template <class T>
void find(const Windows& windows, const T* plane, int64_t y, int64_t begin, int64_t end, T* most, Place<T>* at) {
  const auto& [rows, columns] = windows;
  const int64_t step = columns.stride;
  fill(most, -std::numeric_limits<T>::infinity(), end - begin);
  if (at) fill(at, Place<T>(-1), end - begin);
  for (int64_t i = 0; i < rows.kernel; ++i) {
    const int64_t row = y * rows.stride + rows.offset(i);
    if (row < 0 || row >= rows.from) continue;
    for (int64_t k = 0; k < columns.kernel; ++k) {
      const auto [inside, behind] = columns.inside(k);
      const int64_t first = std::max(begin, inside), count = std::min(end, behind) - first, to = first - begin;
      if (count <= 0) continue;
      const int64_t place = row * columns.from + first * step + columns.offset(k);
      const T* values = plane + place;
      T line[kColumns];
      if (step == 2) gather<2>(line, values, count, step);
      else if (step != 1) gather<0>(line, values, count, step);
      if (step != 1) values = line;
      if (at) look<T>(most + to, at + to, values, count, static_cast<Place<T>>(place), static_cast<Place<T>>(step));
      else look<T>(most + to, values, count);
    }
  }
}

// Calls f(a zero, begin, end) for planes of maps, shared out among threads.
template <class F>
void by_planes(const Tensor& x, const Windows& windows, const F& f) {
  const auto work = [&](auto zero) {
    parallel_rows(x.size(0) * x.size(1), windows.plane() * static_cast<int64_t>(sizeof(zero)),
                  [&](int64_t begin, int64_t end) { f(zero, begin, end); });
  };
  if (x.scalar_type() == ScalarType::Double) work(double{});
  else work(float{});
}

template <class T>
const T* read(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

}  // namespace

Tensor max_pool(const Tensor& x, const Sizes& kernel, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                bool ceil_mode) {
  const Windows windows(x, kernel, stride, padding, dilation, ceil_mode);
  const Tensor source = in_order(x);
  Tensor made = empty(x, {x.size(0), x.size(1), windows.rows.made, windows.columns.made}, false);
  by_planes(x, windows, [&](auto zero, int64_t first, int64_t last) {
    using T = decltype(zero);
    T most[kColumns];
    for (int64_t i = first; i < last; ++i) {
      T* to = static_cast<T*>(made.mutable_data_ptr()) + i * windows.made();
      for (int64_t y = 0; y < windows.rows.made; ++y)
        for (int64_t begin = 0; begin < windows.columns.made; begin += kColumns) {
          const int64_t end = std::min(begin + kColumns, windows.columns.made);
          find<T>(windows, read<T>(source) + i * windows.plane(), y, begin, end, most, nullptr);
          copy(to + y * windows.columns.made + begin, most, end - begin);
        }
    }
  });
  return made;
}

Tensor max_pool_backward(const Tensor& grad, const Tensor& x, const Sizes& kernel, const Sizes& stride, const Sizes& padding,
                         const Sizes& dilation, bool ceil_mode) {
  const Windows windows(x, kernel, stride, padding, dilation, ceil_mode);
  const bool alike = grad.scalar_type() == x.scalar_type() && grad.numel() == x.size(0) * x.size(1) * windows.made();
  STD_TORCH_CHECK(alike, "there is not one gradient for each window");
  STD_TORCH_CHECK(windows.plane() <= std::numeric_limits<int32_t>::max(), "maps are too large");
  const Tensor source = in_order(x), arriving = in_order(grad);
  Tensor made = empty(x, Sizes(x.sizes().begin(), x.sizes().end()), false);
  by_planes(x, windows, [&](auto zero, int64_t first, int64_t last) {
    using T = decltype(zero);
    T most[kColumns];
    Place<T> at[kColumns];
    for (int64_t i = first; i < last; ++i) {
      T* to = static_cast<T*>(made.mutable_data_ptr()) + i * windows.plane();
      const T* from = read<T>(arriving) + i * windows.made();
      fill(to, zero, windows.plane());
      for (int64_t y = 0; y < windows.rows.made; ++y)
        for (int64_t begin = 0; begin < windows.columns.made; begin += kColumns) {
          const int64_t end = std::min(begin + kColumns, windows.columns.made);
          find<T>(windows, read<T>(source) + i * windows.plane(), y, begin, end, most, at);
          for (int64_t k = begin; k < end; ++k)
            if (at[k - begin] >= 0) to[at[k - begin]] += from[y * windows.columns.made + k];  // else all is padding
        }
    }
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) {
  library.impl("max_pool", TORCH_BOX(&max_pool));
  library.impl("max_pool_backward", TORCH_BOX(&max_pool_backward));
}

}  // namespace cnnviz::cpu
