// Crops of one map, each with its own patch laid over.
#include "crop.h"

namespace cnnviz::cpu {

Tensor overlay_crop(const Tensor& base, const Tensor& patch, const Tensor& patch_yx, const Tensor& crop_yx, const Sizes& size,
                    double pad) {
  const int64_t count = patch.size(0), channels = base.size(1);
  const bool channels_last = is_channels_last(base);
  Tensor made = empty(base, {count, channels, size[0], size[1]}, channels_last);
  const Tensor under = with_dense_rows(base, channels_last), over = in_format(patch, channels_last);
  const Tensor patch_corner = in_order(patch_yx), corner = in_order(crop_yx);
  check_corners(patch_corner, count);
  check_corners(corner, count);
  by_element_size(base, [&](auto element) {
    using T = decltype(element);
    const Patches<T> patches{static_cast<const T*>(over.const_data_ptr()), numbers(patch_corner), patch.size(2), patch.size(3)};
    write_crops(Crops<T>{fresh<T>(made), Source<T>(under, channels_last), nullptr, numbers(corner),
                         Planes(channels, channels_last), size[0], size[1], bits_in<T>(base, pad), patches},
                count);
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) { library.impl("overlay_crop", TORCH_BOX(&overlay_crop)); }

}  // namespace cnnviz::cpu
