// max(x, 0), and its backward by rule: "plain" where x > 0, "deconvnet" where the gradient is positive, "guided" both.
#include <string>

#include "memory.h"
#include "processor.h"

namespace cnnviz::cpu {
namespace {

// Comparisons with zero, so that not-a-number is neither below nor not above, and so passes as in torch.clamp.
template <class T>
struct Plain {
  using Stored = T;
  static bool below(T v) { return v < 0; }
  static bool not_above(T v) { return v <= 0; }
};

// The 16-bit types are compared by their bits: the sign bit makes an integer negative, and what lies past the bits of
// minus infinity is not a number.
template <int16_t kMinusInfinity>
struct Short {
  using Stored = int16_t;
  static bool below(int16_t v) { return (v < 0) & (v <= kMinusInfinity) & (v != INT16_MIN); }
  static bool not_above(int16_t v) { return (v == 0) | ((v < 0) & (v <= kMinusInfinity)); }
};

template <class T>
struct Compare : Plain<T> {};
template <>
struct Compare<Half> : Short<static_cast<int16_t>(0xFC00)> {};
template <>
struct Compare<BFloat16> : Short<static_cast<int16_t>(0xFF80)> {};

template <class C, class T = typename C::Stored>
CNNVIZ_CLONES void forward(T* to, const T* from, int64_t count) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; ++i) to[i] = C::below(from[i]) ? T(0) : from[i];
}

template <class C, class T = typename C::Stored>
CNNVIZ_CLONES void masked(T* to, const T* grad, const T* output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = C::not_above(output[i]) ? T(0) : grad[i];
}

template <class C, class T = typename C::Stored>
CNNVIZ_CLONES void guided(T* to, const T* grad, const T* output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = C::below(grad[i]) | C::not_above(output[i]) ? T(0) : grad[i];
}

}  // namespace

Tensor guided_relu(const Tensor& x, const std::string& /*rule*/) {
  Tensor made = torch::stable::empty_like(x);
  const Tensor from = laid_out_as(made, x);
  by_type(x, [&](auto zero) {
    using C = Compare<decltype(zero)>;
    using T = typename C::Stored;
    T* to = fresh<T>(made);
    const T* read = static_cast<const T*>(from.const_data_ptr());
    parallel_rows(x.numel(), sizeof(T), [&](int64_t begin, int64_t end) { forward<C>(to + begin, read + begin, end - begin); });
  });
  return made;
}

Tensor guided_relu_backward(const Tensor& grad, const Tensor& output, const std::string& rule) {
  Tensor made = torch::stable::empty_like(grad);
  const Tensor from = laid_out_as(made, grad);
  const Tensor gate = rule == "deconvnet" ? from : laid_out_as(made, output);
  by_type(grad, [&](auto zero) {
    using C = Compare<decltype(zero)>;
    using T = typename C::Stored;
    T* to = fresh<T>(made);
    const T* g = static_cast<const T*>(from.const_data_ptr());
    const T* o = static_cast<const T*>(gate.const_data_ptr());
    parallel_rows(grad.numel(), sizeof(T), [&](int64_t begin, int64_t end) {
      if (rule == "plain") masked<C>(to + begin, g + begin, o + begin, end - begin);
      else if (rule == "guided") guided<C>(to + begin, g + begin, o + begin, end - begin);
      else forward<C>(to + begin, g + begin, end - begin);
    });
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) {
  library.impl("guided_relu", TORCH_BOX(&guided_relu));
  library.impl("guided_relu_backward", TORCH_BOX(&guided_relu_backward));
}

}  // namespace cnnviz::cpu
