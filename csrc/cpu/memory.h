// Rows of memory: where they are made, filled and shared out among threads.
#pragma once

#include <algorithm>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../tensor.h"

namespace cnnviz::cpu {

// Below this many bytes a second thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 15;

// Run f(begin, end) over rows of so many bytes.
template <class F>
void parallel_rows(int64_t rows, int64_t row_bytes, const F& f) {
  if (rows > 0) torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, row_bytes)), f);
}

// A result so large that the C library maps it anew from the kernel costs more to be paged in than to be written, unless
// its pages are large.
template <class T>
T* fresh(const Tensor& made) {
  T* data = static_cast<T*>(made.mutable_data_ptr());
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 1 << 21;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + made.numel() * sizeof(T)) / kPage * kPage;
  if (end > begin && end - begin >= 16 * kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return data;
}

template <int64_t kBytes>
inline void copy_ends(char* to, const char* from, int64_t bytes) {
  std::memcpy(to, from, kBytes);
  std::memcpy(to + bytes - kBytes, from + bytes - kBytes, kBytes);
}

// Copy without a call: rows of a few dozen bytes are most of the work, and the C library's copy of a long one is tuned
// for other things than the processor's cache.
template <class T>
inline void copy(T* to, const T* from, int64_t count) {
  char* out = reinterpret_cast<char*>(to);
  const char* in = reinterpret_cast<const char*>(from);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  if (bytes >= 64) {
    for (int64_t i = 0; i + 64 <= bytes; i += 64) std::memcpy(out + i, in + i, 64);
    std::memcpy(out + bytes - 64, in + bytes - 64, 64);
  } else if (bytes >= 32) {
    copy_ends<32>(out, in, bytes);
  } else if (bytes >= 16) {
    copy_ends<16>(out, in, bytes);
  } else if (bytes >= 8) {
    copy_ends<8>(out, in, bytes);
  } else if (bytes >= 4) {
    copy_ends<4>(out, in, bytes);
  } else if (bytes > 0) {
    *to = *from;
  }
}

template <class T>
inline void fill(T* to, T value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

}  // namespace cnnviz::cpu
