// Inner products of all pairs of channels, each pair once: half of the products that a matrix library does.
//
// Blocks of pairs of strips (see gram_kernel.h) are shared out among the threads, each in a fixed order, and written twice,
// on both sides of the diagonal.
#include <memory>
#include <new>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../gram_panels.h"
#include "gram_kernel.h"

namespace cnnviz::cpu {
namespace {

#ifdef CNNVIZ_X86_LEVELS

constexpr int64_t kPackedBytes = 1 << 20;  // of one image's strips that are made at once, to stay in the second cache

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
  transpose(turned, kBlock, [&](int64_t r, int64_t c) { return sums[r * kBlock + c]; }, kBlock, kBlock);
  if (top == left) {
    for (int64_t r = 0; r < rows; ++r) std::copy(turned + r * kBlock + r, turned + r * kBlock + columns, sums + r * kBlock + r);
  } else {
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = 0; r < rows; ++r) matrix[(left + c) * channels + top + r] = static_cast<To>(turned[c * kBlock + r]);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) matrix[(top + r) * channels + left + c] = static_cast<To>(sums[r * kBlock + c]);
}

template <class From>
struct Job {
  using Packed = typename Packing<From>::Packed;
  using Sum = typename Packing<From>::Sum;
  Kernel<Packed, Sum> kernel;
  const From* from;
  From* to;
  int64_t count, channels, pixels;
  double scale;
  bool channels_last;

  int64_t side() const { return (channels + kBlock - 1) / kBlock; }
  int64_t blocks() const { return side() * (side() + 1) / 2; }
  int64_t strips() const { return side() * kBlock / kernel.strip; }
  int64_t steps() const { return image(0).count(); }
  Steps<From> image(int64_t n) const { return {from + n * channels * pixels, channels, pixels, channels_last}; }
  From* matrix(int64_t n) const { return to + n * channels * channels; }

  void pack_strip(Packed* packed, int64_t n, int64_t strip, int64_t begin, int64_t end) const {
    pack(packed, image(n), strip * kernel.strip, kernel.strip, begin, end);
  }
  // `packed` holds an image's strips of so many steps each, one after the other.
  void add(const Block& block, const Packed* packed, int64_t depth, Sum* sums) const {
    const int64_t next = depth * kernel.strip, step = kBlock / kernel.strip * next;
    kernel.add_block(packed + block.row * step, packed + block.column * step, next, depth, sums);
  }
};

constexpr int64_t kArea = kBlock * kBlock;

// Few channels: a thread packs some pixels of an image and multiplies them at once; what the parts come to is summed up in
// their order. How many there are depends on the shape alone, and so do the bits of the result.
template <class From>
void multiply_few(const Job<From>& job) {
  using Packed = typename Job<From>::Packed;
  using Sum = typename Job<From>::Sum;
  const int64_t blocks = job.blocks(), strips = job.strips(), steps = job.steps();
  const int64_t wanted = job.side() <= 2 ? 16 : 8;
  const int64_t parts = std::clamp<int64_t>(wanted / job.count, 1, (steps + kDepth - 1) / kDepth);
  const bool at_once = parts == 1;
  const Memory<Sum> sums(at_once ? 0 : job.count * parts * blocks * kArea);
  parallel_rows(job.count * parts, kGrainBytes, [&](int64_t first, int64_t last) {
    const Memory<Packed> packed(strips * job.kernel.strip * kDepth);
    const Memory<Sum> own_sums(at_once ? blocks * kArea : 0);
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = i / parts, part = i % parts, end = steps * (part + 1) / parts;
      Sum* own = at_once ? own_sums.data() : sums.data() + i * blocks * kArea;
      std::fill_n(own, blocks * kArea, Sum(0));
      for (int64_t begin = steps * part / parts; begin < end; begin += kDepth) {
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
      Sum* total = sums.data() + (image * parts * blocks + block) * kArea;
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t j = 0; j < kArea; ++j) total[j] += total[part * blocks * kArea + j];
      write_block(job.matrix(image), job.channels, Block(block), total, job.scale);
    }
  });
}

// Many channels: all threads pack some images, or some pixels of one, and then share out the blocks.
template <class From>
void multiply_many(const Job<From>& job) {
  using Packed = typename Job<From>::Packed;
  using Sum = typename Job<From>::Sum;
  const int64_t blocks = job.blocks(), strips = job.strips(), strip = job.kernel.strip, steps = job.steps();
  const int64_t fit = kPackedBytes / static_cast<int64_t>(job.side() * kBlock * sizeof(Packed));
  const int64_t depth = std::min(steps, std::max(kDepth, fit / kDepth * kDepth));
  const int64_t group = std::min(job.count, std::max<int64_t>(1, 2 * fit / depth));
  const bool at_once = depth == steps;
  const Memory<Packed> packed(group * strips * depth * strip);
  const Memory<Sum> sums_so_far(at_once ? 0 : group * blocks * kArea);
  for (int64_t n = 0; n < job.count; n += group) {
    const int64_t images = std::min(group, job.count - n);
    for (int64_t begin = 0; begin < steps; begin += depth) {
      const int64_t some = std::min(depth, steps - begin), next = some * strip;
      parallel_rows(images * strips, next * sizeof(Packed), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i)
          job.pack_strip(packed.data() + i * next, n + i / strips, i % strips, begin, begin + some);
      });
      parallel_rows(images * blocks, kGrainBytes, [&](int64_t first, int64_t last) {
        alignas(64) Sum fresh_sums[kArea];
        for (int64_t i = first; i < last; ++i) {
          Sum* sums = at_once ? fresh_sums : sums_so_far.data() + i * kArea;
          if (begin == 0) std::fill_n(sums, kArea, Sum(0));
          const Block block(i % blocks);
          job.add(block, packed.data() + i / blocks * strips * next, some, sums);
          if (begin + some == steps) write_block(job.matrix(n + i / blocks), job.channels, block, sums, job.scale);
        }
      });
    }
  }
}

// Where the library is ahead: a whole product, and one half of it copied over the other, since the two may differ in their
// last bit.
void multiply_by_library(const Tensor& x, const Tensor& made, double scale) {
  gram_lower(x, made, scale, 1, aoti_torch_cpu_baddbmm_out);
  const int64_t channels = made.size(1), side = (channels + kBlock - 1) / kBlock, blocks = side * (side + 1) / 2;
  by_element_size(made, [&](auto element) {
    using T = decltype(element);
    T* matrices = static_cast<T*>(made.mutable_data_ptr());
    parallel_rows(made.size(0) * blocks, kArea * sizeof(T), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        T* matrix = matrices + i / blocks * channels * channels;
        const Block block(i % blocks);
        const int64_t top = block.row * kBlock, left = block.column * kBlock;
        const int64_t rows = std::min(kBlock, channels - top), columns = std::min(kBlock, channels - left);
        const auto from = [&](int64_t r, int64_t c) { return matrix[(top + r) * channels + left + c]; };
        if (top > left) {
          transpose(matrix + left * channels + top, channels, from, rows, columns);
          continue;
        }
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = r + 1; c < columns; ++c) matrix[(top + r) * channels + left + c] = from(c, r);
      }
    });
  });
}

// Whether blocks would be empty for the most part, or the processor does not multiply numbers as they are packed.
bool library_is_ahead(const Tensor& x) {
  return x.size(1) < 48 || (x.scalar_type() == ScalarType::BFloat16 && !has_avx512_bfloat16());
}

Tensor gram_matrix(const Tensor& x, bool normalise) {
  const int64_t channels = x.size(1), pixels = x.size(2) * x.size(3);
  Tensor made = empty(x, {x.size(0), channels, channels}, false);
  if (made.numel() == 0 || pixels == 0) {
    torch::stable::zero_(made);
    return made;
  }
  const double scale = normalise ? 1.0 / (static_cast<double>(channels) * pixels) : 1.0;
  if (library_is_ahead(x)) {
    multiply_by_library(x, made, scale);
    return made;
  }
  by_type(x, [&](auto zero) {
    using From = decltype(zero);
    using Made = Job<From>;
    const bool channels_last = is_channels_last(x);
    const Tensor dense = in_format(x, channels_last);
    const Made job{kernel<typename Made::Packed, typename Made::Sum>(),
                   static_cast<const From*>(dense.const_data_ptr()),
                   static_cast<From*>(made.mutable_data_ptr()),
                   x.size(0),
                   channels,
                   pixels,
                   scale,
                   channels_last};
    job.side() <= 4 ? multiply_few(job) : multiply_many(job);
  });
  return made;
}

#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) {
#ifdef CNNVIZ_X86_LEVELS
  // Vectors shorter than these leave the matrix library ahead, and with it the reference.
  if (has_avx2()) library.impl("gram_matrix", TORCH_BOX(&gram_matrix));
#endif
}

}  // namespace cnnviz::cpu
