from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from cnnviz import ops

CASES = {  # maps, and kernel, stride and padding of the windows
    "1 x 64 x 112 x 112, 3 px in steps of 2": ((1, 64, 112, 112), 3, 2, 1),
    "8 x 64 x 112 x 112, 3 px in steps of 2": ((8, 64, 112, 112), 3, 2, 1),
    "1 x 64 x 224 x 224, 2 px in steps of 2": ((1, 64, 224, 224), 2, 2, 0),
    "8 x 512 x 14 x 14, 2 px in steps of 2": ((8, 512, 14, 14), 2, 2, 0),
    "1 x 192 x 28 x 28, 3 px in steps of 1": ((1, 192, 28, 28), 3, 1, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_forward(case: str, race: Any, device: str) -> None:
    shape, kernel, stride, padding = CASES[case]
    x = torch.randn(shape, device=device)

    def ours() -> torch.Tensor:
        return ops.max_pool(x, (kernel, kernel), (stride, stride), (padding, padding))

    def obvious() -> torch.Tensor:
        return functional.max_pool2d(x, kernel, stride, padding)

    assert torch.equal(ours(), obvious())
    race(ours, {"max_pool2d": obvious})


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(case: str, race: Any, device: str) -> None:
    shape, kernel, stride, padding = CASES[case]
    x = torch.randn(shape, device=device, requires_grad=True)
    grad = torch.randn_like(functional.max_pool2d(x, kernel, stride, padding))

    def ours() -> torch.Tensor:
        made = ops.max_pool(x, (kernel, kernel), (stride, stride), (padding, padding))
        return torch.autograd.grad(made, x, grad)[0]

    def obvious() -> torch.Tensor:
        return torch.autograd.grad(functional.max_pool2d(x, kernel, stride, padding), x, grad)[0]

    assert torch.equal(ours(), obvious())
    race(ours, {"max_pool2d": obvious})
