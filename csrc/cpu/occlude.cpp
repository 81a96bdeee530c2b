// A copy of an image for each window, with the baseline inside the window; every element of the result is written once.
#include "memory.h"
#include "processor.h"

namespace cnnviz::cpu {
namespace {

// The baseline with its broadcast channels and columns written out in the result's format, its rows only if they differ.
template <class T>
struct Cover {
  std::vector<T> values;
  int64_t plane, row;

  Cover(const Tensor& baseline, const Planes& planes, int64_t channels, int64_t height, int64_t width)
      : plane((baseline.size(1) == 1 ? 1 : height) * width * planes.unit),
        row(baseline.size(1) == 1 ? 0 : width * planes.unit) {
    const int64_t rows = baseline.size(1) == 1 ? 1 : height;
    const int64_t step[] = {baseline.size(0) == 1 ? 0 : baseline.stride(0), baseline.stride(1),
                            baseline.size(2) == 1 ? 0 : baseline.stride(2)};
    const T* from = static_cast<const T*>(baseline.const_data_ptr());
    values.resize(channels * rows * width);
    const int64_t pixel = planes.unit, channel = planes.unit == 1 ? plane : 1;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t y = 0; y < rows; ++y)
        for (int64_t x = 0; x < width; ++x)
          values[c * channel + y * width * pixel + x * pixel] = from[c * step[0] + y * step[1] + x * step[2]];
  }
};

template <class T>
struct Occlusion {
  T* to;
  const T* images;
  const int64_t* windows;
  const Cover<T>* cover;
  Planes planes;
  int64_t height, row;
};

// Write rows [begin, end) of the result, counted over windows, planes and rows.
template <class T>
CNNVIZ_CLONES void write_rows(const Occlusion<T>& o, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t place = begin / o.height, k = place / o.planes.count, plane = place % o.planes.count;
    const int64_t first = begin % o.height, last = std::min(o.height, first + end - begin);
    const int64_t* window = o.windows + 5 * k;
    const int64_t top = std::clamp(window[1], first, last), bottom = std::clamp(window[2], top, last);
    const int64_t left = window[3] * o.planes.unit, right = window[4] * o.planes.unit;
    const T* image = o.images + (window[0] * o.planes.count + plane) * o.height * o.row;
    T* out = o.to + place * o.height * o.row;
    copy(out + first * o.row, image + first * o.row, (top - first) * o.row);
    for (int64_t y = top; y < bottom; ++y) {
      const int64_t line = y * o.row;
      copy(out + line, image + line, left);
      copy(out + line + left, o.cover->values.data() + plane * o.cover->plane + y * o.cover->row + left, right - left);
      copy(out + line + right, image + line + right, o.row - right);
    }
    copy(out + bottom * o.row, image + bottom * o.row, (last - bottom) * o.row);
    begin += last - first;
  }
}

}  // namespace

Tensor occlude(const Tensor& images, const Tensor& windows, const Tensor& baseline, bool channels_last) {
  const int64_t count = windows.size(0), channels = images.size(1), height = images.size(2), width = images.size(3);
  Tensor made = empty(images, {count, channels, height, width}, channels_last);
  if (made.numel() == 0) return made;
  const Tensor source = in_format(images, channels_last), boxes = in_order(windows);
  check_windows(boxes, images.size(0), height, width);
  const Planes planes(channels, channels_last);
  by_element_size(images, [&](auto element) {
    using T = decltype(element);
    const Cover<T> cover(baseline, planes, channels, height, width);
    const Occlusion<T> occlusion{fresh<T>(made), static_cast<const T*>(source.const_data_ptr()), numbers(boxes), &cover, planes,
                                 height,         width * planes.unit};
    parallel_rows(count * planes.count * height, width * planes.unit * sizeof(T),
                  [&](int64_t begin, int64_t end) { write_rows(occlusion, begin, end); });
  });
  return made;
}

STABLE_TORCH_LIBRARY_IMPL(cnnviz, CPU, library) { library.impl("occlude", TORCH_BOX(&occlude)); }

}  // namespace cnnviz::cpu
