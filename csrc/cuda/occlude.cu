// A copy of an image for each window, with the baseline inside the window; every element of the result is written once.
#include "launch.h"

namespace cnnviz::cuda {
namespace {

template <class T>
struct Occlusion {
  T* to;
  const T *images, *baseline;
  int64_t elements, count;                      // of an image; images
  int64_t channel_step, row_step, column_step;  // the baseline's strides, 0 where it repeats
  int height, row, unit;
};

// A table's row: image, top, bottom, left, right.
template <class T, int kCount, class Index>
__global__ void occlude_kernel(const Occlusion<T> o, const __grid_constant__ Table<5> windows) {
  using P = Pack<T, kCount>;
  for (int64_t k = blockIdx.y; k < o.count; k += gridDim.y) {
    const int32_t* window = windows.at[k];
    const T* image = o.images + window[0] * o.elements;
    const Index left = static_cast<Index>(window[3]) * o.unit, right = static_cast<Index>(window[4]) * o.unit;
    for (int64_t i = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) * kCount; i < o.elements;
         i += gridDim.x * static_cast<int64_t>(blockDim.x) * kCount) {
      P made = *reinterpret_cast<const P*>(image + i);
      Spot<Index> spot(static_cast<Index>(i), o.height, o.row);
#pragma unroll
      for (int j = 0; j < kCount; ++j, spot.next(o.height, o.row)) {
        if (spot.y < window[1] || spot.y >= window[2] || spot.place < left || spot.place >= right) continue;
        const Index column = spot.place / o.unit, channel = o.unit == 1 ? spot.plane : spot.place - column * o.unit;
        made.at[j] = o.baseline[channel * o.channel_step + spot.y * o.row_step + column * o.column_step];
      }
      *reinterpret_cast<P*>(o.to + k * o.elements + i) = made;
    }
  }
}

}  // namespace

Tensor occlude(const Tensor& images, const Tensor& windows, const Tensor& baseline, bool channels_last) {
  const int64_t count = windows.size(0), channels = images.size(1), height = images.size(2), width = images.size(3);
  Tensor made = empty(images, {count, channels, height, width}, channels_last);
  if (made.numel() == 0) return made;
  const Tensor source = in_format(images, channels_last), boxes = in_order(windows);
  check_windows(boxes, images.size(0), height, width);
  const Planes planes(channels, channels_last);
  by_element_size(images, [&](auto element) {
    using T = decltype(element);
    Occlusion<T> o{};
    o.images = static_cast<const T*>(source.const_data_ptr());
    o.baseline = static_cast<const T*>(baseline.const_data_ptr());
    o.elements = channels * height * width;
    o.channel_step = baseline.size(0) == 1 ? 0 : baseline.stride(0);
    o.row_step = baseline.size(1) == 1 ? 0 : baseline.stride(1);
    o.column_step = baseline.size(2) == 1 ? 0 : baseline.stride(2);
    o.height = static_cast<int>(height);
    o.row = static_cast<int>(width * planes.unit);
    o.unit = static_cast<int>(planes.unit);
    write_rows<T>(made, o, count, is_aligned(o.images), occlude_kernel<T, kWide<T>, int>, occlude_kernel<T, 1, int64_t>,
                  [&](auto&, Table<5>& table, int64_t begin, int64_t end) { table.take(0, numbers(boxes), 5, begin, end); });
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CUDA, library) { library.impl("occlude", TORCH_BOX(&occlude)); }

}  // namespace cnnviz::cuda
