// Crops of one map, each with its own patch laid over.
#include "crop.h"

namespace cnnviz::cuda {
namespace {

template <class T>
struct Overlay {
  T* to;
  Source<T> base, patches;
  int64_t elements, count;  // of a crop; crops
  int height, row, unit;
  T pad;
};

// A table's row: top and left of the patch, top and left of the crop.
template <class T, int kCount, class Index>
__global__ void overlay_kernel(const Overlay<T> overlay, const __grid_constant__ Table<4> places) {
  using P = Pack<T, kCount>;
  const Source<T>&base = overlay.base, &patches = overlay.patches;
  for (int64_t k = blockIdx.y; k < overlay.count; k += gridDim.y) {
    const int32_t* at = places.at[k];
    const T* patch = patches.data + k * patches.image;
    const int64_t shift = static_cast<int64_t>(at[3]) * overlay.unit, patch_shift = static_cast<int64_t>(at[1]) * overlay.unit;
    for (int64_t i = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) * kCount; i < overlay.elements;
         i += gridDim.x * static_cast<int64_t>(blockDim.x) * kCount) {
      Spot<Index> spot(static_cast<Index>(i), overlay.height, overlay.row);
      P made;
      // The place on the base, and the same place on the patch.
      const int64_t y = static_cast<int64_t>(at[2]) + spot.y, x = shift + spot.place, v = y - at[0], u = x - patch_shift;
      const bool together = spot.place + kCount <= overlay.row && y >= 0 && y < base.height && x >= 0 && x + kCount <= base.row;
      const bool on_patch = v >= 0 && v < patches.height && u >= 0 && u + kCount <= patches.row;
      const bool beside = v < 0 || v >= patches.height || u + kCount <= 0 || u >= patches.row;
      if (together && on_patch) {
        made = read<T, kCount>(patch + spot.plane * patches.plane + v * patches.row + u);
      } else if (together && beside) {
        made = read<T, kCount>(base.data + spot.plane * base.plane + y * base.row + x);
      } else {
#pragma unroll
        for (int j = 0; j < kCount; ++j, spot.next(overlay.height, overlay.row)) {
          const int64_t line = static_cast<int64_t>(at[2]) + spot.y, place = shift + spot.place, down = line - at[0], across = place - patch_shift;
          made.at[j] = overlay.pad;
          if (line < 0 || line >= base.height || place < 0 || place >= base.row) continue;
          const bool covered = down >= 0 && down < patches.height && across >= 0 && across < patches.row;
          made.at[j] = covered ? patch[spot.plane * patches.plane + down * patches.row + across]
                               : base.data[spot.plane * base.plane + line * base.row + place];
        }
      }
      *reinterpret_cast<P*>(overlay.to + k * overlay.elements + i) = made;
    }
  }
}

}  // namespace

Tensor overlay_crop(const Tensor& base, const Tensor& patch, const Tensor& patch_yx, const Tensor& crop_yx, const Sizes& size,
                    double pad) {
  const int64_t count = patch.size(0), channels = base.size(1);
  const bool channels_last = is_channels_last(base);
  Tensor made = empty(base, {count, channels, size[0], size[1]}, channels_last);
  if (made.numel() == 0) return made;
  const Tensor under = in_format(base, channels_last), over = in_format(patch, channels_last);
  const Tensor patch_corner = in_order(patch_yx), corner = in_order(crop_yx);
  check_corners(patch_corner, count);
  check_corners(corner, count);
  const Planes planes(channels, channels_last);
  by_element_size(base, [&](auto element) {
    using T = decltype(element);
    Overlay<T> overlay{};
    overlay.base = source_of<T>(under, planes);
    overlay.patches = source_of<T>(over, planes);
    overlay.elements = channels * size[0] * size[1];
    overlay.height = static_cast<int>(size[0]);
    overlay.row = static_cast<int>(size[1] * planes.unit);
    overlay.unit = static_cast<int>(planes.unit);
    overlay.pad = bits_in<T>(base, pad);
    const T* patches = overlay.patches.data;
    write_rows<T>(made, overlay, count, true, overlay_kernel<T, kWide<T>, int>, overlay_kernel<T, 1, int64_t>,
                  [&](Overlay<T>& some, Table<4>& table, int64_t begin, int64_t end) {
                    some.patches.data = patches + begin * some.patches.image;
                    table.take(0, numbers(patch_corner), 2, begin, end);
                    table.take(2, numbers(corner), 2, begin, end);
                  });
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CUDA, library) { library.impl("overlay_crop", TORCH_BOX(&overlay_crop)); }

}  // namespace cnnviz::cuda
