// Patches of one size out of a batch of images, past any border, and the sum of patches back into the images.
#include "crop.h"

namespace cnnviz::cpu {
Tensor crop_patches(const Tensor& images, const Tensor& index, const Tensor& yx, const Sizes& size, double pad) {
  const int64_t count = index.size(0), channels = images.size(1);
  const bool channels_last = is_channels_last(images);
  Tensor made = empty(images, {count, channels, size[0], size[1]}, channels_last);
  const Tensor cut = with_dense_rows(images, channels_last), image = in_order(index), corner = in_order(yx);
  check_index(image, images.size(0));
  check_corners(corner, count);
  by_element_size(images, [&](auto element) {
    using T = decltype(element);
    write_crops(Crops<T>{fresh<T>(made), Source<T>(cut, channels_last), numbers(image), numbers(corner),
                         Planes(channels, channels_last), size[0], size[1], bits_in<T>(images, pad)},
                count);
  });
  return made;
}

// Each row of each image is summed by one thread, over its patches in their order: the same bits every time.
Tensor crop_patches_backward(const Tensor& grad, const Tensor& index, const Tensor& yx, const Sizes& shape) {
  const bool channels_last = is_channels_last(grad);
  const int64_t height = shape[2], width = shape[3], patch_height = grad.size(2), patch_width = grad.size(3);
  Tensor made = empty(grad, shape, channels_last);
  const Tensor added = in_format(grad, channels_last), images_of = in_order(index), corners = in_order(yx);
  check_index(images_of, shape[0]);
  check_corners(corners, index.size(0));
  const int64_t *image = numbers(images_of), *corner = numbers(corners);
  std::vector<std::vector<int64_t>> patches_of(shape[0]);
  for (int64_t k = 0; k < index.size(0); ++k) patches_of[image[k]].push_back(k);
  const Planes planes(shape[1], channels_last);
  const int64_t row = width * planes.unit, patch_row = patch_width * planes.unit;
  by_type(grad, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(added.const_data_ptr());
    T* to = fresh<T>(made);
    parallel_rows(shape[0] * planes.count * height, row * sizeof(T), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / height / planes.count, p = i / height % planes.count;
        T* out = to + i * row;
        fill(out, zero, row);
        for (const int64_t k : patches_of[n]) {
          const int64_t y = i % height - corner[2 * k], x = corner[2 * k + 1];
          if (y < 0 || y >= patch_height) continue;
          const Extent columns(x, patch_width, 0, width);
          const T* patch = from + ((k * planes.count + p) * patch_height + y) * patch_row;
          T* at = out + x * planes.unit;
          for (int64_t j = columns.begin * planes.unit; j < columns.end * planes.unit; ++j)
            at[j] = static_cast<T>(at[j] + patch[j]);
        }
      }
    });
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) {
  library.impl("crop_patches", TORCH_BOX(&crop_patches));
  library.impl("crop_patches_backward", TORCH_BOX(&crop_patches_backward));
}

}  // namespace cnnviz::cpu
