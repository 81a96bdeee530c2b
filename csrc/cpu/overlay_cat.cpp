// Crops of several maps, each with its own patch laid over, side by side in their channels; channels last. By themselves, and
// as a convolution of single pixels sees them.
#include <memory>
#include <optional>

#include "conv_kernel.h"
#include "maps.h"

namespace cnnviz::cpu {
namespace {

// What such crops are made of. Python has validated it, but not for graphs that torch exported.
class Joined {
 public:
  Joined(const std::vector<Tensor>& bases, const std::vector<Tensor>& patches, const Tensor& patch_yx, const Tensor& crop_yx,
         const Sizes& size, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, double low, double high)
      : patch_corner_(in_order(patch_yx)),
        corner_(in_order(crop_yx)),
        count_(crop_yx.size(0)),
        height_(size[0]),
        width_(size[1]),
        low_(static_cast<float>(low)),
        high_(static_cast<float>(high)) {
    STD_TORCH_CHECK(!bases.empty() && bases.size() == patches.size() && scale.has_value() == shift.has_value(),
                    "there is not one patch for each base, or not both of scale and shift");
    STD_TORCH_CHECK(patch_corner_.numel() == static_cast<int64_t>(bases.size()) * count_ * 2,
                    "there is not one place for each patch");
    map_height_ = bases[0].size(2), map_width_ = bases[0].size(3);
    int64_t widest = 0;
    for (size_t i = 0; i < bases.size(); ++i) {
      const Tensor &base = bases[i], &patch = patches[i];
      STD_TORCH_CHECK(base.size(0) == 1 && base.size(2) == map_height_ && base.size(3) == map_width_ &&
                          patch.size(0) == count_ && patch.size(1) == base.size(1),
                      "bases and patches are not of one size");
      const int64_t* corner = numbers(patch_corner_) + 2 * count_ * static_cast<int64_t>(i);
      parts_.push_back({hold(in_format(base, true)), hold(in_format(patch, true)), corner, base.size(1), patch.size(2),
                        patch.size(3)});
      channels_ += base.size(1), widest = std::max(widest, base.size(1));
    }
    zeros_.resize(widest);
    if (!scale) return;
    STD_TORCH_CHECK(scale->numel() == channels_ && shift->numel() == channels_, "scale and shift are not of all channels");
    scale_ = hold(in_order(*scale)), shift_ = hold(in_order(*shift));
  }

  int64_t pixels() const { return count_ * height_ * width_; }
  int64_t channels() const { return channels_; }

  // Write pixels [begin, end), counted over crops, rows and columns.
  void write(int64_t begin, int64_t end, float* to) const { (scale_ ? write_scaled : write_plain)(*this, begin, end, to); }

 private:
  static constexpr int64_t kPixels = 4;  // of all parts at once, which stay in the first cache

  struct Part {
    const float *base, *patch;
    const int64_t* corner;  // of each patch
    int64_t channels, patch_height, patch_width;
  };

  // What a row of a crop has of one part: columns [first, last) come from the patch.
  struct Row {
    const float *base, *patch;
    int64_t under, over;  // pixels of these that column 0 of the crop would have
    int64_t first, last, channels;
  };

  const float* hold(const Tensor& x) {
    held_.push_back(x);
    return static_cast<const float*>(held_.back().const_data_ptr());
  }

  // to = from, or from · scale + shift, within limits.
  template <bool kScaled>
  [[gnu::always_inline]] static inline void put(float* __restrict to, const float* __restrict from, int64_t count,
                                                const float* __restrict scale, const float* __restrict shift, float low,
                                                float high) {
    for (int64_t c = 0; c < count; ++c) {
      const float value = kScaled ? from[c] * scale[c] + shift[c] : from[c];
      to[c] = value < low ? low : value > high ? high : value;  // what is no number stays so
    }
  }

  template <bool kScaled>
  [[gnu::always_inline]] inline void write_pixels(int64_t begin, int64_t end, float* to) const {
    const int64_t* corner = numbers(corner_);
    std::vector<Row> rows(parts_.size());
    while (begin < end) {  // row by row
      const int64_t line = begin / width_, crop = line / height_, start = begin % width_;
      const int64_t stop = std::min(width_, start + end - begin);
      const int64_t row = corner[2 * crop] + line % height_, left = corner[2 * crop + 1];
      const bool on_map = 0 <= row && row < map_height_;
      for (size_t p = 0; p < rows.size(); ++p) {
        const Part& part = parts_[p];
        const int64_t patch_row = row - part.corner[2 * crop], patch_left = part.corner[2 * crop + 1] - left;
        const bool on_patch = 0 <= patch_row && patch_row < part.patch_height;
        rows[p] = {part.base, part.patch, row * map_width_ + left,
                   (crop * part.patch_height + patch_row) * part.patch_width - patch_left, patch_left,
                   on_patch ? patch_left + part.patch_width : patch_left, part.channels};
      }
      for (int64_t first = start; first < stop; first += kPixels) {
        const int64_t last = std::min(stop, first + kPixels);
        const float *scale = scale_, *shift = shift_;
        float* column = to;
        for (const Row& part : rows) {
          float* out = column;
          for (int64_t x = first; x < last; ++x, out += channels_) {
            const bool there = on_map && 0 <= left + x && left + x < map_width_;
            const bool laid = part.first <= x && x < part.last;
            const float* from = !there ? zeros_.data()
                                : laid ? part.patch + (part.over + x) * part.channels
                                       : part.base + (part.under + x) * part.channels;
            put<kScaled>(out, from, part.channels, scale, shift, low_, high_);
          }
          column += part.channels;
          if (kScaled) scale += part.channels, shift += part.channels;
        }
        to += (last - first) * channels_;
      }
      begin += stop - start;
    }
  }

  CNNVIZ_CLONES static void write_scaled(const Joined& job, int64_t begin, int64_t end, float* to) {
    job.write_pixels<true>(begin, end, to);
  }
  CNNVIZ_CLONES static void write_plain(const Joined& job, int64_t begin, int64_t end, float* to) {
    job.write_pixels<false>(begin, end, to);
  }

  std::vector<Tensor> held_;  // what the parts point to
  std::vector<Part> parts_;
  Tensor patch_corner_, corner_;
  int64_t map_height_, map_width_, count_, height_, width_, channels_ = 0;
  const float *scale_ = nullptr, *shift_ = nullptr;  // of each channel
  float low_, high_;
  std::vector<float> zeros_;  // what lies outside of the maps
};

Tensor overlay_cat(const std::vector<Tensor>& bases, const std::vector<Tensor>& patches, const Tensor& patch_yx,
                   const Tensor& crop_yx, const Sizes& size, const std::optional<Tensor>& scale,
                   const std::optional<Tensor>& shift, double low, double high) {
  const Joined job(bases, patches, patch_yx, crop_yx, size, scale, shift, low, high);
  Tensor made = empty(bases[0], {crop_yx.size(0), job.channels(), size[0], size[1]}, true);
  float* to = fresh<float>(made);
  parallel_rows(job.pixels(), job.channels() * static_cast<int64_t>(sizeof(float)),
                [&](int64_t begin, int64_t end) { job.write(begin, end, to + begin * job.channels()); });
  return made;
}

#ifdef CNNVIZ_X86_LEVELS

constexpr int64_t kBlock = 192;         // pixels of which a panel's sums stay in the second cache
constexpr int64_t kGathered = 1 << 17;  // numbers that do beside them

// Of each block of pixels what the kernel sees is brought together, then multiplied while it is in the cache.
Tensor conv_cat(const std::vector<Tensor>& bases, const std::vector<Tensor>& patches, const Tensor& patch_yx,
                const Tensor& crop_yx, const Sizes& size, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                double low, double high, const Tensor& kernel, const Tensor& bias, double made_low, double made_high,
                const std::vector<Tensor>& added) {
  const Joined job(bases, patches, patch_yx, crop_yx, size, scale, shift, low, high);
  const int64_t channels = job.channels(), pixels = job.pixels(), panels = (bias.size(0) + kPanel - 1) / kPanel;
  STD_TORCH_CHECK(kernel.dim() == 5 && kernel.size(0) == panels && kernel.size(1) == 1 && kernel.size(2) == 1 &&
                      kernel.size(3) == channels && kernel.size(4) == kPanel,
                  "kernel and bias are not of these maps");
  Tensor result = empty(bases[0], {crop_yx.size(0), bias.size(0), size[0], size[1]}, true);
  const Tensor packed = in_order(kernel), start = in_order(bias);
  const float* weights = static_cast<const float*>(packed.const_data_ptr());
  const Added more(added, result);
  const Sums sums{static_cast<const float*>(start.const_data_ptr()),
                  more.pixels(),
                  fresh<float>(result),
                  bias.size(0),
                  static_cast<float>(made_low),
                  static_cast<float>(made_high)};
  std::vector<Run> runs;
  for (int64_t k = 0; k < channels; k += kChain) runs.push_back({k, std::min(kChain, channels - k)});
  const int64_t block = block_of(pixels, std::min(kBlock, kGathered / std::max<int64_t>(1, channels)), 1);
  const AddPanel add = add_panel_here();
  parallel_rows((pixels + block - 1) / block, kGrainBytes, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> seen(new float[block * channels]), room(new float[block * kPanel]);
    std::vector<const float*> x(block);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * block, count = std::min(block, pixels - first), whole = (count + kTiles - 1) / kTiles * kTiles;
      job.write(first, first + count, seen.get());
      for (int64_t p = 0; p < whole; ++p) x[p] = seen.get() + std::min(p, count - 1) * channels;
      for (int64_t panel = 0; panel < panels; ++panel)
        sums.convolve(add, x.data(), first, first + count, runs, weights + panel * kPanel * channels, panel, room.get());
    }
  });
  return result;
}

#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) {
  library.impl("overlay_cat", TORCH_BOX(&overlay_cat));
#ifdef CNNVIZ_X86_LEVELS
  if (has_avx2()) library.impl("conv_cat", TORCH_BOX(&conv_cat));
#endif
}

}  // namespace cnnviz::cpu
