// Maps that a convolution takes or adds to what it makes: as they lie in memory, or crops of one base with a patch of its own
// laid over each, and 0 around the base.
#pragma once

#include <optional>

#include "crop.h"

namespace cnnviz::cpu {

class Maps {
 public:
  int64_t count, height, width, channels;

  // Of maps alone; or of a base, patches, and where patches and crops of this size begin. Python has validated it, but not for
  // graphs that torch exported.
  Maps(const std::vector<Tensor>& parts, const Sizes& size) {
    STD_TORCH_CHECK((parts.size() == 1 || parts.size() == 4) && size.size() == 2, "there are not all parts of maps or crops");
    const bool made = parts.size() == 1;
    own_ = in_format(parts[made ? 0 : 1], true);
    count = own_->size(0), channels = own_->size(1), height = size[0], width = size[1];
    if (made) {
      STD_TORCH_CHECK(own_->size(2) == height && own_->size(3) == width, "maps are not of their size");
      return;
    }
    base_ = in_format(parts[0], true), patch_yx_ = in_order(parts[2]), crop_yx_ = in_order(parts[3]);
    STD_TORCH_CHECK(base_->size(0) == 1 && base_->size(1) == channels, "base and patches have not as many channels");
    check_corners(*patch_yx_, count);
    check_corners(*crop_yx_, count);
    crops_.emplace(Crops<float>{nullptr, Source<float>(*base_, true), nullptr, numbers(*crop_yx_), Planes(channels, true), height,
                                width, 0.0f, {data(), numbers(*patch_yx_), own_->size(2), own_->size(3)}});
    zeros_.resize(channels);
  }

  // The maps, where nothing is laid over.
  const float* data() const { return static_cast<const float*>(own_->const_data_ptr()); }

  // The crops, which are still to be written; null where nothing is laid over.
  const Crops<float>* crops() const { return crops_ ? &*crops_ : nullptr; }

  // Where the pixels of a row lie.
  struct Row {
    const float *under, *over;
    Extent columns, laid;
    const float* zeros;
    int64_t channels;

    const float* pixel(int64_t column) const {
      const int64_t at = column * channels;
      return laid.has(at) ? over + at : columns.has(at) ? under + at : zeros;
    }
  };

  // Where the rows of one of the maps lie.
  class Map {
   public:
    Map(const Maps& maps, int64_t k) : maps_(maps), k_(k) {
      if (maps.crops_) cut_.emplace(*maps.crops_, k);
    }

    Row row(int64_t y) const {
      const int64_t all = maps_.width * maps_.channels;
      const Extent none(0, 0, 0, 0);
      if (!cut_) return {maps_.data() + (k_ * maps_.height + y) * all, nullptr, {0, all, 0, all}, none, nullptr, maps_.channels};
      return {cut_->under + y * maps_.crops_->source.row,
              cut_->over + y * cut_->patch_row,
              cut_->rows.has(y) ? cut_->columns : none,
              cut_->laid_rows.has(y) ? cut_->laid_columns : none,
              maps_.zeros_.data(),
              maps_.channels};
    }

   private:
    const Maps& maps_;
    int64_t k_;
    std::optional<Cut<float>> cut_;
  };

  Map map(int64_t k) const { return {*this, k}; }

 private:
  std::optional<Tensor> own_, base_, patch_yx_, crop_yx_;  // maps or patches, and the rest of crops
  std::optional<Crops<float>> crops_;
  std::vector<float> zeros_;  // what a pixel outside of the base has
};

// What is added to a result.
class Added {
 public:
  // Of the parts of maps, or of none where nothing is added.
  Added(const std::vector<Tensor>& parts, const Tensor& result) {
    if (parts.empty()) return;
    maps_.emplace(parts, Sizes{result.size(2), result.size(3)});
    STD_TORCH_CHECK(maps_->count == result.size(0) && maps_->channels == result.size(1),
                    "what is added is not of the result's shape");
    pixels_.resize(maps_->count * maps_->height * maps_->width);
    parallel_rows(maps_->count, maps_->height * maps_->width * sizeof(float*), [&](int64_t begin, int64_t end) {
      const float** pixel = pixels_.data() + begin * maps_->height * maps_->width;
      for (int64_t k = begin; k < end; ++k) {
        const Maps::Map map = maps_->map(k);
        for (int64_t y = 0; y < maps_->height; ++y) {
          const Maps::Row row = map.row(y);
          for (int64_t x = 0; x < maps_->width; ++x) *pixel++ = row.pixel(x);
        }
      }
    });
  }

  // Where what is added to each pixel lies; null where nothing is.
  const float* const* pixels() const { return maps_ ? pixels_.data() : nullptr; }

 private:
  std::optional<Maps> maps_;
  std::vector<const float*> pixels_;
};

}  // namespace cnnviz::cpu
