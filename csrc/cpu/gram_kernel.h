// Sums of outer products: what the processor multiplies at once, and how channels are laid out for it.
//
// Pixels are packed into strips of a few channels side by side, as many as two vectors hold. One strip times another is
// then a sum of outer products, for which the sums stay in registers.
#pragma once

#include "memory.h"
#include "processor.h"

#ifdef CNNVIZ_X86_LEVELS
#include <immintrin.h>

namespace cnnviz::cpu {

constexpr int64_t kBlock = 64;   // channels of a block of sums, on each side
constexpr int64_t kDepth = 256;  // steps of two strips that stay in the first cache

// How numbers are packed: `Packed` holds a channel's pixels of one step.
template <class T>
struct Packing {
  using Packed = float;
  using Sum = float;
  static constexpr int64_t kPixels = 1;
};
template <>
struct Packing<double> {
  using Packed = double;
  using Sum = double;
  static constexpr int64_t kPixels = 1;
};
template <>
struct Packing<BFloat16> {
  using Packed = uint32_t;
  using Sum = float;
  static constexpr int64_t kPixels = 2;
};

// Bytes of a vector, and rows of sums that its registers hold beside two vectors of columns.
struct Avx512 {
  static constexpr int64_t kVector = 64, kRows = 8;
};
struct Avx2 {
  static constexpr int64_t kVector = 32, kRows = 4;
};

template <class Packed, class Isa>
constexpr int64_t kStrip = 2 * Isa::kVector / static_cast<int64_t>(sizeof(Packed));

// sums[r][c] += Σ a[k][r] · b[k][c] over `depth` steps k, for kRows channels r of one strip and all channels c of another.
template <class Isa, class T>
[[gnu::always_inline]] inline void outer_products(const T* a, const T* b, int64_t depth, T* sums) {
  using Vector [[gnu::vector_size(Isa::kVector)]] = T;
  constexpr int64_t lanes = kStrip<T, Isa> / 2;
  Vector left[Isa::kRows] = {}, right[Isa::kRows] = {};
  for (int64_t k = 0; k < depth; ++k, a += 2 * lanes, b += 2 * lanes) {
    Vector first, second;
    std::memcpy(&first, b, sizeof(Vector));
    std::memcpy(&second, b + lanes, sizeof(Vector));
#pragma GCC unroll 8
    for (int64_t r = 0; r < Isa::kRows; ++r) {
      left[r] += a[r] * first;
      right[r] += a[r] * second;
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < Isa::kRows; ++r) {
    for (int64_t c = 0; c < lanes; ++c) {
      sums[r * kBlock + c] += left[r][c];
      sums[r * kBlock + lanes + c] += right[r][c];
    }
  }
}

// The same for two pixels a step, in bfloat16.
template <class Isa>
[[gnu::target("arch=x86-64-v4,avx512bf16")]] inline void outer_products(const uint32_t* a, const uint32_t* b, int64_t depth,
                                                                        float* sums) {
  constexpr int64_t lanes = kStrip<uint32_t, Isa> / 2;
  __m512 left[Isa::kRows] = {}, right[Isa::kRows] = {};
  for (int64_t k = 0; k < depth; ++k, a += 2 * lanes, b += 2 * lanes) {
    const auto first = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b));
    const auto second = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + lanes));
#pragma GCC unroll 8
    for (int64_t r = 0; r < Isa::kRows; ++r) {
      const auto row = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[r])));
      left[r] = _mm512_dpbf16_ps(left[r], row, first);
      right[r] = _mm512_dpbf16_ps(right[r], row, second);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < Isa::kRows; ++r) {
    float* at = sums + r * kBlock;
    _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), left[r]));
    _mm512_storeu_ps(at + lanes, _mm512_add_ps(_mm512_loadu_ps(at + lanes), right[r]));
  }
}

// Add to a block of sums what `depth` steps give; `rows` and `columns` are its first strips, `next` elements apart.
template <class Isa, class Packed, class Sum>
[[gnu::always_inline]] inline void add_block(const Packed* rows, const Packed* columns, int64_t next, int64_t depth, Sum* sums) {
  constexpr int64_t strip = kStrip<Packed, Isa>;
  for (int64_t k = 0; k < depth; k += kDepth)
    for (int64_t j = 0; j < kBlock / strip; ++j)
      for (int64_t i = 0; i < kBlock / strip; ++i) {
        if (rows == columns && j > i) continue;
        const Packed *a = rows + i * next + k * strip, *b = columns + j * next + k * strip;
        for (int64_t r = 0; r < strip; r += Isa::kRows)
          outer_products<Isa>(a + r, b, std::min(kDepth, depth - k), sums + (i * strip + r) * kBlock + j * strip);
      }
}

template <class Packed, class Sum>
[[gnu::target("arch=x86-64-v4")]] void add_block_avx512(const Packed* a, const Packed* b, int64_t next, int64_t depth, Sum* sums) {
  add_block<Avx512>(a, b, next, depth, sums);
}

template <class Packed, class Sum>
[[gnu::target("arch=x86-64-v3")]] void add_block_avx2(const Packed* a, const Packed* b, int64_t next, int64_t depth, Sum* sums) {
  add_block<Avx2>(a, b, next, depth, sums);
}

template <class Packed, class Sum>
struct Kernel {
  void (*add_block)(const Packed*, const Packed*, int64_t, int64_t, Sum*);
  int64_t strip;
};

template <class Packed, class Sum>
Kernel<Packed, Sum> kernel() {
  if constexpr (!std::is_same_v<Packed, uint32_t>)
    if (!has_avx512()) return {&add_block_avx2<Packed, Sum>, kStrip<Packed, Avx2>};
  return {&add_block_avx512<Packed, Sum>, kStrip<Packed, Avx512>};
}

// to[j][i] = from(i, j), in squares that fit into registers.
template <class T, class From>
CNNVIZ_CLONES static void transpose(T* to, int64_t to_row, const From& from, int64_t rows, int64_t columns) {
  using Four [[gnu::vector_size(4 * sizeof(T))]] = T;
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t j = 0; j < whole_columns; j += 4)
    for (int64_t i = 0; i < whole_rows; i += 4) {
      Four line[4];
      for (int64_t r = 0; r < 4; ++r) {
        T values[4];
        for (int64_t c = 0; c < 4; ++c) values[c] = from(i + r, j + c);
        std::memcpy(&line[r], values, sizeof(Four));
      }
      const Four low01 = __builtin_shufflevector(line[0], line[1], 0, 4, 1, 5);
      const Four high01 = __builtin_shufflevector(line[0], line[1], 2, 6, 3, 7);
      const Four low23 = __builtin_shufflevector(line[2], line[3], 0, 4, 1, 5);
      const Four high23 = __builtin_shufflevector(line[2], line[3], 2, 6, 3, 7);
      const Four turned[4] = {
          __builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
          __builtin_shufflevector(high01, high23, 0, 1, 4, 5), __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (int64_t c = 0; c < 4; ++c) std::memcpy(to + (j + c) * to_row + i, &turned[c], sizeof(Four));
    }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_row + i] = from(i, j);
}

// An image's numbers as they are packed: a channel's pixels of one step.
template <class From>
struct Steps {
  using Packed = typename Packing<From>::Packed;
  static constexpr int64_t kPixels = Packing<From>::kPixels;
  const From* image;
  int64_t channels, pixels;
  bool channels_last;

  int64_t count() const { return (pixels + kPixels - 1) / kPixels; }

  // The pixels at `from`, `next` elements apart.
  static Packed packed(const From* from, int64_t next) {
    if constexpr (kPixels == 1) return static_cast<Packed>(*from);
    else return bits<Packed>(std::array<From, 2>{*from, from[next]});
  }
};

// The strip of channels from `first` on, at steps [begin, end).
template <class From>
void pack(typename Packing<From>::Packed* to, const Steps<From>& steps, int64_t first, int64_t strip, int64_t begin, int64_t end) {
  using Packed = typename Packing<From>::Packed;
  constexpr int64_t kPixels = Packing<From>::kPixels;
  const int64_t some = std::clamp<int64_t>(steps.channels - first, 0, strip);
  const int64_t pixel = steps.channels_last ? steps.channels : 1, channel = steps.channels_last ? 1 : steps.pixels;
  const From* image = steps.image + first * channel;
  if (some < strip) std::fill_n(to, (end - begin) * strip, Packed(0));
  if (end * kPixels > steps.pixels) {  // the last step is short of a pixel
    --end;
    for (int64_t c = 0; c < some; ++c) {
      const From pixels[2] = {image[end * kPixels * pixel + c * channel], From(0)};
      to[(end - begin) * strip + c] = steps.packed(pixels, 1);
    }
  }
  if (steps.channels_last) {
    for (int64_t m = begin; m < end; ++m, to += strip)
      for (int64_t c = 0; c < some; ++c) to[c] = steps.packed(image + m * kPixels * pixel + c, pixel);
    return;
  }
  constexpr int64_t kLine = 16;  // steps of all channels at a time
  for (int64_t m = begin; m < end; m += kLine) {
    const From* from = image + m * kPixels;
    transpose(to + (m - begin) * strip, strip,
              [from, channel](int64_t c, int64_t k) { return Steps<From>::packed(from + c * channel + k * kPixels, 1); }, some,
              std::min(kLine, end - m));
  }
}

}  // namespace cnnviz::cpu

#endif
