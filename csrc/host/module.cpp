// What is no operator: the facts of the build, and checks of plans of windows, which lie in the host's memory.
#include <cstdint>
#include <optional>
#include <string>

#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

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

// The place of the first of `count` numbers that is not in [start, stop), or -1.
int64_t first_outside(uintptr_t address, int64_t count, int64_t start, int64_t stop) {
  const auto* values = reinterpret_cast<const int64_t*>(address);
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < start || values[i] >= stop) return i;
  return -1;
}

// The place of the first of `count` windows (image, top, bottom, left, right) that leaves its image or is turned, or -1.
int64_t first_bad_window(uintptr_t address, int64_t count, int64_t images, int64_t height, int64_t width) {
  const auto* window = reinterpret_cast<const int64_t*>(address);
  for (int64_t i = 0; i < count; ++i, window += 5) {
    const bool on_image = window[0] >= 0 && window[0] < images;
    const bool rows = window[1] >= 0 && window[1] <= window[2] && window[2] <= height;
    const bool columns = window[3] >= 0 && window[3] <= window[4] && window[4] <= width;
    if (!(on_image && rows && columns)) return i;
  }
  return -1;
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Host-side parts of cnnviz's native code.";
  module.def("facts", &facts, "Return what this build was made with.");
  module.def("first_outside", &first_outside);
  module.def("first_bad_window", &first_bad_window);
}
