// What every kernel's launch needs: the tensor's device and stream, a grid, and 16 bytes at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../tensor.h"

namespace cnnviz::cuda {

constexpr int kThreads = 256;

// Makes a tensor's device the current one for as long as it lives, and knows that device's current stream.
class Device {
 public:
  explicit Device(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

inline unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::clamp<int64_t>((threads + kThreads - 1) / kThreads, 1, 1 << 20));
}

// Elements that are read or written at once.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

template <class T>
constexpr int kWide = 16 / sizeof(T);

inline bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// Where the i-th element of an image lies: plane, row, and place in the row. Index is as wide as the count of elements asks.
template <class Index>
struct Spot {
  Index plane, y, place;

  __device__ Spot(Index i, Index height, Index row) {
    const Index line = i / row;
    place = i - line * row;
    plane = line / height;
    y = line - plane * height;
  }
  __device__ void next(Index height, Index row) {
    if (++place < row) return;
    place = 0;
    if (++y < height) return;
    y = 0;
    ++plane;
  }
};

// Rows of numbers that go with the launch itself, so that there is no copy to wait for.
constexpr int64_t kTableRows = 1024;

template <int kColumns>
struct Table {
  int32_t at[kTableRows][kColumns];

  // Fill columns from `first` on with rows [begin, end) of a host's (K, columns).
  void take(int first, const int64_t* from, int64_t columns, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < columns; ++j) at[i - begin][first + j] = static_cast<int32_t>(from[i * columns + j]);
  }

  void take_row(int64_t row, const std::array<int64_t, kColumns>& from) {
    std::copy(from.begin(), from.end(), at[row]);
  }
};

// Run f(begin, end) over as many rows at a time as a table holds.
template <class F>
void by_tables(int64_t rows, const F& f) {
  for (int64_t begin = 0; begin < rows; begin += kTableRows) f(begin, std::min(rows, begin + kTableRows));
}

// Write `rows` results of `job.elements` each, 16 bytes at a time or one element: fill(job, table, begin, end) tells the
// kernel of results [begin, end), of which job.to is the first and job.count how many there are.
template <class T, class Job, int kColumns, class Fill>
void write_rows(const Tensor& made, Job job, int64_t rows, bool wide, void (*wide_kernel)(Job, Table<kColumns>),
                void (*any_kernel)(Job, Table<kColumns>), const Fill& fill) {
  const Device device(made);
  T* to = static_cast<T*>(made.mutable_data_ptr());
  wide = wide && job.elements % kWide<T> == 0 && job.elements < (int64_t{1} << 31) && is_aligned(to);
  const auto kernel = wide ? wide_kernel : any_kernel;
  by_tables(rows, [&](int64_t begin, int64_t end) {
    Table<kColumns> table;
    job.to = to + begin * job.elements;
    job.count = end - begin;
    fill(job, table, begin, end);
    const dim3 grid(blocks_for(job.elements / (wide ? kWide<T> : 1)), static_cast<unsigned>(job.count));
    kernel<<<grid, kThreads, 0, device.stream()>>>(job, table);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace cnnviz::cuda
