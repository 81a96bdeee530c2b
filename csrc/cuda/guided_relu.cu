// max(x, 0), and its backward by rule: "plain" where x > 0, "deconvnet" where the gradient is positive, "guided" both.
#include <string>

#include "launch.h"

namespace cnnviz::cuda {
namespace {

// Comparisons with zero, so that not-a-number is neither below nor not above, and so passes as in torch.clamp.
template <class T>
struct Forward {
  __device__ T operator()(T x, T) const { return x < T(0) ? T(0) : x; }
};
template <class T>
struct Masked {
  __device__ T operator()(T grad, T output) const { return output <= T(0) ? T(0) : grad; }
};
template <class T>
struct Guided {
  __device__ T operator()(T grad, T output) const { return grad < T(0) || output <= T(0) ? T(0) : grad; }
};

// to[i] = f(a[i], b[i]), kCount elements at a time and the rest one by one.
template <class T, int kCount, class F>
__global__ void map(T* to, const T* a, const T* b, int64_t count, F f) {
  using P = Pack<T, kCount>;
  const int64_t thread = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  const int64_t threads = gridDim.x * static_cast<int64_t>(blockDim.x);
  for (int64_t i = thread; i < count / kCount; i += threads) {
    const P x = reinterpret_cast<const P*>(a)[i], y = reinterpret_cast<const P*>(b)[i];
    P made;
#pragma unroll
    for (int j = 0; j < kCount; ++j) made.at[j] = f(x.at[j], y.at[j]);
    reinterpret_cast<P*>(to)[i] = made;
  }
  for (int64_t i = count / kCount * kCount + thread; i < count; i += threads) to[i] = f(a[i], b[i]);
}

template <template <class> class F>
Tensor mapped(const Tensor& like, const Tensor& first, const Tensor& second) {
  Tensor made = torch::stable::empty_like(like);
  const Tensor a = laid_out_as(made, first), b = laid_out_as(made, second);
  const int64_t count = made.numel();
  if (count == 0) return made;
  const Device device(made);
  by_type(made, [&](auto zero) {
    using T = decltype(zero);
    T* to = static_cast<T*>(made.mutable_data_ptr());
    const T* x = static_cast<const T*>(a.const_data_ptr());
    const T* y = static_cast<const T*>(b.const_data_ptr());
    if (is_aligned(to) && is_aligned(x) && is_aligned(y))
      map<T, kWide<T>><<<blocks_for(count / kWide<T>), kThreads, 0, device.stream()>>>(to, x, y, count, F<T>());
    else
      map<T, 1><<<blocks_for(count), kThreads, 0, device.stream()>>>(to, x, y, count, F<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return made;
}

}  // namespace

Tensor guided_relu(const Tensor& x, const std::string& /*rule*/) { return mapped<Forward>(x, x, x); }

Tensor guided_relu_backward(const Tensor& grad, const Tensor& output, const std::string& rule) {
  if (rule == "plain") return mapped<Masked>(grad, grad, output);
  if (rule == "guided") return mapped<Guided>(grad, grad, output);
  return mapped<Forward>(grad, grad, grad);
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CUDA, library) {
  library.impl("guided_relu", TORCH_BOX(&guided_relu));
  library.impl("guided_relu_backward", TORCH_BOX(&guided_relu_backward));
}

}  // namespace cnnviz::cuda
