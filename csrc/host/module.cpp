// What is no operator: the facts of the build, and plans of windows, which lie in the host's memory.
#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include "../places.h"

namespace cnnviz {
pybind11::tuple stamp(const pybind11::object& module, const pybind11::function& held, const pybind11::frozenset& torchs);
}

namespace {

#define CNNVIZ_TEXT_(x) #x
#define CNNVIZ_TEXT(x) CNNVIZ_TEXT_(x)

#if defined(__clang__)
constexpr auto kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr auto kCompiler = "gcc " __VERSION__;
#else
constexpr auto kCompiler = "msvc " CNNVIZ_TEXT(_MSC_VER);
#endif

pybind11::dict facts() {
  pybind11::dict made;
  made["compiler"] = kCompiler;
  made["torch"] = CNNVIZ_TEXT(TORCH_VERSION_MAJOR) "." CNNVIZ_TEXT(TORCH_VERSION_MINOR) "." CNNVIZ_TEXT(TORCH_VERSION_PATCH);
#ifdef CNNVIZ_CUDA
  made["cuda"] = CNNVIZ_CUDA;
#endif
  return made;
}

// Python hands over where an index tensor lies.
const int64_t* at(uintptr_t address) { return reinterpret_cast<const int64_t*>(address); }

int64_t first_outside(uintptr_t address, int64_t count, int64_t start, int64_t stop) {
  return cnnviz::first_outside(at(address), count, start, stop);
}

int64_t first_bad_window(uintptr_t address, int64_t count, int64_t images, int64_t height, int64_t width) {
  return cnnviz::first_bad_window(at(address), count, images, height, width);
}

// A window operation along one axis, and the length of what it makes.
struct Axis {
  int64_t kernel, stride, padding, dilation, made;
};

int64_t floored(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// Writes where boxes of one size begin that hold `count` spans (rows, columns; first and last but one) of a whole; returns their
// height and width. Boxes of so large a share of the whole are all of it.
std::array<int64_t, 2> boxed(const int64_t* spans, int64_t count, std::array<int64_t, 2> whole, double all, int64_t* places) {
  std::array<int64_t, 2> size = {1, 1};
  for (int64_t i = 0; i < count; ++i)
    for (int64_t a : {0, 1}) size[a] = std::max(size[a], spans[4 * i + 2 * a + 1] - spans[4 * i + 2 * a]);
  const bool every = static_cast<double>(size[0] * size[1]) >= all * static_cast<double>(whole[0] * whole[1]);
  if (every) size = whole;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t a : {0, 1}) places[2 * i + a] = every ? 0 : std::min(spans[4 * i + 2 * a], whole[a] - size[a]);
  return size;
}

// What `count` spans of a map reach through a window operation.
//
// Writes spans of the result, where boxes begin that hold them, and where what these see begins; returns the boxes' size.
std::array<int64_t, 2> reached(uintptr_t spans, int64_t count, const std::vector<int64_t>& numbers, double all, uintptr_t to) {
  Axis axes[2];
  for (int64_t a : {0, 1}) axes[a] = {numbers[a], numbers[2 + a], numbers[4 + a], numbers[6 + a], numbers[8 + a]};
  const int64_t* from = at(spans);
  int64_t* made = reinterpret_cast<int64_t*>(to);
  int64_t* places = made + 4 * count;
  int64_t* corners = places + 2 * count;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t a : {0, 1}) {
      const Axis& axis = axes[a];
      const int64_t* span = from + 4 * i + 2 * a;
      const int64_t first = span[0] + axis.padding - (axis.kernel - 1) * axis.dilation, last = span[1] + axis.padding - 1;
      made[4 * i + 2 * a] = std::min(std::max<int64_t>(0, -floored(-first, axis.stride)), axis.made);
      made[4 * i + 2 * a + 1] = std::min(std::max<int64_t>(0, floored(last, axis.stride) + 1), axis.made);
    }
  const auto size = boxed(made, count, {axes[0].made, axes[1].made}, all, places);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t a : {0, 1}) corners[2 * i + a] = places[2 * i + a] * axes[a].stride - axes[a].padding;
  return size;
}

// The smallest spans that hold those of each of several lists of `count`; empty ones count for nothing.
//
// Writes the spans, and where boxes begin that hold them; returns the boxes' size.
std::array<int64_t, 2> united(
    const std::vector<uintptr_t>& lists, int64_t count, std::array<int64_t, 2> whole, double all, uintptr_t to) {
  int64_t* made = reinterpret_cast<int64_t*>(to);
  for (int64_t i = 0; i < count; ++i) {
    int64_t* span = made + 4 * i;
    std::copy_n(at(lists[0]) + 4 * i, 4, span);
    bool any = false;
    for (const uintptr_t list : lists) {
      const int64_t* one = at(list) + 4 * i;
      if (one[1] <= one[0] || one[3] <= one[2]) continue;
      if (!any) std::copy_n(one, 4, span);
      for (int64_t a : {0, 2}) span[a] = std::min(span[a], one[a]), span[a + 1] = std::max(span[a + 1], one[a + 1]);
      any = true;
    }
  }
  return boxed(made, count, whole, all, made + 4 * count);
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Host-side parts of cnnviz's native code.";
  module.def("facts", &facts, "Return what this build was made with.");
  module.def("first_outside", &first_outside);
  module.def("first_bad_window", &first_bad_window);
  module.def("reached", &reached);
  module.def("united", &united);
  module.def("stamp", &cnnviz::stamp);
}
