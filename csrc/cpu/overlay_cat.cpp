// Crops of several maps, each with its own patch laid over, side by side in their channels; channels last.
#include <optional>

#include "memory.h"
#include "processor.h"

namespace cnnviz::cpu {
namespace {

constexpr int64_t kPixels = 4;  // of all parts at once, which stay in the first cache

// One of the maps, and the patches that are laid over it.
struct Part {
  const float *base, *patch;
  const int64_t* corner;  // of each patch
  int64_t channels, patch_height, patch_width;
};

struct Joined {
  std::vector<Part> parts;
  const int64_t* corner;  // of each crop
  int64_t map_height, map_width, height, width, channels;
  const float *scale, *shift;  // of each channel, or null
  float low, high;
  const float* zeros;  // what lies outside of the maps
  float* to;
};

// to = from, or from · scale + shift, within limits.
template <bool kScaled>
[[gnu::always_inline]] inline void put(float* __restrict to, const float* __restrict from, int64_t count,
                                       const float* __restrict scale, const float* __restrict shift, float low, float high) {
  for (int64_t c = 0; c < count; ++c) {
    const float value = kScaled ? from[c] * scale[c] + shift[c] : from[c];
    to[c] = value < low ? low : value > high ? high : value;  // what is no number stays so
  }
}

// What a row of a crop has of one part: columns [first, last) come from the patch.
struct Row {
  const float *under, *over;  // what column 0 of the crop would have
  int64_t first, last, channels;
};

template <bool kScaled>
[[gnu::always_inline]] inline void write_rows(const Joined& job, int64_t begin, int64_t end) {
  std::vector<Row> rows(job.parts.size());
  float* to = job.to + begin * job.width * job.channels;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t crop = i / job.height, row = job.corner[2 * crop] + i % job.height, left = job.corner[2 * crop + 1];
    const bool on_map = 0 <= row && row < job.map_height;
    for (size_t p = 0; p < rows.size(); ++p) {
      const Part& part = job.parts[p];
      const int64_t patch_row = row - part.corner[2 * crop], patch_left = part.corner[2 * crop + 1] - left;
      const bool on_patch = 0 <= patch_row && patch_row < part.patch_height;
      rows[p] = {part.base + (row * job.map_width + left) * part.channels,
                 part.patch + ((crop * part.patch_height + patch_row) * part.patch_width - patch_left) * part.channels, patch_left,
                 on_patch ? patch_left + part.patch_width : patch_left, part.channels};
    }
    for (int64_t first = 0; first < job.width; first += kPixels) {
      const int64_t last = std::min(job.width, first + kPixels);
      const float *scale = job.scale, *shift = job.shift;
      float* column = to;
      for (const Row& part : rows) {
        float* out = column;
        for (int64_t x = first; x < last; ++x, out += job.channels) {
          const bool there = on_map && 0 <= left + x && left + x < job.map_width;
          const float* from = part.first <= x && x < part.last ? part.over : part.under;
          put<kScaled>(out, there ? from + x * part.channels : job.zeros, part.channels, scale, shift, job.low, job.high);
        }
        column += part.channels;
        if (kScaled) scale += part.channels, shift += part.channels;
      }
      to += (last - first) * job.channels;
    }
  }
}

CNNVIZ_CLONES void write_scaled(const Joined& job, int64_t begin, int64_t end) { write_rows<true>(job, begin, end); }
CNNVIZ_CLONES void write_plain(const Joined& job, int64_t begin, int64_t end) { write_rows<false>(job, begin, end); }

Tensor overlay_cat(const std::vector<Tensor>& bases, const std::vector<Tensor>& patches, const Tensor& patch_yx,
                   const Tensor& crop_yx, const Sizes& size, const std::optional<Tensor>& scale,
                   const std::optional<Tensor>& shift, double low, double high) {
  STD_TORCH_CHECK(!bases.empty() && bases.size() == patches.size() && scale.has_value() == shift.has_value(),
                  "there is not one patch for each base, or not both of scale and shift");
  const int64_t count = crop_yx.size(0);
  const Tensor patch_corner = in_order(patch_yx), corner = in_order(crop_yx);
  STD_TORCH_CHECK(patch_corner.numel() == static_cast<int64_t>(bases.size()) * count * 2, "there is not one place for each patch");
  Joined job{};
  job.corner = numbers(corner);
  job.map_height = bases[0].size(2), job.map_width = bases[0].size(3), job.height = size[0], job.width = size[1];
  std::vector<Tensor> held;  // what the parts point to
  int64_t widest = 0;
  for (size_t i = 0; i < bases.size(); ++i) {
    const Tensor &base = bases[i], &patch = patches[i];
    STD_TORCH_CHECK(base.size(0) == 1 && base.size(2) == job.map_height && base.size(3) == job.map_width &&
                        patch.size(0) == count && patch.size(1) == base.size(1),
                    "bases and patches are not of one size");
    held.push_back(in_format(base, true)), held.push_back(in_format(patch, true));
    const float *under = static_cast<const float*>(held[2 * i].const_data_ptr()),
                *over = static_cast<const float*>(held[2 * i + 1].const_data_ptr());
    job.parts.push_back({under, over, numbers(patch_corner) + 2 * count * static_cast<int64_t>(i), base.size(1), patch.size(2),
                         patch.size(3)});
    job.channels += base.size(1), widest = std::max(widest, base.size(1));
  }
  if (scale) {
    STD_TORCH_CHECK(scale->numel() == job.channels && shift->numel() == job.channels, "scale and shift are not of all channels");
    held.push_back(in_order(*scale)), held.push_back(in_order(*shift));
    job.scale = static_cast<const float*>(held[held.size() - 2].const_data_ptr());
    job.shift = static_cast<const float*>(held.back().const_data_ptr());
  }
  job.low = static_cast<float>(low), job.high = static_cast<float>(high);
  const std::vector<float> zeros(widest);
  job.zeros = zeros.data();
  Tensor made = empty(bases[0], {count, job.channels, job.height, job.width}, true);
  job.to = fresh<float>(made);
  parallel_rows(count * job.height, job.width * job.channels * static_cast<int64_t>(sizeof(float)),
                [&](int64_t begin, int64_t end) { (job.scale ? write_scaled : write_plain)(job, begin, end); });
  return made;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) { library.impl("overlay_cat", TORCH_BOX(&overlay_cat)); }

}  // namespace cnnviz::cpu
