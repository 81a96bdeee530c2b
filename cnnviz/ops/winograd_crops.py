"""Convolution of many small maps with kernels of 3 x 3 pixels, by Winograd's algorithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import _layout
from ._operator import Operator
from .conv_crops import packed_kernel
from .overlay_crop import Overlaid, added_to, made_of, taken

# Lavin & Gray 2016, F(2 x 2, 3 x 3): of the input, of the kernel, of the result.
_INPUT = ((1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, -1.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0))
_KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_RESULT = ((1.0, 1.0, 1.0, 0.0), (0.0, 1.0, -1.0, -1.0))


def winograd_kernel(weight: Tensor) -> Tensor:
    """Return the weight of a convolution, (M, C, 3, 3) float32, as `winograd_crops` takes it.

    Returns:
        (ceil(M / 64), 16, C, 64), with zeros for the channels that M lacks.

    Raises:
        ValueError: another shape or type.
    """
    if weight.dtype != torch.float32 or weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(
            f"winograd_kernel: weight is {tuple(weight.shape)} {weight.dtype}, expected (M, C, 3, 3) in float32"
        )
    return _packed(weight)


@torch.library.custom_op("cnnviz::winograd_kernel", mutates_args=())
def _winograd_kernel(weight: Tensor) -> Tensor:
    into = torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device)
    points = into @ weight.double() @ into.T
    return packed_kernel(points.to(weight.dtype)).flatten(1, 2)


@_winograd_kernel.register_fake
def _(weight: Tensor) -> Tensor:
    return weight.new_empty(-(-len(weight) // 64), 16, weight.shape[1], 64)


_packed = Operator(_winograd_kernel)


def winograd_crops(
    x: Tensor | Overlaid,
    kernel: Tensor,
    bias: Tensor,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    added: Tensor | Overlaid | None = None,
) -> Tensor:
    """Convolve many small maps with 3 x 3 kernels: (K, C, h, w) -> (K, M, h - 2, w - 2), channels last; no gradient.

    Tiles of 2 x 2 results take 16 products of each channel in place of 36. A layer rounds up to half as much further.

    Args:
        x: float32; channels last, otherwise it is copied; or crops with patches laid over, which are not made first.
        kernel: of `winograd_kernel`.
        bias: (M,).
        low: what is below is set to it; 0 for a ReLU.
        high: what is above is set to it.
        added: of the result's shape, is added to it before limits are set; crops are not made first.

    Raises:
        ValueError: shapes or types do not fit.
    """
    parts, size = taken("winograd_crops", x)
    fits = kernel.dim() == 4 and kernel.shape[1:3] == (16, x.shape[1]) and bias.dim() == 1 and min(size) > 2
    made = kernel.shape[0] * kernel.shape[-1]
    if not (fits and made - kernel.shape[-1] < len(bias) <= made) or any(
        value.dtype != torch.float32 for value in (x, kernel, bias)
    ):
        raise ValueError(
            f"winograd_crops: x is {tuple(x.shape)} {x.dtype}, kernel {tuple(kernel.shape)} and bias "
            f"{tuple(bias.shape)}, expected float32 maps (K, C, h, w) of at least 3 x 3, what `winograd_kernel` makes "
            "of (M, C, 3, 3), and (M,)"
        )
    more = added_to("winograd_crops", added, (x.shape[0], len(bias), size[0] - 2, size[1] - 2))
    return _forward(parts, size, kernel, bias, float(low), float(high), more)


@torch.library.custom_op("cnnviz::winograd_crops", mutates_args=())
def _winograd_crops(
    parts: list[Tensor],
    size: list[int],
    kernel: Tensor,
    bias: Tensor,
    low: float,
    high: float,
    added: list[Tensor],
) -> Tensor:
    rows, columns = size[0] - 2, size[1] - 2
    x = functional.pad(made_of(parts, size), (0, columns % 2, 0, rows % 2))
    tiles = x.unfold(2, 4, 2).unfold(3, 4, 2)  # (K, C, th, tw, 4, 4)
    points = _both_ways(tiles, _INPUT).permute(4, 5, 0, 2, 3, 1).flatten(0, 1)  # (16, K, th, tw, C)
    weights = kernel.permute(1, 2, 0, 3).flatten(2)[:, None, None, :, : len(bias)]  # (16, 1, 1, C, M)
    sums = torch.unflatten(points @ weights, 0, (4, 4)).permute(2, 5, 3, 4, 0, 1)  # (K, M, th, tw, 4, 4)
    made = _both_ways(sums, _RESULT).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)[:, :, :rows, :columns]
    made = made + bias[:, None, None]
    made = made + made_of(added, made.shape[2:]) if added else made
    return made.clamp(low, high).contiguous(memory_format=torch.channels_last)


def _both_ways(tiles: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """Return matrix @ tile @ matrix.T of tiles (..., 4, 4); a zero of it takes nothing, not even what is no number."""
    for _ in range(2):
        rows = [torch.stack([c * tiles[..., k, :] for k, c in enumerate(row) if c]).sum(0) for row in matrix]
        tiles = torch.stack(rows, -1)  # the other way round
    return tiles


@_winograd_crops.register_fake
def _(parts: list[Tensor], size: list[int], kernel: Tensor, bias: Tensor, *_: Any) -> Tensor:
    shape = (len(parts[-1]), len(bias), size[0] - 2, size[1] - 2)
    return _layout.empty(parts[0], shape, torch.channels_last)


_forward = Operator(_winograd_crops)
