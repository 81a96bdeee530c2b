"""Convolution of many small maps, with weights that are packed once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import _layout, _native
from ._operator import Operator
from .overlay_crop import Overlaid, added_to, made_of, overlay_crop, taken

PANEL = 64  # channels that are packed side by side, as csrc/cpu/conv_kernel.h has them


def packed_kernel(weight: Tensor, groups: int = 1) -> Tensor:
    """Return the weight of a convolution, (M, C, kh, kw), as `conv_crops` takes it.

    Args:
        weight: float32.
        groups: 1, or as many as channels, with a kernel for each: weight is (C, 1, kh, kw) then.

    Returns:
        (ceil(M / 64), kh, kw, C, 64), with zeros for the channels that M lacks; for a kernel for each channel
        (kh, kw, C).

    Raises:
        ValueError: another shape or type, or groups of several channels.
    """
    each = groups > 1
    if weight.dim() != 4 or weight.dtype != torch.float32 or (each and (len(weight), weight.shape[1]) != (groups, 1)):
        raise ValueError(
            f"packed_kernel: weight is {tuple(weight.shape)} {weight.dtype} with groups={groups}, expected "
            "(M, C, kh, kw) in float32 with groups=1, or (C, 1, kh, kw) with groups=C"
        )
    if each:
        return weight[:, 0].permute(1, 2, 0).contiguous()
    made = len(weight)
    padded = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, -made % PANEL))
    return padded.reshape(-1, PANEL, *weight.shape[1:]).permute(0, 3, 4, 2, 1).contiguous()


def conv_crops(
    x: Tensor | Overlaid,
    kernel: Tensor,
    bias: Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    low: float = -math.inf,
    high: float = math.inf,
    added: Tensor | Overlaid | None = None,
) -> Tensor:
    """Convolve many small maps without padding: (K, C, h, w) -> (K, M, *size), channels last; without a gradient.

    A pixel of the result is summed up in an order that depends on the kernel alone: it has the same bits in whatever
    map and batch it lies.

    Args:
        x: float32; channels last, otherwise it is copied; or crops with patches laid over, which are made one at a time
            where each channel has a kernel of its own.
        kernel: of `packed_kernel`.
        bias: (M,).
        stride: (height, width).
        dilation: (height, width).
        low: what is below is set to it; 0 for a ReLU.
        high: what is above is set to it.
        added: of the result's shape, is added to it before limits are set; crops are not made first. With one kernel
            for all channels alone.

    Raises:
        ValueError: shapes or types do not fit.
    """
    if min(*stride, *dilation) < 1:
        raise ValueError(
            f"conv_crops: stride is {stride} and dilation {dilation}, expected (height, width) of at least 1 each"
        )
    each = kernel.dim() == 3
    if isinstance(x, Overlaid) and not each:
        x = overlay_crop(*x)
    parts, size = taken("conv_crops", x)
    sides = kernel.shape[:2] if each else kernel.shape[1:3]
    room = [n - d * (k - 1) for n, k, d in zip(size, sides, dilation, strict=True)]
    made = kernel.shape[2] if each else kernel.shape[0] * PANEL
    fits = kernel.dim() in (3, 5) and kernel.shape[2 if each else 3] == x.shape[1] and bias.dim() == 1
    if not (fits and made - (PANEL if not each else 1) < len(bias) <= made and min(room) > 0) or any(
        value.dtype != torch.float32 for value in (x, kernel, bias)
    ):
        raise ValueError(
            f"conv_crops: x is {tuple(x.shape)} {x.dtype}, kernel {tuple(kernel.shape)} and bias "
            f"{tuple(bias.shape)}, expected float32 maps (K, C, h, w), at least as large as the kernel reaches, what "
            "`packed_kernel` makes of (M, C, kh, kw), and (M,)"
        )
    result = (x.shape[0], len(bias), *((n - 1) // s + 1 for n, s in zip(room, stride, strict=True)))
    more = added_to("conv_crops", added, result)
    if more and each:
        raise ValueError("conv_crops: got added and a kernel for each channel, expected one kernel for all channels")
    return _forward(parts, size, kernel, bias, list(stride), list(dilation), float(low), float(high), more)


def conv_crops_is_native() -> bool:
    """Whether a kernel of our own runs `conv_crops` on this processor; it is slow otherwise."""
    return _native.runs_on_cpu("conv_crops")


@torch.library.custom_op("cnnviz::conv_crops", mutates_args=())
def _conv_crops(
    parts: list[Tensor],
    size: list[int],
    kernel: Tensor,
    bias: Tensor,
    stride: list[int],
    dilation: list[int],
    low: float,
    high: float,
    added: list[Tensor],
) -> Tensor:
    if kernel.dim() == 3:
        weight, groups = kernel.permute(2, 0, 1)[:, None], kernel.shape[2]
    else:
        weight, groups = kernel.permute(0, 4, 3, 1, 2).flatten(0, 1)[: len(bias)], 1
    made = functional.conv2d(made_of(parts, size), weight.contiguous(), bias, stride, 0, dilation, groups)
    made = made + made_of(added, made.shape[2:]) if added else made
    return made.clamp(low, high).contiguous(memory_format=torch.channels_last)


@_conv_crops.register_fake
def _(
    parts: list[Tensor], size: list[int], kernel: Tensor, bias: Tensor, stride: list[int], dilation: list[int], *_: Any
) -> Tensor:
    sides = kernel.shape[:2] if kernel.dim() == 3 else kernel.shape[1:3]
    axes = zip(size, sides, stride, dilation, strict=True)
    made = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in axes]
    return _layout.empty(parts[0], (len(parts[-1]), len(bias), *made), torch.channels_last)


_forward = Operator(_conv_crops)
