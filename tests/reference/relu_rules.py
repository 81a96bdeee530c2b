"""Guided backpropagation and the deconvnet in any network, by putting other rectifiers into torch.nn.functional.

Every rectifier of torchvision's networks, module or not, is a call of F.relu, F.relu6, F.hardtanh(x, 0, …) or of the
smooth F.hardswish, F.silu and F.gelu, looked up in torch.nn.functional at the time of the call. Not for threads: the
functions are replaced for the whole process.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


def ruled_gradient(network: nn.Module, x: Tensor, score: Callable[[Any], Tensor], rule: str) -> Tensor:
    """Return the signed map of "deconvnet" or "guided" for each image: (N, C, H, W), `score` maps output to (N,)."""
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    leaf = x.clone().requires_grad_()
    with ruled_rectifiers(rule) as calls:
        total = score(twin(leaf)).sum()
    assert calls, "this network calls no rectifier that the twin knows"
    (back,) = torch.autograd.grad(total, leaf)
    return back


@contextmanager
def ruled_rectifiers(rule: str) -> Iterator[list[float]]:
    """Replace the rectifiers; the list given collects the ceiling of each call (infinity, or 6 for ReLU6)."""
    calls: list[float] = []

    def relu(x: Tensor, inplace: bool = False) -> Tensor:
        calls.append(math.inf)
        return _Rectifier.apply(x, math.inf, rule)

    def relu6(x: Tensor, inplace: bool = False) -> Tensor:
        calls.append(6.0)
        return _Rectifier.apply(x, 6.0, rule)

    def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
        assert min_val == 0, "no rectifier"
        calls.append(max_val)
        return _Rectifier.apply(x, max_val, rule)

    def smooth(name: str) -> Callable[..., Tensor]:
        def called(x: Tensor, *_: Any, **__: Any) -> Tensor:
            calls.append(math.inf)
            return _Smooth.apply(x, name, rule)

        return called

    others = {name: smooth(name) for name in _SMOOTH}
    with mock.patch.multiple(torch.nn.functional, relu=relu, relu6=relu6, hardtanh=hardtanh, **others):
        yield calls


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def _normal(x: Tensor) -> Tensor:
    return (1 + torch.erf(x / math.sqrt(2))) / 2


_SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {  # value and slope
    "silu": (lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))),
    "gelu": (
        lambda x: x * _normal(x),
        lambda x: _normal(x) + x * (-x * x / 2).exp() / math.sqrt(2 * math.pi),
    ),
    "hardswish": (
        lambda x: x * ((x + 3) / 6).clamp(0, 1),
        lambda x: torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, x / 3 + 0.5)),
    ),
}


class _Smooth(torch.autograd.Function):
    """Any other rectifier, the guided backward pass of which multiplies by its own slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, rule: str) -> Tensor:
        ctx.save_for_backward(x.clone())
        ctx.name, ctx.rule = name, rule
        return _SMOOTH[name][0](x)

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        positive = torch.where(back > 0, back, torch.zeros_like(back))
        return positive if ctx.rule == "deconvnet" else positive * _SMOOTH[ctx.name][1](x), None, None


class _Rectifier(torch.autograd.Function):
    """min(max(x, 0), ceiling), with the backward pass of Springenberg 2015, figure 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float, rule: str) -> Tensor:
        ctx.save_for_backward(x.clone())
        ctx.ceiling, ctx.rule = ceiling, rule
        return torch.where(x > 0, torch.where(x < ceiling, x, torch.full_like(x, ceiling)), torch.zeros_like(x))

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        nothing = torch.zeros_like(back)
        positive = torch.where(back > 0, back, nothing)
        if ctx.rule == "deconvnet":
            return positive, None, None
        assert ctx.rule == "guided"
        return torch.where((x > 0) & (x < ctx.ceiling), positive, nothing), None, None
