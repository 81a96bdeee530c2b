// Crops: every thread writes some elements in a row of a patch, and reads them at once where they lie together.
#pragma once

#include "launch.h"

namespace cnnviz::cuda {

// Images whose elements lie in one of the two memory formats.
template <class T>
struct Source {
  const T* data;
  int64_t image, plane;  // elements of each; channels last there is one plane
  int height, row;       // rows of a plane, elements of a row
};

template <class T>
Source<T> source_of(const Tensor& x, const Planes& planes) {
  const int64_t row = x.size(3) * planes.unit, plane = x.size(2) * row;
  return {static_cast<const T*>(x.const_data_ptr()), planes.count * plane, plane, static_cast<int>(x.size(2)),
          static_cast<int>(row)};
}

template <class T, int kCount>
__device__ Pack<T, kCount> read(const T* from) {
  using P = Pack<T, kCount>;
  if (reinterpret_cast<uintptr_t>(from) % sizeof(P) == 0) return *reinterpret_cast<const P*>(from);
  P made;
#pragma unroll
  for (int j = 0; j < kCount; ++j) made.at[j] = from[j];
  return made;
}

}  // namespace cnnviz::cuda
