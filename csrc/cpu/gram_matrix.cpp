// Inner products of all pairs of channels, each pair once: half of the products that a matrix library does.
//
// Pixels are packed into strips of a few channels side by side, as many as two vectors hold. One strip times another is
// then a sum of outer products, for which the sums stay in registers. Blocks of pairs of strips are shared out among the
// threads, each in a fixed order, and written twice, on both sides of the diagonal.
#include <cstdlib>
#include <memory>
#include <new>
#include <string_view>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../gram_panels.h"
#include "memory.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 12)
#define CNNVIZ_HAS_KERNEL 1
#endif

namespace cnnviz::cpu {
namespace {

#ifdef CNNVIZ_HAS_KERNEL

constexpr int64_t kBlock = 64;   // channels of a block of sums, on each side
constexpr int64_t kDepth = 256;  // pixels of two strips that stay in the first cache
constexpr int64_t kPackedBytes = 1 << 20;  // of one image's strips that are made at once, to stay in the second cache

// Bytes of a vector, and rows of sums that its registers hold beside two vectors of columns.
struct Avx512 {
  static constexpr int64_t kVector = 64, kRows = 8;
};
struct Avx2 {
  static constexpr int64_t kVector = 32, kRows = 4;
};

template <class T, class Isa>
constexpr int64_t kStrip = 2 * Isa::kVector / static_cast<int64_t>(sizeof(T));

// sums[r][c] += Σ a[k][r] · b[k][c] over `depth` pixels k, for kRows channels r of one strip and all channels c of another.
template <class T, class Isa>
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

// Add to a block of sums what `depth` pixels give; `rows` and `columns` are its first strips, `next` elements apart.
template <class T, class Isa>
[[gnu::always_inline]] inline void add_block(const T* rows, const T* columns, int64_t next, int64_t depth, T* sums) {
  constexpr int64_t strip = kStrip<T, Isa>;
  for (int64_t k = 0; k < depth; k += kDepth)
    for (int64_t j = 0; j < kBlock / strip; ++j)
      for (int64_t i = 0; i < kBlock / strip; ++i) {
        if (rows == columns && j > i) continue;
        const T *a = rows + i * next + k * strip, *b = columns + j * next + k * strip;
        for (int64_t r = 0; r < strip; r += Isa::kRows)
          outer_products<T, Isa>(a + r, b, std::min(kDepth, depth - k), sums + (i * strip + r) * kBlock + j * strip);
      }
}

template <class T>
using AddBlock = void (*)(const T*, const T*, int64_t, int64_t, T*);

template <class T>
[[gnu::target("arch=x86-64-v4")]] void add_block_avx512(const T* a, const T* b, int64_t next, int64_t depth, T* sums) {
  add_block<T, Avx512>(a, b, next, depth, sums);
}

template <class T>
[[gnu::target("arch=x86-64-v3")]] void add_block_avx2(const T* a, const T* b, int64_t next, int64_t depth, T* sums) {
  add_block<T, Avx2>(a, b, next, depth, sums);
}

template <class T>
struct Kernel {
  AddBlock<T> add_block;
  int64_t strip;
};

// Whether the processor has such instructions, and PyTorch's own variable does not keep it from using them.
bool has_avx2() {
  const char* allowed = std::getenv("ATEN_CPU_CAPABILITY");
  return __builtin_cpu_supports("x86-64-v3") && !(allowed && std::string_view(allowed) == "default");
}

bool has_avx512() {
  const char* allowed = std::getenv("ATEN_CPU_CAPABILITY");
  return __builtin_cpu_supports("x86-64-v4") && has_avx2() && !(allowed && std::string_view(allowed) == "avx2");
}

template <class T>
Kernel<T> kernel() {
  static const bool wide = has_avx512();
  if (wide) return {&add_block_avx512<T>, kStrip<T, Avx512>};
  return {&add_block_avx2<T>, kStrip<T, Avx2>};
}

// Memory for so many numbers, not filled, that begins on a line of the cache.
template <class T>
class Memory {
 public:
  explicit Memory(int64_t count) : data_(static_cast<T*>(::operator new(count * sizeof(T), kLine))) {}
  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kLine); }
  };
  std::unique_ptr<T, Free> data_;
};

// to[j][i] = from[i][j], in squares that fit into registers.
template <class T, class From>
CNNVIZ_CLONES void transpose(T* to, int64_t to_row, const From* from, int64_t from_row, int64_t rows, int64_t columns) {
  using Four [[gnu::vector_size(4 * sizeof(T))]] = T;
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t j = 0; j < whole_columns; j += 4)
    for (int64_t i = 0; i < whole_rows; i += 4) {
      Four line[4];
      for (int64_t r = 0; r < 4; ++r) {
        T values[4];
        for (int64_t c = 0; c < 4; ++c) values[c] = static_cast<T>(from[(i + r) * from_row + j + c]);
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
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[j * to_row + i] = static_cast<T>(from[i * from_row + j]);
}

// The strip of channels from `first` on, at pixels [begin, end) of one image.
template <class T, class From>
void pack(T* to, const From* image, int64_t first, int64_t strip, int64_t channels, int64_t pixels, int64_t begin, int64_t end,
          bool channels_last) {
  const int64_t some = std::clamp<int64_t>(channels - first, 0, strip);
  if (some < strip) std::fill_n(to, (end - begin) * strip, T(0));
  if (channels_last) {
    for (int64_t m = begin; m < end; ++m, to += strip)
      for (int64_t c = 0; c < some; ++c) to[c] = static_cast<T>(image[m * channels + first + c]);
    return;
  }
  constexpr int64_t kLine = 16;  // pixels of all channels at a time
  for (int64_t m = begin; m < end; m += kLine)
    transpose(to + (m - begin) * strip, strip, image + first * pixels + m, pixels, some, std::min(kLine, end - m));
}

// Which block of sums the i-th is, counted along the rows of the lower triangle.
struct Block {
  int64_t row = 0, column;
  explicit Block(int64_t i) : column(i) {
    while (column > row) column -= ++row;
  }
};

// Write a block of sums below the diagonal, and turned above it.
template <class T, class To>
CNNVIZ_CLONES void write_block(To* matrix, int64_t channels, const Block& block, T* sums, double scale) {
  const int64_t top = block.row * kBlock, left = block.column * kBlock;
  const int64_t rows = std::min(kBlock, channels - top), columns = std::min(kBlock, channels - left);
  for (int64_t i = 0; i < kBlock * kBlock; ++i) sums[i] *= static_cast<T>(scale);
  T turned[kBlock * kBlock];
  transpose(turned, kBlock, sums, kBlock, kBlock, kBlock);
  if (top == left) {
    for (int64_t r = 0; r < rows; ++r) std::copy(turned + r * kBlock + r, turned + r * kBlock + columns, sums + r * kBlock + r);
  } else {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = 0; r < rows; ++r) matrix[(left + c) * channels + top + r] = static_cast<To>(turned[c * kBlock + r]);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) matrix[(top + r) * channels + left + c] = static_cast<To>(sums[r * kBlock + c]);
}

template <class T, class From>
struct Job {
  Kernel<T> kernel;
  const From* from;
  From* to;
  int64_t count, channels, pixels;
  double scale;
  bool channels_last;

  int64_t side() const { return (channels + kBlock - 1) / kBlock; }
  int64_t blocks() const { return side() * (side() + 1) / 2; }
  int64_t strips() const { return side() * kBlock / kernel.strip; }
  const From* image(int64_t n) const { return from + n * channels * pixels; }
  From* matrix(int64_t n) const { return to + n * channels * channels; }

  void pack_strip(T* packed, int64_t n, int64_t strip, int64_t begin, int64_t end) const {
    pack(packed, image(n), strip * kernel.strip, kernel.strip, channels, pixels, begin, end, channels_last);
  }
  // `packed` holds an image's strips of so many pixels each, one after the other.
  void add(const Block& block, const T* packed, int64_t depth, T* sums) const {
    const int64_t next = depth * kernel.strip, step = kBlock / kernel.strip * next;
    kernel.add_block(packed + block.row * step, packed + block.column * step, next, depth, sums);
  }
};

constexpr int64_t kArea = kBlock * kBlock;

// Few channels: a thread packs some pixels of an image and multiplies them at once; what the parts come to is summed up in
// their order. How many there are depends on the shape alone, and so do the bits of the result.
template <class T, class From>
void multiply_few(const Job<T, From>& job) {
  const int64_t blocks = job.blocks(), strips = job.strips();
  const int64_t parts = std::clamp<int64_t>(16 / job.count, 1, (job.pixels + kDepth - 1) / kDepth);
  const bool at_once = parts == 1;
  const Memory<T> sums(at_once ? 0 : job.count * parts * blocks * kArea);
  parallel_rows(job.count * parts, kGrainBytes, [&](int64_t first, int64_t last) {
    const Memory<T> packed(strips * job.kernel.strip * kDepth), own_sums(at_once ? blocks * kArea : 0);
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / parts, part = i % parts, end = job.pixels * (part + 1) / parts;
      T* own = at_once ? own_sums.data() : sums.data() + i * blocks * kArea;
      std::fill_n(own, blocks * kArea, T(0));
      for (int64_t begin = job.pixels * part / parts; begin < end; begin += kDepth) {
        const int64_t depth = std::min(kDepth, end - begin);
        for (int64_t strip = 0; strip < strips; ++strip)
          job.pack_strip(packed.data() + strip * depth * job.kernel.strip, image, strip, begin, begin + depth);
        for (int64_t block = 0; block < blocks; ++block) job.add(Block(block), packed.data(), depth, own + block * kArea);
      }
      for (int64_t block = 0; at_once && block < blocks; ++block)
        write_block(job.matrix(image), job.channels, Block(block), own + block * kArea, job.scale);
    }
  });
  if (at_once) return;
  parallel_rows(job.count * blocks, kGrainBytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / blocks, block = i % blocks;
      T* total = sums.data() + (image * parts * blocks + block) * kArea;
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t j = 0; j < kArea; ++j) total[j] += total[part * blocks * kArea + j];
      write_block(job.matrix(image), job.channels, Block(block), total, job.scale);
    }
  });
}

// Many channels: all threads pack some images, or some pixels of one, and then share out the blocks.
template <class T, class From>
void multiply_many(const Job<T, From>& job) {
  const int64_t blocks = job.blocks(), strips = job.strips(), strip = job.kernel.strip;
  const int64_t fit = kPackedBytes / static_cast<int64_t>(job.side() * kBlock * sizeof(T));
  const int64_t depth = std::min(job.pixels, std::max(kDepth, fit / kDepth * kDepth));
  const int64_t group = std::min(job.count, std::max<int64_t>(1, 2 * fit / depth));
  const bool at_once = depth == job.pixels;
  const Memory<T> packed(group * strips * depth * strip), sums_so_far(at_once ? 0 : group * blocks * kArea);
  for (int64_t n = 0; n < job.count; n += group) {
    const int64_t images = std::min(group, job.count - n);
    for (int64_t begin = 0; begin < job.pixels; begin += depth) {
      const int64_t some = std::min(depth, job.pixels - begin), next = some * strip;
      parallel_rows(images * strips, next * sizeof(T), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i)
          job.pack_strip(packed.data() + i * next, n + i / strips, i % strips, begin, begin + some);
      });
      parallel_rows(images * blocks, kGrainBytes, [&](int64_t first, int64_t last) {
        alignas(64) T fresh_sums[kArea];
        for (int64_t i = first; i < last; ++i) {
          T* sums = at_once ? fresh_sums : sums_so_far.data() + i * kArea;
          if (begin == 0) std::fill_n(sums, kArea, T(0));
          const Block block(i % blocks);
          job.add(block, packed.data() + i / blocks * strips * next, some, sums);
          if (begin + some == job.pixels) write_block(job.matrix(n + i / blocks), job.channels, block, sums, job.scale);
        }
      });
    }
  }
}

// Where the library is ahead, since blocks would be empty for the most part or since processors multiply bfloat16 by
// instructions of their own: a whole product, and one half of it copied over the other, since the two may differ in their
// last bit.
void multiply_by_library(const Tensor& x, const Tensor& made, double scale) {
  gram_lower(x, made, scale, 1, aoti_torch_cpu_baddbmm_out);
  const int64_t channels = made.size(1), side = (channels + kBlock - 1) / kBlock;
  by_element_size(made, [&](auto element) {
    using T = decltype(element);
    T* matrices = static_cast<T*>(made.mutable_data_ptr());
    parallel_rows(made.size(0) * side * (side + 1) / 2, kArea * sizeof(T), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      T* matrix = matrices + i / (side * (side + 1) / 2) * channels * channels;
      const Block block(i % (side * (side + 1) / 2));
      const int64_t top = block.row * kBlock, left = block.column * kBlock;
      const int64_t rows = std::min(kBlock, channels - top), columns = std::min(kBlock, channels - left);
      if (top > left) {
        transpose(matrix + left * channels + top, channels, matrix + top * channels + left, channels, rows, columns);
        continue;
      }
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = r + 1; c < columns; ++c) matrix[(top + r) * channels + left + c] = matrix[(top + c) * channels + left + r];
    }
    });
  });
}

Tensor gram_matrix(const Tensor& x, bool normalise) {
  const int64_t channels = x.size(1), pixels = x.size(2) * x.size(3);
  Tensor made = empty(x, {x.size(0), channels, channels}, false);
  if (made.numel() == 0 || pixels == 0) {
    torch::stable::zero_(made);
    return made;
  }
  const double scale = normalise ? 1.0 / (static_cast<double>(channels) * pixels) : 1.0;
  if (x.scalar_type() == ScalarType::BFloat16 || channels < 48) {
    multiply_by_library(x, made, scale);
    return made;
  }
  by_type(x, [&](auto zero) {
    using From = decltype(zero);
    using Sum = std::conditional_t<std::is_same_v<From, double>, double, float>;
    const bool channels_last = is_channels_last(x);
    const Tensor dense = in_format(x, channels_last);
    const Job<Sum, From> job{kernel<Sum>(),
                             static_cast<const From*>(dense.const_data_ptr()),
                             static_cast<From*>(made.mutable_data_ptr()),
                             x.size(0),
                             channels,
                             pixels,
                             scale,
                             channels_last};
    job.side() <= 2 ? multiply_few(job) : multiply_many(job);
  });
  return made;
}

#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) {
#ifdef CNNVIZ_HAS_KERNEL
  // Vectors shorter than these leave the matrix library ahead, and with it the reference.
  if (has_avx2()) library.impl("gram_matrix", TORCH_BOX(&gram_matrix));
#endif
}

}  // namespace cnnviz::cpu
