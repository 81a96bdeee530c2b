// What is no operator: the facts of the build, and checks of plans of windows, which lie in the host's memory.
#include <cstdint>
#include <optional>
#include <string>

#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include "../places.h"

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

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Host-side parts of cnnviz's native code.";
  module.def("facts", &facts, "Return what this build was made with.");
  module.def("first_outside", &first_outside);
  module.def("first_bad_window", &first_bad_window);
}
