// A convolution of many small maps, channels last, without padding, with weights that were packed before.
//
// What a pixel sees lies in memory as one run for each row of the kernel, so nothing is copied: pixels are multiplied where
// they are. Products are summed up in an order that depends on the kernel alone, so that a pixel comes out the same in
// whatever map it lies.
#include <memory>

#include "conv_kernel.h"
#include "maps.h"

namespace cnnviz::cpu {
namespace {

#ifdef CNNVIZ_X86_LEVELS

constexpr int64_t kPixels = 192;  // of a panel, whose sums stay in the second cache

struct Convolution {
  const float* x;
  Sums sums;
  int64_t count, height, width, channels;  // of the maps
  int64_t rows, columns;                   // of the result
  int64_t kernel[2], stride[2], dilation[2];

  int64_t pixels() const { return count * rows * columns; }

  // Where what a pixel of the result sees begins.
  const float* seen(int64_t pixel) const {
    const int64_t image = pixel / (rows * columns), at = pixel % (rows * columns);
    const int64_t row = at / columns * stride[0], column = at % columns * stride[1];
    return x + ((image * height + row) * width + column) * channels;
  }

  // What one pixel sees, in pieces.
  std::vector<Run> runs(int64_t longest) const {
    std::vector<Run> found;
    const bool together = dilation[1] == 1;
    for (int64_t i = 0; i < kernel[0]; ++i)
      for (int64_t j = 0; j < (together ? 1 : kernel[1]); ++j) {
        const int64_t offset = (i * dilation[0] * width + j * dilation[1]) * channels;
        const int64_t length = channels * (together ? kernel[1] : 1);
        for (int64_t k = 0; k < length; k += longest) found.push_back({offset + k, std::min(longest, length - k)});
      }
    return found;
  }
};

void convolve(const Convolution& job, const float* weights) {
  const std::vector<Run> runs = job.runs(kChain);
  const int64_t depth = job.kernel[0] * job.kernel[1] * job.channels, panels = job.sums.panels();
  const int64_t pixels = job.pixels();
  const int64_t at_once = block_of(pixels, kPixels, panels);
  const int64_t parts = (pixels + at_once - 1) / at_once;
  const AddPanel add = add_panel_here();
  parallel_rows(panels * parts, kGrainBytes, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(at_once * kPanel);
    std::vector<const float*> x(at_once);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i % panels, first = i / panels * at_once, last = std::min(pixels, first + at_once);
      for (int64_t p = 0; p < at_once; ++p) x[p] = job.seen(std::min(first + p, last - 1));
      job.sums.convolve(add, x.data(), first, last, runs, weights + panel * kPanel * depth, panel, sums.data());
    }
  });
}

// A kernel for each channel. Crops that are still to be written are written one by one, and multiplied while they are in the
// cache.
void convolve_each(const Convolution& job, const float* weights, const Crops<float>* crops) {
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < job.kernel[0]; ++i)
    for (int64_t j = 0; j < job.kernel[1]; ++j)
      offsets.push_back((i * job.dilation[0] * job.width + j * job.dilation[1]) * job.channels);
  const SumAll sum = sum_all_here();
  const auto some = [&](const Convolution& part, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kEach) {
      const float* x[kEach];
      float* to[kEach];
      for (int64_t p = 0; p < kEach; ++p) {  // the last ones may be the same, and come out the same
        const int64_t pixel = std::min(i + p, end - 1);
        x[p] = part.seen(pixel);
        to[p] = part.sums.to + pixel * part.channels;
      }
      sum(x, offsets, weights, part.sums.bias, part.channels, part.sums.low, part.sums.high, to);
    }
  };
  const int64_t pixels = job.pixels(), cost = job.channels * static_cast<int64_t>(offsets.size() * sizeof(float));
  if (!crops) {
    parallel_rows((pixels + kEach - 1) / kEach, kEach * cost, [&](int64_t begin, int64_t end) {
      some(job, begin * kEach, std::min(pixels, end * kEach));
    });
    return;
  }
  const WriteRows<float> write = write_rows_of(*crops);
  const int64_t made = job.rows * job.columns;
  parallel_rows(job.count, made * cost, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> room(new float[job.height * job.width * job.channels]);
    Convolution one = job;
    one.x = room.get();
    for (int64_t k = begin; k < end; ++k) {
      write(crops->only(k, room.get()), 0, job.height);
      one.sums.to = job.sums.to + k * made * job.channels;
      some(one, 0, made);
    }
  });
}

Tensor conv_crops(const std::vector<Tensor>& parts, const Sizes& size, const Tensor& weight, const Tensor& bias,
                  const Sizes& stride, const Sizes& dilation, double low, double high, const std::vector<Tensor>& added) {
  const Maps maps(parts, size);
  const bool each = weight.dim() == 3;  // a kernel for each channel
  const int64_t made_at_most = each ? weight.size(2) : weight.size(0) * kPanel;
  STD_TORCH_CHECK(weight.size(each ? 2 : 3) == maps.channels && bias.size(0) <= made_at_most && (each || weight.size(4) == kPanel),
                  "kernel and bias are not of these maps");
  Convolution job;
  job.count = maps.count, job.channels = maps.channels, job.height = maps.height, job.width = maps.width;
  const int64_t sides[2] = {maps.height, maps.width};
  int64_t made[2];
  for (int64_t axis : {0, 1}) {
    job.kernel[axis] = weight.size(each ? axis : axis + 1);
    job.stride[axis] = stride[axis], job.dilation[axis] = dilation[axis];
    STD_TORCH_CHECK(stride[axis] > 0 && dilation[axis] > 0, "a stride or dilation is below 1");
    const int64_t room = sides[axis] - dilation[axis] * (job.kernel[axis] - 1);
    STD_TORCH_CHECK(room > 0, "the kernel is larger than the maps");
    made[axis] = (room - 1) / stride[axis] + 1;
  }
  job.rows = made[0], job.columns = made[1];
  STD_TORCH_CHECK(!each || added.empty(), "nothing is added where each channel has a kernel of its own");
  STD_TORCH_CHECK(each || !maps.crops(), "nothing is laid over where all channels have one kernel");
  Tensor result = empty(bias, {job.count, bias.size(0), job.rows, job.columns}, true);
  if (result.numel() == 0) return result;
  const Tensor weights = in_order(weight), start = in_order(bias);
  job.x = maps.data();
  const float* packed = static_cast<const float*>(weights.const_data_ptr());
  const Added more(added, result);
  job.sums = {static_cast<const float*>(start.const_data_ptr()),
              more.pixels(),
              fresh<float>(result),
              bias.size(0),
              static_cast<float>(low),
              static_cast<float>(high)};
  if (each) convolve_each(job, packed, maps.crops());
  else convolve(job, packed);
  return result;
}

#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) {
#ifdef CNNVIZ_X86_LEVELS
  if (has_avx2()) library.impl("conv_crops", TORCH_BOX(&conv_crops));
#endif
}

}  // namespace cnnviz::cpu
