// Inner products of all pairs of channels: products of row panels with what lies left of their end, then the mirror image.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "../gram_panels.h"
#include "launch.h"

namespace cnnviz::cuda {
namespace {

constexpr int kTile = 32, kTileRows = 8;

// Copy a tile below the diagonal to its place above, by way of shared memory, so that both are read and written in rows.
template <class T>
__global__ void mirror_kernel(T* matrices, int64_t count, int64_t size) {
  __shared__ T tile[kTile][kTile + 1];
  const int64_t top = blockIdx.y * static_cast<int64_t>(kTile), left = blockIdx.x * static_cast<int64_t>(kTile);
  if (left > top) return;
  for (int64_t n = blockIdx.z; n < count; n += gridDim.z) {
    T* matrix = matrices + n * size * size;
    for (int r = threadIdx.y; r < kTile; r += kTileRows)
      if (top + r < size && left + threadIdx.x < size) tile[r][threadIdx.x] = matrix[(top + r) * size + left + threadIdx.x];
    __syncthreads();
    for (int c = threadIdx.y; c < kTile; c += kTileRows) {
      const int64_t row = left + c, column = top + threadIdx.x;
      if (row < size && column < size && column > row) matrix[row * size + column] = tile[threadIdx.x][c];
    }
    __syncthreads();
  }
}

}  // namespace

Tensor gram_matrix(const Tensor& x, bool normalise) {
  const int64_t count = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  Tensor made = empty(x, {count, channels, channels}, false);
  if (made.numel() == 0 || pixels == 0) {
    torch::stable::zero_(made);
    return made;
  }
  const double scale = normalise ? 1.0 / (static_cast<double>(channels) * pixels) : 1.0;
  const int64_t panels = channels < 256 ? 1 : channels < 512 ? 2 : 4;
  const Device device(x);
  gram_lower(x, made, scale, panels, aoti_torch_cuda_baddbmm_out);
  by_element_size(made, [&](auto element) {
    using T = decltype(element);
    const auto tiles = static_cast<unsigned>((channels + kTile - 1) / kTile);
    const dim3 grid(tiles, tiles, static_cast<unsigned>(std::min<int64_t>(count, 65535)));
    mirror_kernel<<<grid, dim3(kTile, kTileRows), 0, device.stream()>>>(static_cast<T*>(made.mutable_data_ptr()), count,
                                                                       channels);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CUDA, library) { library.impl("gram_matrix", TORCH_BOX(&gram_matrix)); }

}  // namespace cnnviz::cuda
