from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cnnviz import ops

SHAPES = [
    (1, 64, 112),
    (8, 64, 112),
    (8, 64, 56),
    (1, 128, 56),
    (8, 128, 56),
    (1, 256, 28),
    (8, 256, 56),
    (8, 256, 14),
    (1, 512, 28),
    (8, 512, 28),
    (8, 512, 14),
    (1, 1024, 14),
    (1, 2048, 7),
]
CASES = {f"{n} x {c} x {side} x {side}": ((n, c, side, side), torch.float32, False) for n, c, side in SHAPES}
CASES |= {
    f"{n} x {c} x {side} x {side}, channels last": ((n, c, side, side), torch.float32, True) for n, c, side in SHAPES
}
CASES |= {
    f"{n} x {c} x {side} x {side}, {str(dtype)[6:]}": ((n, c, side, side), dtype, False)
    for dtype in (torch.float64, torch.bfloat16, torch.float16)
    for n, c, side in [(8, 64, 56), (1, 256, 28), (1, 512, 28)]
}


@pytest.mark.parametrize("case", CASES)
def test_beside_bmm(case: str, race: Any, product: Any, device: str) -> None:
    shape, dtype, last = CASES[case]
    x = torch.randn(shape, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    flat = x.flatten(2)

    def obvious() -> Tensor:
        return torch.bmm(flat, flat.mT)

    def ours() -> Tensor:
        return ops.gram_matrix(x, normalise=False)

    tolerance = 0.02 if dtype.itemsize == 2 else 1e-3
    torch.testing.assert_close(ours(), obvious(), rtol=tolerance, atol=tolerance * flat.shape[2] ** 0.5)
    # Each pair of channels once.
    work = shape[0] * shape[1] * (shape[1] + 1) * flat.shape[2]
    race(ours, {"bmm(x, xᵀ)": obvious}, work=work, ceiling=product(dtype))
