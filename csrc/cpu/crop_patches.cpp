// Patches of one size out of a batch of images, past any border, and the sum of patches back into the images.
#include "crop.h"

namespace cnnviz::cpu {
namespace {

template <class T>
struct Crop {
  T* to;
  Source<T> source;
  const int64_t *image, *corner;
  Planes planes;
  int64_t height, width;
  T pad;
};

// Write rows [begin, end) of the patches' rows, counted over patches, planes and rows.
template <class T>
CNNVIZ_CLONES void write_rows(const Crop<T>& crop, int64_t begin, int64_t end) {
  const Source<T>& source = crop.source;
  const int64_t unit = crop.planes.unit, row = crop.width * unit;
  // What to ask for early: rows of small patches come to an end too soon, so the same row of the next plane.
  const bool small = crop.height <= 16;
  const int64_t ahead = small ? source.plane : 2 * source.row;
  Place place(begin, crop.height, crop.planes.count);
  T* out = crop.to + begin * row;
  for (; begin < end; place.next_patch()) {
    const int64_t top = crop.corner[2 * place.patch], left = crop.corner[2 * place.patch + 1];
    const Extent rows(top, crop.height, 0, source.height), columns(left, crop.width, 0, source.width);
    const int64_t lead = columns.begin * unit, body = (columns.end - columns.begin) * unit, tail = row - lead - body;
    const T* image = source.data + crop.image[place.patch] * source.image + top * source.row + (left + columns.begin) * unit;
    for (; place.plane < crop.planes.count && begin < end; place.next_plane()) {
      const T* from = image + place.plane * source.plane;
      const bool more = !small || place.plane + 1 < crop.planes.count;
      for (; place.row < crop.height && begin < end; ++place.row, ++begin, out += row) {
        if (!rows.has(place.row)) {
          fill(out, crop.pad, row);
          continue;
        }
        const T* line = from + place.row * source.row;
        if (more && rows.has(place.row + (small ? 0 : 2))) prefetch(line + ahead, body);
        fill(out, crop.pad, lead);
        copy(out + lead, line, body);
        fill(out + lead + body, crop.pad, tail);
      }
    }
  }
}

}  // namespace

Tensor crop_patches(const Tensor& images, const Tensor& index, const Tensor& yx, const Sizes& size, double pad) {
  const int64_t count = index.size(0), channels = images.size(1);
  const bool channels_last = is_channels_last(images);
  Tensor made = empty(images, {count, channels, size[0], size[1]}, channels_last);
  const Tensor cut = with_dense_rows(images, channels_last), image = in_order(index), corner = in_order(yx);
  const Planes planes(channels, channels_last);
  by_element_size(images, [&](auto element) {
    using T = decltype(element);
    const Crop<T> crop{fresh<T>(made), Source<T>(cut, channels_last), numbers(image), numbers(corner), planes, size[0],
                       size[1],        bits_in<T>(images, pad)};
    parallel_rows(count * planes.count * size[0], size[1] * planes.unit * sizeof(T),
                  [&](int64_t begin, int64_t end) { write_rows(crop, begin, end); });
  });
  return made;
}

// Each row of each image is summed by one thread, over its patches in their order: the same bits every time.
Tensor crop_patches_backward(const Tensor& grad, const Tensor& index, const Tensor& yx, const Sizes& shape) {
  const bool channels_last = is_channels_last(grad);
  const int64_t height = shape[2], width = shape[3], patch_height = grad.size(2), patch_width = grad.size(3);
  Tensor made = empty(grad, shape, channels_last);
  const Tensor added = in_format(grad, channels_last), images_of = in_order(index), corners = in_order(yx);
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
