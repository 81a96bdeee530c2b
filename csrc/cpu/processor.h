// What the processor can do, beyond what every processor of its kind can.
#pragma once

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 12)
#define CNNVIZ_X86_LEVELS 1  // functions may be compiled for the levels of x86-64 beside the first
#endif

// One function, compiled for several instruction sets; the loader takes the best that the processor has.
#if defined(CNNVIZ_X86_LEVELS) && defined(__gnu_linux__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define CNNVIZ_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define CNNVIZ_CLONES
#endif

#ifdef CNNVIZ_X86_LEVELS
namespace cnnviz::cpu {

// Whether the processor has such instructions, and PyTorch's own variable does not keep it from using them.
inline bool has_avx2() {
  const char* allowed = std::getenv("ATEN_CPU_CAPABILITY");
  return __builtin_cpu_supports("x86-64-v3") && !(allowed && std::string_view(allowed) == "default");
}

inline bool has_avx512() {
  static const bool has = [] {
    const char* allowed = std::getenv("ATEN_CPU_CAPABILITY");
    return __builtin_cpu_supports("x86-64-v4") && has_avx2() && !(allowed && std::string_view(allowed) == "avx2");
  }();
  return has;
}

inline bool has_avx512_bfloat16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

}  // namespace cnnviz::cpu
#endif
