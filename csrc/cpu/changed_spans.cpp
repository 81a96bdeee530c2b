// Where patches differ from the map that they lie on by more than a share of what they differ at most.
#include "memory.h"
#include "processor.h"

#include <limits>
#include <type_traits>

namespace cnnviz::cpu {
namespace {

// Numbers that are not negative are in order as integers of their bits are, and what is no number comes last.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
Bits<T> distance(T a, T b) {
  return bits<Bits<T>>(a - b) & std::numeric_limits<Bits<T>>::max();
}

// A map as it lies in memory.
template <class T>
struct Strided {
  const T* data;
  int64_t height, width, image, channel, row, column;

  explicit Strided(const Tensor& x)
      : data(static_cast<const T*>(x.const_data_ptr())),
        height(x.size(2)),
        width(x.size(3)),
        image(x.stride(0)),
        channel(x.stride(1)),
        row(x.stride(2)),
        column(x.stride(3)) {}
};

// most[x] = max(most[x], |a[x] - b[x]|) over the channels of pixels that lie so many numbers apart.
template <class T>
CNNVIZ_CLONES static void widen(const T* a, const T* b, int64_t a_channel, int64_t b_channel, int64_t a_column,
                                int64_t b_column, int64_t channels, int64_t columns, Bits<T>* most) {
  if (a_channel == 1 && b_channel == 1) {
    for (int64_t x = 0; x < columns; ++x, a += a_column, b += b_column) {
      Bits<T> found = most[x];
      for (int64_t c = 0; c < channels; ++c) found = std::max(found, distance(a[c], b[c]));
      most[x] = found;
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = 0; x < columns; ++x)
      most[x] = std::max(most[x], distance(a[c * a_channel + x * a_column], b[c * b_channel + x * b_column]));
}

// The spans of one patch, rows and columns, of the patch's own pixels; they become the smallest ones that hold what counts,
// empty where nothing differs.
template <class T>
void shrink(const Strided<T>& base, const Strided<T>& patches, int64_t channels, int64_t k, const int64_t* corner, T share,
            std::vector<Bits<T>>& most, int64_t* spans) {
  const int64_t top = spans[0], bottom = spans[1], left = spans[2], right = spans[3], width = right - left;
  spans[1] = top, spans[3] = left;
  if (bottom <= top || width <= 0) return;
  most.assign((bottom - top) * width, 0);
  for (int64_t y = top; y < bottom; ++y)
    widen(patches.data + k * patches.image + (y - corner[0]) * patches.row + (left - corner[1]) * patches.column,
          base.data + y * base.row + left * base.column, patches.channel, base.channel, patches.column, base.column, channels,
          width, most.data() + (y - top) * width);
  const Bits<T> largest = *std::max_element(most.begin(), most.end());
  if (largest == 0) return;
  // What is no number counts, and beside it nothing else does.
  const T limit = share * bits<T>(largest);
  const Bits<T> infinite = bits<Bits<T>>(std::numeric_limits<T>::infinity());
  const Bits<T> least = limit == limit ? bits<Bits<T>>(limit) : infinite;
  int64_t found[4] = {bottom, top, right, left};
  for (int64_t y = top; y < bottom; ++y)
    for (int64_t x = left; x < right; ++x)
      if (most[(y - top) * width + x - left] >= least) {
        found[0] = std::min(found[0], y), found[1] = std::max(found[1], y + 1);
        found[2] = std::min(found[2], x), found[3] = std::max(found[3], x + 1);
      }
  std::copy(found, found + 4, spans);
}

template <class T>
void shrink_all(const Tensor& base, const Tensor& patch, const int64_t* corners, double share, int64_t* spans) {
  const Strided<T> under(base), over(patch);
  const int64_t count = patch.size(0), channels = patch.size(1);
  for (int64_t i = 0; i < 2 * count; ++i) {
    const int64_t size = i % 2 ? over.width : over.height, whole = i % 2 ? under.width : under.height;
    const int64_t first = spans[2 * i], stop = spans[2 * i + 1];
    STD_TORCH_CHECK(stop <= first || (std::max<int64_t>(0, corners[i]) <= first && stop <= std::min(whole, corners[i] + size)),
                    "a span lies outside of its patch or of the map");
  }
  parallel_rows(count, channels * over.height * over.width * static_cast<int64_t>(sizeof(T)), [&](int64_t begin, int64_t end) {
    std::vector<Bits<T>> most;
    for (int64_t k = begin; k < end; ++k)
      shrink(under, over, channels, k, corners + 2 * k, static_cast<T>(share), most, spans + 4 * k);
  });
}

Tensor changed_spans(const Tensor& base, const Tensor& patch, const Tensor& patch_yx, const Tensor& spans, double share) {
  const int64_t count = patch.size(0);
  const Tensor corners = in_order(patch_yx), before = in_order(spans);
  STD_TORCH_CHECK(base.size(0) == 1 && base.size(1) == patch.size(1) && corners.numel() == 2 * count &&
                      before.numel() == 4 * count,
                  "base and patches are not of one size, or there is not one place for each patch");
  Tensor made = empty(before, {count, 2, 2}, false);
  int64_t* to = static_cast<int64_t*>(made.mutable_data_ptr());
  std::copy_n(numbers(before), 4 * count, to);
  if (base.scalar_type() == ScalarType::Double) {
    shrink_all<double>(base, patch, numbers(corners), share, to);
  } else {
    STD_TORCH_CHECK(base.scalar_type() == ScalarType::Float, "maps are neither of float32 nor of float64");
    shrink_all<float>(base, patch, numbers(corners), share, to);
  }
  return made;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) { library.impl("changed_spans", TORCH_BOX(&changed_spans)); }

}  // namespace cnnviz::cpu
