// A tile of a convolution's sums: some pixels times some vectors of channels, which stay in registers.
#pragma once

#include <limits>
#include <optional>

#include "memory.h"
#include "processor.h"

#ifdef CNNVIZ_X86_LEVELS

namespace cnnviz::cpu {

constexpr int64_t kPanel = 64;   // channels of a panel of weights
constexpr int64_t kChain = 96;  // products that are summed up one after the other; more would round further

constexpr int64_t kTiles = 24;   // a number of pixels that every tile divides
constexpr int64_t kEach = 4;     // pixels at once where each channel has weights of its own

// How many of so many pixels make a block, at most `most`: as many as let no thread wait long for the others, which get whole
// blocks, each of them `panels` times.
inline int64_t block_of(int64_t pixels, int64_t most, int64_t panels) {
  const int64_t threads = torch::stable::get_num_threads(), tiles = (pixels + kTiles - 1) / kTiles;
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t size = std::max<int64_t>(1, most / kTiles); size > 0; --size) {
    const int64_t blocks = (tiles + size - 1) / size * panels, longest = (blocks + threads - 1) / threads * size;
    if (longest < least - least / 32) best = size, least = longest;
  }
  return best * kTiles;
}

// Numbers that lie side by side in memory, from an offset on: a part of what a pixel sees.
struct Run {
  int64_t offset, count;
};

// Bytes of a vector, and vectors of sums that its registers hold beside those of weights and of inputs.
struct Avx512Sums {
  static constexpr int64_t kVector = 64, kSums = 24;
};
struct Avx2Sums {
  static constexpr int64_t kVector = 32, kSums = 12;
};

// sums[p][c] += Σ x[p][k] · weights[k][c] over the numbers k of all runs, for `kPixels` pixels p and all channels c of some
// vectors. Rows of weights and of sums are kPanel channels apart.
template <class Isa, int64_t kVectors>
[[gnu::always_inline]] inline void add_tile(const float* const* x, const Run* first, const Run* last, const float* weights,
                                            float* sums) {
  using Vector [[gnu::vector_size(Isa::kVector)]] = float;
  constexpr int64_t lanes = Isa::kVector / sizeof(float), pixels = Isa::kSums / kVectors;
  Vector sum[pixels][kVectors] = {};
  for (const Run* run = first; run != last; ++run) {
    const float* from[pixels];
#pragma GCC unroll 24
    for (int64_t p = 0; p < pixels; ++p) from[p] = x[p] + run->offset;
    for (int64_t k = 0; k < run->count; ++k, weights += kPanel) {
      Vector row[kVectors];
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) std::memcpy(&row[v], weights + v * lanes, sizeof(Vector));
#pragma GCC unroll 24
      for (int64_t p = 0; p < pixels; ++p) {
        const float value = from[p][k];
#pragma GCC unroll 4
        for (int64_t v = 0; v < kVectors; ++v) sum[p][v] += value * row[v];
      }
    }
  }
#pragma GCC unroll 24
  for (int64_t p = 0; p < pixels; ++p) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      Vector before;
      float* at = sums + p * kPanel + v * lanes;
      std::memcpy(&before, at, sizeof(Vector));
      before += sum[p][v];
      std::memcpy(at, &before, sizeof(Vector));
    }
  }
}

// All tiles of a panel: `count` pixels, a whole number of tiles, times the first `vectors` vectors of its channels.
template <class Isa, int64_t kVectors>
[[gnu::always_inline]] inline void add_tiles(const float* const* x, int64_t count, const std::vector<Run>& runs,
                                             const float* weights, float* sums) {
  constexpr int64_t pixels = Isa::kSums / kVectors;
  size_t first = 0;
  while (first < runs.size()) {  // one chain after the other: their weights stay in the cache for all pixels
    int64_t depth = 0;
    size_t last = first;
    while (last < runs.size() && depth + runs[last].count <= kChain) depth += runs[last++].count;
    for (int64_t p = 0; p < count; p += pixels)
      add_tile<Isa, kVectors>(x + p, runs.data() + first, runs.data() + last, weights, sums + p * kPanel);
    weights += depth * kPanel;
    first = last;
  }
}

// Channels beyond what so many vectors hold go into a further one.
template <class Isa>
[[gnu::always_inline]] inline void add_panel(const float* const* x, int64_t count, const std::vector<Run>& runs,
                                             const float* weights, int64_t channels, float* sums) {
  constexpr int64_t lanes = Isa::kVector / sizeof(float), most = Isa::kVector == 64 ? 4 : 2;
  for (int64_t c = 0; c < channels; c += most * lanes) {
    const int64_t vectors = std::min(most, (channels - c + lanes - 1) / lanes);
    if (vectors == 1) add_tiles<Isa, 1>(x, count, runs, weights + c, sums + c);
    else if (vectors == 2) add_tiles<Isa, 2>(x, count, runs, weights + c, sums + c);
    if constexpr (most == 4) {
      if (vectors == 3) add_tiles<Isa, 3>(x, count, runs, weights + c, sums + c);
      else if (vectors == 4) add_tiles<Isa, 4>(x, count, runs, weights + c, sums + c);
    }
  }
}

// sums[p][c] = bias[c] + Σ x[p][offset k + c] · weights[k][c] over all offsets k, for pixels p and channels c, of which each has
// weights of its own.
template <class Isa, int64_t kVector>
[[gnu::always_inline]] inline int64_t sum_each(const float* const* x, const std::vector<int64_t>& offsets, const float* weights,
                                               const float* bias, int64_t first, int64_t channels, float low, float high,
                                               float* const* sums) {
  using Vector [[gnu::vector_size(kVector)]] = float;
  constexpr int64_t lanes = kVector / sizeof(float);
  const Vector bottom = Vector{} + low, top = Vector{} + high;
  int64_t c = first;
  for (; c + lanes <= channels; c += lanes) {
    Vector start;
    std::memcpy(&start, bias + c, sizeof(Vector));
    Vector sum[kEach] = {start, start, start, start};
    const float* weight = weights + c;
    for (const int64_t offset : offsets) {
      Vector by;
      std::memcpy(&by, weight, sizeof(Vector));
      weight += channels;
#pragma GCC unroll 4
      for (int64_t p = 0; p < kEach; ++p) {
        Vector value;
        std::memcpy(&value, x[p] + offset + c, sizeof(Vector));
        sum[p] += value * by;
      }
    }
#pragma GCC unroll 4
    for (int64_t p = 0; p < kEach; ++p) {
      sum[p] = sum[p] < bottom ? bottom : sum[p];  // what is no number stays so
      sum[p] = sum[p] > top ? top : sum[p];
      std::memcpy(sums[p] + c, &sum[p], sizeof(Vector));
    }
  }
  return c;
}

template <class Isa>
[[gnu::always_inline]] inline void sum_all(const float* const* x, const std::vector<int64_t>& offsets, const float* weights,
                                           const float* bias, int64_t channels, float low, float high, float* const* sums) {
  int64_t c = sum_each<Isa, Isa::kVector>(x, offsets, weights, bias, 0, channels, low, high, sums);
  c = sum_each<Isa, 16>(x, offsets, weights, bias, c, channels, low, high, sums);
  sum_each<Isa, 4>(x, offsets, weights, bias, c, channels, low, high, sums);
}

using SumAll = void (*)(const float* const*, const std::vector<int64_t>&, const float*, const float*, int64_t, float, float,
                        float* const*);

[[gnu::target("arch=x86-64-v4")]] inline void sum_all_avx512(const float* const* x, const std::vector<int64_t>& offsets,
                                                             const float* weights, const float* bias, int64_t channels, float low,
                                                             float high, float* const* sums) {
  sum_all<Avx512Sums>(x, offsets, weights, bias, channels, low, high, sums);
}

[[gnu::target("arch=x86-64-v3")]] inline void sum_all_avx2(const float* const* x, const std::vector<int64_t>& offsets,
                                                           const float* weights, const float* bias, int64_t channels, float low,
                                                           float high, float* const* sums) {
  sum_all<Avx2Sums>(x, offsets, weights, bias, channels, low, high, sums);
}

inline SumAll sum_all_here() { return has_avx512() ? sum_all_avx512 : sum_all_avx2; }

using AddPanel = void (*)(const float* const*, int64_t, const std::vector<Run>&, const float*, int64_t, float*);

[[gnu::target("arch=x86-64-v4")]] inline void add_panel_avx512(const float* const* x, int64_t count, const std::vector<Run>& runs,
                                                               const float* weights, int64_t channels, float* sums) {
  add_panel<Avx512Sums>(x, count, runs, weights, channels, sums);
}

[[gnu::target("arch=x86-64-v3")]] inline void add_panel_avx2(const float* const* x, int64_t count, const std::vector<Run>& runs,
                                                             const float* weights, int64_t channels, float* sums) {
  add_panel<Avx2Sums>(x, count, runs, weights, channels, sums);
}

inline AddPanel add_panel_here() { return has_avx512() ? add_panel_avx512 : add_panel_avx2; }

// Where sums go, pixel by pixel.
struct Sums {
  const float* bias;
  const float* const* added;  // to each pixel of the result, or null
  float* to;
  int64_t made;     // channels
  float low, high;  // what is below or above is set to

  int64_t panels() const { return (made + kPanel - 1) / kPanel; }

  // How many channels a panel has.
  int64_t channels(int64_t panel) const { return std::min(kPanel, made - panel * kPanel); }

  // Write a panel's channels of pixels [first, last), which see `x`, of which there is a whole number of tiles.
  void convolve(AddPanel add, const float* const* x, int64_t first, int64_t last, const std::vector<Run>& runs,
                const float* weights, int64_t panel, float* sums) const {
    const int64_t count = (last - first + kTiles - 1) / kTiles * kTiles;
    std::memset(sums, 0, count * kPanel * sizeof(float));
    add(x, count, runs, weights, channels(panel), sums);
    write(*this, first, last, panel, sums);
  }

  // Write a panel's channels of pixels [first, last), of which the sums of products are these.
  CNNVIZ_CLONES static void write(const Sums& job, int64_t first, int64_t last, int64_t panel, const float* sums) {
    const int64_t channel = panel * kPanel, some = job.channels(panel);
    const float* bias = job.bias + channel;
    const float low = job.low, high = job.high;
    for (int64_t p = first; p < last; ++p, sums += kPanel) {
      float* __restrict row = job.to + p * job.made + channel;
      if (job.added) {
        const float* more = job.added[p] + channel;
        for (int64_t c = 0; c < some; ++c) row[c] = within(sums[c] + bias[c] + more[c], low, high);
      } else {
        for (int64_t c = 0; c < some; ++c) row[c] = within(sums[c] + bias[c], low, high);
      }
    }
  }

 private:
  // What is no number stays so.
  [[gnu::always_inline]] static inline float within(float value, float low, float high) {
    return value < low ? low : value > high ? high : value;
  }
};

}  // namespace cnnviz::cpu

#endif
