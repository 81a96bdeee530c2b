"""Maxima of windows, without notes of where they lie."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from . import _check, _layout, _native
from ._operator import Operator

Pair: TypeAlias = tuple[int, int]


def max_pool(
    x: Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    *,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the maximum of each window: the bits of `torch.nn.functional.max_pool2d`, as those of its gradient.

    PyTorch notes where each maximum lies, which takes most of the time; here a backward pass looks again.

    Args:
        x: (N, C, H, W) with at least one pixel; float32 or float64.
        kernel: (height, width), as the next three.
        stride: between windows.
        padding: on each side, at most half of the kernel; never a maximum.
        dilation: between a window's elements.
        ceil_mode: whether there is a last window too that reaches past the end.

    Returns:
        (N, C, h, w), contiguous.

    Raises:
        ValueError: types, sizes or numbers do not fit.
    """
    _check.floating("max_pool", "x", x, "NCHW")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    fits = all(n and n + 2 * p >= r for n, p, r in zip(x.shape[2:], padding, reach, strict=True))
    axes = zip(x.shape[2:], kernel, padding, dilation, strict=True)
    pads = all(p == 0 or (0 < p <= k // 2 and n >= d) for n, k, p, d in axes)  # so that no window is padding alone
    numbers = *kernel, *stride, *dilation
    whole = x.dtype in (torch.float32, torch.float64) and min(numbers) > 0 and max(*numbers, *x.shape[2:]) < _check.FAR
    if not (whole and fits and pads):
        raise ValueError(
            f"max_pool: x is {_check.told(x)}, kernel {kernel}, stride {stride}, padding {padding} and dilation "
            f"{dilation}, expected float32 or float64 (N, C, H, W), pairs from 1 to 2**30, a padding of at most half "
            "of the kernel, and maps with room for a window, no shorter than the dilation where they are padded"
        )
    return _forward(x, list(kernel), list(stride), list(padding), list(dilation), ceil_mode)


def max_pool_is_native() -> bool:
    """Whether a kernel of our own runs `max_pool` on a CPU; it takes as long as PyTorch's otherwise."""
    return _native.runs_on_cpu("max_pool")


def _pooled(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    return functional.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode).contiguous()


_max_pool = torch.library.custom_op("cnnviz::max_pool", _pooled, mutates_args=())
_max_pool.register_fake(_pooled)


@torch.library.custom_op("cnnviz::max_pool_backward", mutates_args=())
def _max_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    window = kernel, stride, padding, dilation, ceil_mode
    made: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        grad.contiguous(), x.contiguous(), *window, _places(x, *window)
    )
    return made


@_max_pool_backward.register_fake
def _(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _layout.empty(x, tuple(x.shape), torch.contiguous_format)


def _places(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """Return where each maximum lies, counted flat within its plane, (N, C, h, w)."""
    plain = x.detach().contiguous()
    return functional.max_pool2d_with_indices(plain, kernel, stride, padding, dilation, ceil_mode)[1]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.window = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _once(grad, *ctx.saved_tensors, *ctx.window), *([None] * 5)


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, *ctx.window = inputs
    ctx.save_for_backward(x)


def _backward_twice(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Take what lies where the maxima do; small changes of the maps do not move these."""
    (x,) = ctx.saved_tensors
    places = _places(x, *ctx.window)
    passed = grad.flatten(2).gather(2, places.flatten(2)).view(places.shape)
    return passed, torch.zeros_like(x), *([None] * 5)


_forward = Operator(_max_pool, _setup, _backward)
_once = Operator(_max_pool_backward, _setup_twice, _backward_twice)
