// A convolution of many small maps with kernels of 3 × 3 pixels, channels last, by Winograd's F(2 × 2, 3 × 3).
//
// A tile of 4 × 4 pixels makes 2 × 2 of the result with 16 products of each channel in place of 36. Lavin & Gray 2016. With so
// small tiles it rounds no worse than products do that are summed up one after the other.
#include <memory>

#include "conv_kernel.h"
#include "maps.h"

namespace cnnviz::cpu {
namespace {

#ifdef CNNVIZ_X86_LEVELS

constexpr int64_t kSide = 4, kPoints = kSide * kSide;
constexpr int64_t kBlock = 96;  // tiles whose sums stay in the second cache

template <int64_t kBytes>
struct Lanes {
  using Vector [[gnu::vector_size(kBytes)]] = float;
};

// Where a tile lies, and what it makes; pixels beyond the edge are those at the edge, which makes what is not kept.
struct Tile {
  const float* from[kPoints];
  float* to[4];            // null where there is no such pixel
  const float* added[4];  // to what is made; null where nothing is
};

// to[4 i + j][c] = (Bᵀ d B)[i][j] for channels c; rows of `to` are `apart` numbers apart.
template <int64_t kVector>
[[gnu::always_inline]] inline int64_t spread_some(const Tile& tile, int64_t first, int64_t channels, float* to, int64_t apart) {
  using Vector = typename Lanes<kVector>::Vector;
  constexpr int64_t lanes = kVector / sizeof(float);
  int64_t c = first;
  for (; c + lanes <= channels; c += lanes) {
    Vector rows[kSide][kSide];
#pragma GCC unroll 4
    for (int64_t j = 0; j < kSide; ++j) {
      Vector d[kSide];
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSide; ++i) std::memcpy(&d[i], tile.from[i * kSide + j] + c, sizeof(Vector));
      rows[0][j] = d[0] - d[2], rows[1][j] = d[1] + d[2], rows[2][j] = d[2] - d[1], rows[3][j] = d[1] - d[3];
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kSide; ++i) {
      const Vector made[kSide] = {rows[i][0] - rows[i][2], rows[i][1] + rows[i][2], rows[i][2] - rows[i][1],
                                  rows[i][1] - rows[i][3]};
#pragma GCC unroll 4
      for (int64_t j = 0; j < kSide; ++j) std::memcpy(to + (i * kSide + j) * apart + c, &made[j], sizeof(Vector));
    }
  }
  return c;
}

template <class Isa>
[[gnu::always_inline]] inline void spread(const Tile& tile, int64_t channels, float* to, int64_t apart) {
  int64_t c = spread_some<Isa::kVector>(tile, 0, channels, to, apart);
  c = spread_some<16>(tile, c, channels, to, apart);
  spread_some<4>(tile, c, channels, to, apart);
}

// tile.to = Aᵀ m A + bias within limits, of points m[p] = sums + p · apart, for channels first to last.
template <int64_t kVector>
[[gnu::always_inline]] inline int64_t gather_some(const float* sums, int64_t apart, const float* bias, int64_t first,
                                                  int64_t channels, float low, float high, const Tile& tile) {
  using Vector = typename Lanes<kVector>::Vector;
  constexpr int64_t lanes = kVector / sizeof(float);
  const Vector bottom = Vector{} + low, top = Vector{} + high;
  int64_t c = first;
  for (; c + lanes <= channels; c += lanes) {
    Vector rows[2][kSide], start;
    std::memcpy(&start, bias + c, sizeof(Vector));
#pragma GCC unroll 4
    for (int64_t j = 0; j < kSide; ++j) {
      Vector m[kSide];
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSide; ++i) std::memcpy(&m[i], sums + (i * kSide + j) * apart + c, sizeof(Vector));
      rows[0][j] = m[0] + m[1] + m[2], rows[1][j] = m[1] - m[2] - m[3];
    }
#pragma GCC unroll 2
    for (int64_t i = 0; i < 2; ++i) {
      Vector made[2] = {rows[i][0] + rows[i][1] + rows[i][2] + start, rows[i][1] - rows[i][2] - rows[i][3] + start};
#pragma GCC unroll 2
      for (int64_t j = 0; j < 2; ++j) {
        if (tile.added[i * 2 + j]) {
          Vector more;
          std::memcpy(&more, tile.added[i * 2 + j] + c, sizeof(Vector));
          made[j] += more;
        }
        made[j] = made[j] < bottom ? bottom : made[j];  // what is no number stays so
        made[j] = made[j] > top ? top : made[j];
        if (tile.to[i * 2 + j]) std::memcpy(tile.to[i * 2 + j] + c, &made[j], sizeof(Vector));
      }
    }
  }
  return c;
}

template <class Isa>
[[gnu::always_inline]] inline void gather(const float* sums, int64_t apart, const float* bias, int64_t channels, float low,
                                          float high, const Tile& tile) {
  int64_t c = gather_some<Isa::kVector>(sums, apart, bias, 0, channels, low, high, tile);
  c = gather_some<16>(sums, apart, bias, c, channels, low, high, tile);
  gather_some<4>(sums, apart, bias, c, channels, low, high, tile);
}

struct Winograd {
  const Maps& maps;
  const float* weights;  // (panels, 16, channels, kPanel)
  const float* bias;
  const float* const* added;  // to each pixel of the result, or null
  float* to;
  int64_t made;  // channels of the result
  float low, high;

  int64_t rows() const { return maps.height - 2; }
  int64_t columns() const { return maps.width - 2; }
  int64_t down() const { return (rows() + 1) / 2; }
  int64_t across() const { return (columns() + 1) / 2; }
  int64_t tiles() const { return maps.count * down() * across(); }

  Tile tile(int64_t number) const {
    const int64_t image = number / (down() * across()), at = number % (down() * across());
    const int64_t row = at / across() * 2, column = at % across() * 2;
    Tile found;
    const Maps::Map map = maps.map(image);
    for (int64_t i = 0; i < kSide; ++i) {
      const Maps::Row from = map.row(std::min(row + i, maps.height - 1));
      for (int64_t j = 0; j < kSide; ++j) found.from[i * kSide + j] = from.pixel(std::min(column + j, maps.width - 1));
    }
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 2; ++j) {
        const bool there = row + i < rows() && column + j < columns();
        const int64_t pixel = (image * rows() + row + i) * columns() + column + j;
        found.to[i * 2 + j] = there ? to + pixel * made : nullptr;
        found.added[i * 2 + j] = there && added ? added[pixel] : nullptr;
      }
    return found;
  }
};

// Tiles first to last - 1, of which there are at most `room`.
template <class Isa>
[[gnu::always_inline]] inline void convolve_tiles(const Winograd& job, int64_t first, int64_t last, int64_t room, AddPanel add,
                                                  const std::vector<Run>& runs, float* points, float* sums) {
  const int64_t count = last - first, whole = (count + kTiles - 1) / kTiles * kTiles, channels = job.maps.channels;
  std::vector<Tile> tiles(count);
  for (int64_t t = 0; t < count; ++t) {
    tiles[t] = job.tile(first + t);
    spread<Isa>(tiles[t], channels, points + t * channels, room * channels);
  }
  std::vector<const float*> x(whole);
  const int64_t panels = (job.made + kPanel - 1) / kPanel;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t channel = panel * kPanel, some = std::min(kPanel, job.made - channel);
    std::memset(sums, 0, kPoints * room * kPanel * sizeof(float));
    for (int64_t p = 0; p < kPoints; ++p) {
      for (int64_t t = 0; t < whole; ++t) x[t] = points + (p * room + std::min(t, count - 1)) * channels;
      add(x.data(), whole, runs, job.weights + (panel * kPoints + p) * channels * kPanel, some, sums + p * room * kPanel);
    }
    for (int64_t t = 0; t < count; ++t) {
      Tile tile = tiles[t];
      for (int64_t q = 0; q < 4; ++q) {
        if (tile.to[q]) tile.to[q] += channel;
        if (tile.added[q]) tile.added[q] += channel;
      }
      gather<Isa>(sums + t * kPanel, room * kPanel, job.bias + channel, some, job.low, job.high, tile);
    }
  }
}

using ConvolveTiles = void (*)(const Winograd&, int64_t, int64_t, int64_t, AddPanel, const std::vector<Run>&, float*, float*);

[[gnu::target("arch=x86-64-v4")]] void convolve_tiles_avx512(const Winograd& job, int64_t first, int64_t last, int64_t room,
                                                             AddPanel add, const std::vector<Run>& runs, float* points,
                                                             float* sums) {
  convolve_tiles<Avx512Sums>(job, first, last, room, add, runs, points, sums);
}

[[gnu::target("arch=x86-64-v3")]] void convolve_tiles_avx2(const Winograd& job, int64_t first, int64_t last, int64_t room,
                                                           AddPanel add, const std::vector<Run>& runs, float* points, float* sums) {
  convolve_tiles<Avx2Sums>(job, first, last, room, add, runs, points, sums);
}

void convolve(const Winograd& job) {
  std::vector<Run> runs;
  const int64_t tiles = job.tiles(), channels = job.maps.channels;
  for (int64_t k = 0; k < channels; k += kChain) runs.push_back({k, std::min(kChain, channels - k)});
  const int64_t room = block_of(tiles, kBlock, 1);
  const int64_t blocks = (tiles + room - 1) / room;
  const AddPanel add = add_panel_here();
  const ConvolveTiles run = has_avx512() ? convolve_tiles_avx512 : convolve_tiles_avx2;
  parallel_rows(blocks, kGrainBytes, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> points(new float[kPoints * room * channels]), sums(new float[kPoints * room * kPanel]);
    for (int64_t i = begin; i < end; ++i)
      run(job, i * room, std::min(tiles, (i + 1) * room), room, add, runs, points.get(), sums.get());
  });
}

Tensor winograd_crops(const std::vector<Tensor>& parts, const Sizes& size, const Tensor& weight, const Tensor& bias, double low,
                      double high, const std::vector<Tensor>& added) {
  const Maps maps(parts, size);
  STD_TORCH_CHECK(weight.size(1) == kPoints && weight.size(2) == maps.channels && weight.size(3) == kPanel &&
                      bias.size(0) <= weight.size(0) * kPanel && maps.height > 2 && maps.width > 2,
                  "kernel and bias are not of these maps");
  Tensor result = empty(bias, {maps.count, bias.size(0), maps.height - 2, maps.width - 2}, true);
  if (result.numel() == 0) return result;
  const Tensor weights = in_order(weight), start = in_order(bias);
  const Added more(added, result);
  convolve({maps,
            static_cast<const float*>(weights.const_data_ptr()),
            static_cast<const float*>(start.const_data_ptr()),
            more.pixels(),
            fresh<float>(result),
            bias.size(0),
            static_cast<float>(low),
            static_cast<float>(high)});
  return result;
}

// made[panel][4 i + j][c][m] = (G w Gᵀ)[i][j] of channel c's part of kernel 64 panel + m, zero where there is no such kernel.
Tensor winograd_kernel(const Tensor& weight) {
  STD_TORCH_CHECK(weight.size(2) == 3 && weight.size(3) == 3, "kernels are not of 3 x 3 pixels");
  const int64_t kernels = weight.size(0), channels = weight.size(1), panels = (kernels + kPanel - 1) / kPanel;
  Tensor result = empty(weight, {panels, kPoints, channels, kPanel}, false);
  const Tensor from = in_order(weight);
  const float* source = static_cast<const float*>(from.const_data_ptr());
  float* made = fresh<float>(result);
  constexpr int64_t kTogether = 16;  // channels, whose kernels lie side by side
  const int64_t parts = (channels + kTogether - 1) / kTogether;
  parallel_rows(panels * parts, kTogether * kPoints * kPanel * sizeof(float), [&](int64_t begin, int64_t end) {
    double points[kTogether][kPoints][kPanel];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / parts, first = i % parts * kTogether, some = std::min(kTogether, channels - first);
      std::memset(points, 0, sizeof points);
      for (int64_t m = 0; m < std::min(kPanel, kernels - panel * kPanel); ++m)
        for (int64_t c = 0; c < some; ++c) {
          const float* w = source + ((panel * kPanel + m) * channels + first + c) * 9;
          double rows[kSide][3];
          for (int64_t j = 0; j < 3; ++j) {
            const double top = w[j], middle = w[3 + j], bottom = w[6 + j], ends = top + bottom;
            rows[0][j] = top, rows[1][j] = (ends + middle) / 2, rows[2][j] = (ends - middle) / 2, rows[3][j] = bottom;
          }
          for (int64_t r = 0; r < kSide; ++r) {
            const double ends = rows[r][0] + rows[r][2];
            double (*row)[kPanel] = points[c] + r * kSide;
            row[0][m] = rows[r][0], row[1][m] = (ends + rows[r][1]) / 2;
            row[2][m] = (ends - rows[r][1]) / 2, row[3][m] = rows[r][2];
          }
        }
      for (int64_t p = 0; p < kPoints; ++p)
        for (int64_t c = 0; c < some; ++c) {
          float* row = made + ((panel * kPoints + p) * channels + first + c) * kPanel;
          for (int64_t m = 0; m < kPanel; ++m) row[m] = static_cast<float>(points[c][p][m]);
        }
    }
  });
  return result;
}

#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) {
#ifdef CNNVIZ_X86_LEVELS
  if (!has_avx2()) return;
  library.impl("winograd_crops", TORCH_BOX(&winograd_crops));
  library.impl("winograd_kernel", TORCH_BOX(&winograd_kernel));
#endif
}

}  // namespace cnnviz::cpu
