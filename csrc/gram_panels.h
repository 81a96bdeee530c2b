// The lower triangles of Gram matrices, by matrix products of the device's own library.
#pragma once

#include <algorithm>

#include "tensor.h"

namespace cnnviz {

inline Tensor narrowed(Tensor x, int64_t dim, int64_t begin, int64_t end) {
  return torch::stable::narrow(x, dim, begin, end - begin);
}

// torch's own baddbmm.out for one device, by its stable C name.
using Product = AOTITorchError (*)(AtenTensorHandle out, AtenTensorHandle self, AtenTensorHandle a, AtenTensorHandle b,
                                   double beta, double alpha);

// Fill (N, C, C) with scale · x xᵀ of (N, C, H, W) on and below the diagonal; what lies above it may be anything. More
// panels of rows save more of the upper half, until each is too thin for a fast product.
inline void gram_lower(const Tensor& x, const Tensor& made, double scale, int64_t panels, Product product) {
  const int64_t count = x.size(0), channels = x.size(1);
  const Tensor rows = torch::stable::reshape(x, Sizes{count, channels, x.size(2) * x.size(3)});
  const Tensor columns = torch::stable::transpose(rows, 1, 2);
  if (panels == 1) {  // without a view of everything, which would cost as much as a small product
    STABLE_TORCH_ERROR_CODE_CHECK(product(made.get(), made.get(), rows.get(), columns.get(), 0.0, scale));
    return;
  }
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t begin = channels * panel / panels / 16 * 16;
    const int64_t end = panel + 1 == panels ? channels : channels * (panel + 1) / panels / 16 * 16;
    const Tensor left = narrowed(rows, 1, begin, end), right = narrowed(columns, 2, 0, end);
    const Tensor block = narrowed(narrowed(made, 1, begin, end), 2, 0, end);
    STABLE_TORCH_ERROR_CODE_CHECK(product(block.get(), block.get(), left.get(), right.get(), 0.0, scale));
  }
}

}  // namespace cnnviz
