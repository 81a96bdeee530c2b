// Checks of index tensors, which lie in the host's memory.
#pragma once

#include <cstdint>

namespace cnnviz {

// Rows and columns this far away are refused, so that no sum with a size overflows; as cnnviz/ops/_check.py has it.
constexpr int64_t kFar = int64_t{1} << 30;

// The place of the first of `count` numbers that is not in [start, stop), or -1.
inline int64_t first_outside(const int64_t* values, int64_t count, int64_t start, int64_t stop) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < start || values[i] >= stop) return i;
  return -1;
}

// The place of the first of `count` windows (image, top, bottom, left, right) that leaves its image or is turned, or -1.
inline int64_t first_bad_window(const int64_t* window, int64_t count, int64_t images, int64_t height, int64_t width) {
  for (int64_t i = 0; i < count; ++i, window += 5) {
    const bool on_image = window[0] >= 0 && window[0] < images;
    const bool rows = window[1] >= 0 && window[1] <= window[2] && window[2] <= height;
    const bool columns = window[3] >= 0 && window[3] <= window[4] && window[4] <= width;
    if (!(on_image && rows && columns)) return i;
  }
  return -1;
}

}  // namespace cnnviz
