// Crops out of images that they may reach past, the rows of which may each have a patch laid over.
#pragma once

#include "memory.h"

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

// A range of a crop's rows or columns: what lies in [begin, end) comes from elsewhere, what lies around it does not.
struct Extent {
  int64_t begin, end;

  // The part of [0, size) that lies on [from, to) when 0 lies at `at`.
  Extent(int64_t at, int64_t size, int64_t from, int64_t to)
      : begin(std::clamp<int64_t>(from - at, 0, size)), end(std::clamp<int64_t>(to - at, begin, size)) {}

  bool has(int64_t place) const { return begin <= place && place < end; }
};

// Where a thread stands among the rows of all planes of all patches.
struct Place {
  int64_t patch, plane, row;

  Place(int64_t begin, int64_t rows, int64_t planes)
      : patch(begin / rows / planes), plane(begin / rows % planes), row(begin % rows) {}

  void next_plane() { ++plane, row = 0; }
  void next_patch() { ++patch, plane = 0; }
};

// Ask for a row before it is needed: the rows of an image lie too far apart for the processor to foresee.
template <class T>
inline void prefetch(const T* from, int64_t count) {
#ifdef __GNUC__
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + i);
#endif
}

}  // namespace cnnviz::cpu
