// Maps that a convolution takes: as they lie in memory, or crops of one base with a patch of its own laid over each, and 0
// around the base.
#pragma once

#include <optional>

#include "crop.h"

namespace cnnviz::cpu {

class Maps {
 public:
  int64_t count, height, width, channels;

  // Python has validated it, but not for graphs that torch exported.
  Maps(const Tensor& x, const std::optional<Tensor>& base, const std::optional<Tensor>& patch_yx,
       const std::optional<Tensor>& crop_yx, const Sizes& size)
      : count(x.size(0)), height(x.size(2)), width(x.size(3)), channels(x.size(1)), x_(in_format(x, true)) {
    if (!base) return;
    STD_TORCH_CHECK(patch_yx && crop_yx && size.size() == 2, "there are not all parts of what is laid over");
    base_ = in_format(*base, true), patch_yx_ = in_order(*patch_yx), crop_yx_ = in_order(*crop_yx);
    STD_TORCH_CHECK(base_->size(0) == 1 && base_->size(1) == channels && patch_yx_->numel() == 2 * count &&
                        crop_yx_->numel() == 2 * count,
                    "base and patches are not of one size, or there is not one place for each patch");
    const Patches<float> patches{data(), numbers(*patch_yx_), height, width};
    height = size[0], width = size[1];
    crops_.emplace(Crops<float>{nullptr, Source<float>(*base_, true), nullptr, numbers(*crop_yx_), Planes(channels, true), height,
                                width, 0.0f, patches});
  }

  // The maps, where nothing is laid over.
  const float* data() const { return static_cast<const float*>(x_.const_data_ptr()); }

  // The crops, which are still to be written; null where nothing is laid over.
  const Crops<float>* crops() const { return crops_ ? &*crops_ : nullptr; }

 private:
  Tensor x_;
  std::optional<Tensor> base_, patch_yx_, crop_yx_;
  std::optional<Crops<float>> crops_;
};

}  // namespace cnnviz::cpu
