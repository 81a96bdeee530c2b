// Crops out of images that they may reach past, each of which may have a patch of its own laid over.
#pragma once

#include "memory.h"
#include "processor.h"

#ifdef CNNVIZ_X86_LEVELS
#include <immintrin.h>
#endif

namespace cnnviz::cpu {

// Images with dense rows, see `with_dense_rows`.
template <class T>
struct Source {
  const T* data;
  int64_t height, width, image, plane, row;

  Source(const Tensor& x, bool channels_last)
      : data(static_cast<const T*>(x.const_data_ptr())),
        height(x.size(2)),
        width(x.size(3)),
        image(x.stride(0)),
        plane(channels_last ? 0 : x.stride(1)),
        row(x.stride(2)) {}
};

inline Tensor with_dense_rows(const Tensor& x, bool channels_last) {
  if (channels_last ? is_channels_last(x) : x.stride(3) == 1 || x.size(3) == 1) return x;
  return in_format(x, channels_last);
}

// What is laid over: a patch for each crop, or nothing.
template <class T>
struct Patches {
  const T* data = nullptr;
  const int64_t* corner = nullptr;
  int64_t height = 0, width = 0;
};

template <class T>
struct Crops {
  T* to;
  Source<T> source;
  const int64_t *image, *corner;  // without `image` all are of the only one
  Planes planes;
  int64_t height, width;
  T pad;
  Patches<T> patches{};

  int64_t row() const { return width * planes.unit; }

  // The k-th of them alone, where all are of one image.
  Crops only(int64_t k, T* there) const {
    Crops one = *this;
    one.to = there, one.corner += 2 * k, one.patches.corner += 2 * k;
    one.patches.data += k * planes.count * planes.unit * patches.height * patches.width;
    return one;
  }
};

// A range of a crop's rows or columns: what lies in [begin, end) comes from elsewhere, what lies around it does not.
struct Extent {
  int64_t begin, end;

  // The part of [0, size) that lies on [from, to) when 0 lies at `at`.
  Extent(int64_t at, int64_t size, int64_t from, int64_t to)
      : begin(std::clamp<int64_t>(from - at, 0, size)), end(std::clamp<int64_t>(to - at, begin, size)) {}

  bool has(int64_t place) const { return begin <= place && place < end; }
  Extent times(int64_t factor) const { return {begin * factor, end * factor}; }

 private:
  Extent(int64_t b, int64_t e) : begin(b), end(e) {}
};

// The k-th crop: what of it lies on the image and on its patch. Columns are counted in elements.
template <class T>
struct Cut {
  int64_t top, left, patch_top, patch_left;
  Extent rows, columns, laid_rows, laid_columns;
  const T *under, *over = nullptr;  // what the crop's first element has in the first plane, were image and patch so large
  int64_t patch_row, patch_plane;

  Cut(const Crops<T>& crops, int64_t k)
      : top(crops.corner[2 * k]),
        left(crops.corner[2 * k + 1]),
        patch_top(crops.patches.data ? crops.patches.corner[2 * k] : 0),
        patch_left(crops.patches.data ? crops.patches.corner[2 * k + 1] : 0),
        rows(top, crops.height, 0, crops.source.height),
        columns(Extent(left, crops.width, 0, crops.source.width).times(crops.planes.unit)),
        laid_rows(top, crops.height, std::max<int64_t>(patch_top, 0),
                  std::min(patch_top + crops.patches.height, crops.source.height)),
        laid_columns(Extent(left, crops.width, std::max<int64_t>(patch_left, 0),
                            std::min(patch_left + crops.patches.width, crops.source.width))
                         .times(crops.planes.unit)),
        under(crops.source.data + (crops.image ? crops.image[k] : 0) * crops.source.image + top * crops.source.row +
              left * crops.planes.unit),
        patch_row(crops.patches.width * crops.planes.unit),
        patch_plane(crops.patches.height * patch_row) {
    if (laid_columns.end == laid_columns.begin) laid_rows.end = laid_rows.begin;
    if (crops.patches.data)
      over = crops.patches.data + k * crops.planes.count * patch_plane + (top - patch_top) * patch_row +
             (left - patch_left) * crops.planes.unit;
  }
};

// Where a thread stands among the rows of all planes of all crops.
struct Place {
  int64_t crop, plane, row;

  Place(int64_t begin, int64_t rows, int64_t planes)
      : crop(begin / rows / planes), plane(begin / rows % planes), row(begin % rows) {}

  void next_plane() { ++plane, row = 0; }
  void next_crop() { ++crop, plane = 0; }
};

// Ask for a row before it is needed: the rows of many images lie too far apart for the processor to foresee.
template <class T>
inline void prefetch(const T* from, int64_t count) {
#ifdef __GNUC__
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + i);
#endif
}

// Write rows [begin, end) of the crops' rows, counted over crops, planes and rows.
template <class T>
CNNVIZ_CLONES static void write_any_rows(const Crops<T>& crops, int64_t begin, int64_t end) {
  const Source<T>& source = crops.source;
  const int64_t row = crops.row();
  // What to ask for early: rows of small crops come to an end too soon, so the same row of the next plane.
  const bool small = crops.height <= 16;
  const int64_t ahead = small ? source.plane : 8 * source.row;
  Place place(begin, crops.height, crops.planes.count);
  T* out = crops.to + begin * row;
  for (; begin < end; place.next_crop()) {
    const Cut<T> cut(crops, place.crop);
    const Extent columns = cut.columns, laid = cut.laid_columns;
    // A short row is copied whole and its middle once more, which takes fewer steps than its three pieces.
    const bool short_row = row * static_cast<int64_t>(sizeof(T)) <= 256;
    for (; place.plane < crops.planes.count && begin < end; place.next_plane()) {
      const T* under = cut.under + place.plane * source.plane;
      const T* over = cut.over ? cut.over + place.plane * cut.patch_plane : nullptr;
      const bool more = !crops.patches.data && (!small || place.plane + 1 < crops.planes.count);
      for (; place.row < crops.height && begin < end; ++place.row, ++begin, out += row) {
        if (!cut.rows.has(place.row)) {
          fill(out, crops.pad, row);
          continue;
        }
        const T* line = under + place.row * source.row;
        if (more && cut.rows.has(place.row + (small ? 0 : 8)))
          prefetch(line + ahead + columns.begin, columns.end - columns.begin);
        fill(out, crops.pad, columns.begin);
        const bool both = cut.laid_rows.has(place.row);
        if (short_row || !both) {
          copy(out + columns.begin, line + columns.begin, columns.end - columns.begin);
        } else {
          copy(out + columns.begin, line + columns.begin, laid.begin - columns.begin);
          copy(out + laid.end, line + laid.end, columns.end - laid.end);
        }
        if (both) copy(out + laid.begin, over + place.row * cut.patch_row + laid.begin, laid.end - laid.begin);
        fill(out + columns.end, crops.pad, row - columns.end);
      }
    }
  }
}

#ifdef CNNVIZ_X86_LEVELS

constexpr int64_t kVector = 64;  // bytes
constexpr int64_t kVectors = 2;  // of the longest row that is written by masks

// Which bytes of a row an extent has, a bit each.
struct Mask {
  uint64_t bits[kVectors];

  Mask(const Extent& extent, int64_t element) {
    for (int64_t v = 0; v < kVectors; ++v)
      bits[v] = up_to(extent.end * element - v * kVector) & ~up_to(extent.begin * element - v * kVector);
  }

 private:
  static uint64_t up_to(int64_t bytes) {
    return bytes <= 0 ? 0 : bytes >= kVector ? ~uint64_t{0} : (uint64_t{1} << bytes) - 1;
  }
};

// The same for short rows, without a branch for what comes from where.
template <class T, bool kLaid>
[[gnu::target("arch=x86-64-v4")]] static void write_short_rows(const Crops<T>& crops, int64_t begin, int64_t end) {
  const Source<T>& source = crops.source;
  const int64_t row = crops.row(), vectors = (row * static_cast<int64_t>(sizeof(T)) + kVector - 1) / kVector;
  constexpr int64_t next = kVector / static_cast<int64_t>(sizeof(T));
  const Mask whole(Extent(0, row, 0, row), sizeof(T));
  T pads[next];
  std::fill_n(pads, next, crops.pad);
  const __m512i pad = _mm512_loadu_si512(pads);
  Place place(begin, crops.height, crops.planes.count);
  T* out = crops.to + begin * row;
  for (; begin < end; place.next_crop()) {
    const Cut<T> cut(crops, place.crop);
    const Mask on_image(cut.columns, sizeof(T)), on_patch(cut.laid_columns, sizeof(T));
    for (; place.plane < crops.planes.count && begin < end; place.next_plane()) {
      const T* line = cut.under + place.plane * source.plane + place.row * source.row;
      const T* laid = kLaid ? cut.over + place.plane * cut.patch_plane + place.row * cut.patch_row : nullptr;
      for (; place.row < crops.height && begin < end;
           ++place.row, ++begin, out += row, line += source.row, laid += kLaid ? cut.patch_row : 0) {
        // A load that no bit asks for still takes long where there is no memory.
        const bool has = cut.rows.has(place.row), both = cut.laid_rows.has(place.row);
        const T *below = has ? line : source.data, *above = both ? laid : source.data;
        const uint64_t here = has ? ~uint64_t{0} : 0, there = both ? ~uint64_t{0} : 0;
        if (!kLaid) __builtin_prefetch(line + 2 * source.plane);
        for (int64_t v = 0; v < vectors; ++v) {
          __m512i made = _mm512_mask_loadu_epi8(pad, on_image.bits[v] & here, below + v * next);
          if (kLaid) made = _mm512_mask_loadu_epi8(made, on_patch.bits[v] & there, above + v * next);
          _mm512_mask_storeu_epi8(out + v * next, whole.bits[v], made);
        }
      }
    }
  }
}

#endif

template <class T>
using WriteRows = void (*)(const Crops<T>&, int64_t, int64_t);

// What writes the rows of such crops.
template <class T>
WriteRows<T> write_rows_of(const Crops<T>& crops) {
#ifdef CNNVIZ_X86_LEVELS
  if (crops.row() * static_cast<int64_t>(sizeof(T)) <= kVectors * kVector && has_avx512())
    return crops.patches.data ? write_short_rows<T, true> : write_short_rows<T, false>;
#endif
  return write_any_rows<T>;
}

template <class T>
void write_crops(const Crops<T>& crops, int64_t count) {
  const WriteRows<T> write = write_rows_of(crops);
  parallel_rows(count * crops.planes.count * crops.height, crops.row() * static_cast<int64_t>(sizeof(T)),
                [&](int64_t begin, int64_t end) { write(crops, begin, end); });
}

}  // namespace cnnviz::cpu
