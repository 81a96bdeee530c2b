"""Gram matrices of feature maps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import _check
from ._operator import Operator


def gram_matrix(x: Tensor, *, normalise: bool = True) -> Tensor:
    """Return the inner products of all pairs of channels: (N, C, H, W) -> (N, C, C), symmetric.

    Args:
        x: feature maps; float32, float64, float16 or bfloat16.
        normalise: divide by C · H · W (Johnson 2016, equation 4); otherwise the plain sums (Gatys 2015, equation 1).

    Raises:
        ValueError: `x` is no floating (N, C, H, W) tensor.

    Differentiable twice.
    """
    _check.floating("gram_matrix", "x", x, "NCHW")
    return _forward(x, normalise)


@torch.library.custom_op("cnnviz::gram_matrix", mutates_args=())
def _gram_matrix(x: Tensor, normalise: bool) -> Tensor:
    flat = x.flatten(2)
    # Scaled within the product: unscaled sums are out of float16's range for maps of ordinary size.
    with _own_precision(x):
        whole = torch.baddbmm(x.new_zeros(1), flat, flat.mT, beta=0, alpha=1 / _divisor(x, normalise))
    upper = whole.triu()
    return upper + upper.triu(1).mT  # a product's two halves may differ in their last bit


def _own_precision(x: Tensor) -> AbstractContextManager[None]:
    """Keep autocast from what has a precision already: the input's."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _divisor(x: Tensor, normalise: bool) -> int:
    return max(x.shape[1] * x.shape[2] * x.shape[3], 1) if normalise else 1


@_gram_matrix.register_fake
def _(x: Tensor, normalise: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], x.shape[1])


def _setup(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
    x, normalise = inputs
    ctx.save_for_backward(x)
    ctx.normalise = normalise


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    both = (grad + grad.mT) / _divisor(x, ctx.normalise)
    with _own_precision(x):
        if x.is_contiguous():
            return _product(both, x.flatten(2)).reshape(x.shape), None
        rows = x.permute(0, 2, 3, 1)  # as they lie in memory where channels come last
        return _product(rows.flatten(1, 2), both).reshape(rows.shape).permute(0, 3, 1, 2), None


def _product(a: Tensor, b: Tensor) -> Tensor:
    # Of single matrices a plain product is faster than one of batches.
    return (a[0] @ b[0])[None] if len(a) == 1 else a @ b


_forward = Operator(_gram_matrix, _setup, _backward)
