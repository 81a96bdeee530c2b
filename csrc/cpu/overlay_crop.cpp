// Crops of one map, each with its own patch laid over.
#include "crop.h"

namespace cnnviz::cpu {
namespace {

template <class T>
struct Overlay {
  T* to;
  Source<T> base;
  const T* patches;
  const int64_t *patch_corner, *corner;
  Planes planes;
  int64_t height, width, patch_height, patch_width;
  T pad;
};

// Write rows [begin, end) of the crops' rows, counted over crops, planes and rows.
template <class T>
CNNVIZ_CLONES void write_rows(const Overlay<T>& overlay, int64_t begin, int64_t end) {
  const Source<T>& base = overlay.base;
  const int64_t unit = overlay.planes.unit, row = overlay.width * unit, patch_row = overlay.patch_width * unit;
  Place place(begin, overlay.height, overlay.planes.count);
  T* out = overlay.to + begin * row;
  for (; begin < end; place.next_patch()) {
    const int64_t top = overlay.corner[2 * place.patch], left = overlay.corner[2 * place.patch + 1];
    const int64_t patch_top = overlay.patch_corner[2 * place.patch], patch_left = overlay.patch_corner[2 * place.patch + 1];
    const Extent rows(top, overlay.height, 0, base.height), columns(left, overlay.width, 0, base.width);
    const Extent laid_rows(top, overlay.height, std::max<int64_t>(patch_top, 0),
                           std::min(patch_top + overlay.patch_height, base.height));
    const Extent laid(left, overlay.width, std::max<int64_t>(patch_left, 0),
                      std::min(patch_left + overlay.patch_width, base.width));
    const int64_t lead = columns.begin * unit, stop = columns.end * unit;
    const int64_t before = laid.begin * unit, after = laid.end * unit;
    const bool touched = after > before;
    // A short row is copied whole and its middle once more, which takes fewer steps than its three pieces.
    const bool short_row = row * static_cast<int64_t>(sizeof(T)) <= 256;
    for (; place.plane < overlay.planes.count && begin < end; place.next_plane()) {
      const T* under = base.data + place.plane * base.plane + top * base.row + left * unit;
      const T* over = overlay.patches + ((place.patch * overlay.planes.count + place.plane) * overlay.patch_height + top - patch_top) * patch_row +
                      (left - patch_left) * unit;
      for (; place.row < overlay.height && begin < end; ++place.row, ++begin, out += row) {
        if (!rows.has(place.row)) {
          fill(out, overlay.pad, row);
          continue;
        }
        const T* line = under + place.row * base.row;
        fill(out, overlay.pad, lead);
        const bool both = touched && laid_rows.has(place.row);
        if (short_row || !both) {
          copy(out + lead, line + lead, stop - lead);
        } else {
          copy(out + lead, line + lead, before - lead);
          copy(out + after, line + after, stop - after);
        }
        if (both) copy(out + before, over + place.row * patch_row + before, after - before);
        fill(out + stop, overlay.pad, row - stop);
      }
    }
  }
}

}  // namespace

Tensor overlay_crop(const Tensor& base, const Tensor& patch, const Tensor& patch_yx, const Tensor& crop_yx, const Sizes& size,
                    double pad) {
  const int64_t count = patch.size(0), channels = base.size(1);
  const bool channels_last = is_channels_last(base);
  Tensor made = empty(base, {count, channels, size[0], size[1]}, channels_last);
  const Tensor under = with_dense_rows(base, channels_last), over = in_format(patch, channels_last);
  const Tensor patch_corner = in_order(patch_yx), corner = in_order(crop_yx);
  const Planes planes(channels, channels_last);
  by_element_size(base, [&](auto element) {
    using T = decltype(element);
    const Overlay<T> overlay{fresh<T>(made),        Source<T>(under, channels_last), static_cast<const T*>(over.const_data_ptr()),
                             numbers(patch_corner), numbers(corner),                 planes,
                             size[0],               size[1],                         patch.size(2),
                             patch.size(3),         bits_in<T>(base, pad)};
    parallel_rows(count * planes.count * size[0], size[1] * planes.unit * sizeof(T),
                  [&](int64_t begin, int64_t end) { write_rows(overlay, begin, end); });
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) { library.impl("overlay_crop", TORCH_BOX(&overlay_crop)); }

}  // namespace cnnviz::cpu
