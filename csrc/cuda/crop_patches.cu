// Patches of one size out of a batch of images, past any border, and the sum of patches back into the images.
#include <numeric>

#include "crop.h"

namespace cnnviz::cuda {
namespace {

template <class T>
struct Crop {
  T* to;
  Source<T> source;
  int64_t elements, count;  // of a patch; patches
  int height, row, unit;
  T pad;
};

// A table's row: image, top, left.
template <class T, int kCount, class Index>
__global__ void crop_kernel(const Crop<T> crop, const __grid_constant__ Table<3> places) {
  using P = Pack<T, kCount>;
  const Source<T>& source = crop.source;
  for (int64_t k = blockIdx.y; k < crop.count; k += gridDim.y) {
    const int32_t* at = places.at[k];
    const T* image = source.data + at[0] * source.image;
    const int64_t shift = static_cast<int64_t>(at[2]) * crop.unit;
    for (int64_t i = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) * kCount; i < crop.elements;
         i += gridDim.x * static_cast<int64_t>(blockDim.x) * kCount) {
      Spot<Index> spot(static_cast<Index>(i), crop.height, crop.row);
      P made;
      const int64_t y = static_cast<int64_t>(at[1]) + spot.y, x = shift + spot.place;
      if (spot.place + kCount <= crop.row && y >= 0 && y < source.height && x >= 0 && x + kCount <= source.row) {
        made = read<T, kCount>(image + spot.plane * source.plane + y * source.row + x);
      } else {
#pragma unroll
        for (int j = 0; j < kCount; ++j, spot.next(crop.height, crop.row)) {
          const int64_t line = static_cast<int64_t>(at[1]) + spot.y, place = shift + spot.place;
          const bool inside = line >= 0 && line < source.height && place >= 0 && place < source.row;
          made.at[j] = inside ? image[spot.plane * source.plane + line * source.row + place] : crop.pad;
        }
      }
      *reinterpret_cast<P*>(crop.to + k * crop.elements + i) = made;
    }
  }
}

template <class T>
struct Sum {
  T* to;
  Source<T> patches;
  int64_t image;  // elements
  int height, row, unit, images;
};

// Add to every element of an image what its patches have there, in their order: the same bits every time. A row of
// `places` is patch, top, left; one of `ranges` an image and the rows [begin, end) of its patches.
template <class T>
__global__ void sum_kernel(const Sum<T> sum, const __grid_constant__ Table<3> places,
                           const __grid_constant__ Table<3> ranges) {
  for (int n = blockIdx.y; n < sum.images; n += gridDim.y) {
    const int32_t* range = ranges.at[n];
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < sum.image;
         i += gridDim.x * static_cast<int64_t>(blockDim.x)) {
      const Spot<int64_t> spot(i, sum.height, sum.row);
      T* element = sum.to + range[0] * sum.image + i;
      T total = *element;
      for (int k = range[1]; k < range[2]; ++k) {
        const int32_t* at = places.at[k];
        const int64_t y = spot.y - at[1], x = spot.place - static_cast<int64_t>(at[2]) * sum.unit;
        if (y < 0 || y >= sum.patches.height || x < 0 || x >= sum.patches.row) continue;
        total = static_cast<T>(
            total + sum.patches.data[at[0] * sum.patches.image + spot.plane * sum.patches.plane + y * sum.patches.row + x]);
      }
      *element = total;
    }
  }
}

}  // namespace

Tensor crop_patches(const Tensor& images, const Tensor& index, const Tensor& yx, const Sizes& size, double pad) {
  const int64_t count = index.size(0), channels = images.size(1);
  const bool channels_last = is_channels_last(images);
  Tensor made = empty(images, {count, channels, size[0], size[1]}, channels_last);
  if (made.numel() == 0) return made;
  const Tensor cut = in_format(images, channels_last), image = in_order(index), corner = in_order(yx);
  check_index(image, images.size(0));
  check_corners(corner, count);
  const Planes planes(channels, channels_last);
  by_element_size(images, [&](auto element) {
    using T = decltype(element);
    Crop<T> crop{};
    crop.source = source_of<T>(cut, planes);
    crop.elements = channels * size[0] * size[1];
    crop.height = static_cast<int>(size[0]);
    crop.row = static_cast<int>(size[1] * planes.unit);
    crop.unit = static_cast<int>(planes.unit);
    crop.pad = bits_in<T>(images, pad);
    write_rows<T>(made, crop, count, true, crop_kernel<T, kWide<T>, int>, crop_kernel<T, 1, int64_t>,
                  [&](auto&, Table<3>& table, int64_t begin, int64_t end) {
                    table.take(0, numbers(image), 1, begin, end);
                    table.take(1, numbers(corner), 2, begin, end);
                  });
  });
  return made;
}

Tensor crop_patches_backward(const Tensor& grad, const Tensor& index, const Tensor& yx, const Sizes& shape) {
  const bool channels_last = is_channels_last(grad);
  Tensor made = empty(grad, shape, channels_last);
  torch::stable::zero_(made);
  if (made.numel() == 0 || grad.numel() == 0) return made;
  const Tensor added = in_format(grad, channels_last), images = in_order(index), corner = in_order(yx);
  check_index(images, shape[0]);
  check_corners(corner, index.size(0));
  const int64_t* image = numbers(images);
  const Planes planes(shape[1], channels_last);
  // Each image's patches side by side, and in their order.
  Sizes order(index.size(0));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return image[a] < image[b]; });
  const Device device(grad);
  by_type(grad, [&](auto zero) {
    using T = decltype(zero);
    Sum<T> sum{};
    sum.to = static_cast<T*>(made.mutable_data_ptr());
    sum.patches = source_of<T>(added, planes);
    sum.image = shape[1] * shape[2] * shape[3];
    sum.height = static_cast<int>(shape[2]);
    sum.row = static_cast<int>(shape[3] * planes.unit);
    sum.unit = static_cast<int>(planes.unit);
    by_tables(static_cast<int64_t>(order.size()), [&](int64_t begin, int64_t end) {
      Table<3> places, ranges;
      sum.images = 0;
      for (int64_t i = begin; i < end; ++i) {
        const int row = static_cast<int>(i - begin);
        const int64_t k = order[i];
        places.take_row(row, {k, numbers(corner)[2 * k], numbers(corner)[2 * k + 1]});
        if (row == 0 || image[k] != image[order[i - 1]]) ranges.take_row(sum.images++, {image[k], row, row});
        ++ranges.at[sum.images - 1][2];
      }
      const dim3 grid(blocks_for(sum.image), static_cast<unsigned>(sum.images));
      sum_kernel<T><<<grid, kThreads, 0, device.stream()>>>(sum, places, ranges);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CUDA, library) {
  library.impl("crop_patches", TORCH_BOX(&crop_patches));
  library.impl("crop_patches_backward", TORCH_BOX(&crop_patches_backward));
}

}  // namespace cnnviz::cuda
