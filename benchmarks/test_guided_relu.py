from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cnnviz import ops


class Obvious(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        made = torch.relu(x)
        ctx.save_for_backward(made)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (made,) = ctx.saved_tensors
        return grad.clamp(min=0) * (made > 0)


CASES = {
    "float32 1 MiB": ((1, 64, 64, 64), torch.float32, False),
    "float32 8 MiB": ((8, 64, 64, 64), torch.float32, False),
    "float32 64 MiB": ((64, 64, 64, 64), torch.float32, False),
    "float32 64 MiB channels last": ((64, 64, 64, 64), torch.float32, True),
    "bfloat16 64 MiB": ((128, 64, 64, 64), torch.bfloat16, False),
    "float32 256 MiB": ((256, 64, 64, 64), torch.float32, False),
}


def _input(case: str, device: str) -> Tensor:
    shape, dtype, last = CASES[case]
    x = torch.randn(shape, device=device).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(case: str, race: Any, copy: Any, device: str) -> None:
    x = _input(case, device).requires_grad_()
    grad = torch.randn_like(x)
    bytes_ = x.numel() * x.element_size()

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.guided_relu(x, "guided"), x, grad)

    def obvious() -> tuple[Tensor, ...]:
        return torch.autograd.grad(Obvious.apply(x), x, grad)

    assert torch.equal(ours()[0], obvious()[0])
    race(
        ours,
        {"autograd.Function of relu; clamp(min=0) * (y > 0)": obvious},
        work=5 * bytes_,
        ceiling=copy(5 * bytes_),
    )


@pytest.mark.parametrize("case", CASES)
def test_forward_alone(case: str, race: Any, copy: Any, device: str) -> None:
    x = _input(case, device)
    bytes_ = x.numel() * x.element_size()
    assert torch.equal(ops.guided_relu(x, "guided"), torch.relu(x))
    race(
        lambda: ops.guided_relu(x, "guided"),
        {"relu(x)": lambda: torch.relu(x)},
        work=2 * bytes_,
        ceiling=copy(2 * bytes_),
    )
