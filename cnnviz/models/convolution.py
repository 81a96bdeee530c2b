"""Convolutions by kernels of our own, which take their weights packed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from ..ops import Overlaid, conv_crops, conv_crops_is_native, packed_kernel, winograd_crops, winograd_kernel
from ..ops.conv_crops import PANEL

Pack: TypeAlias = Callable[[Tensor, int], Tensor]
"""From a weight and its groups to what a kernel takes."""

TILE: Final = 21  # products in the time that it takes for a tile of four pixels, in place of 36
_MANY: Final = 32  # channels from which on Winograd's algorithm pays


def is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it pads, calls `conv2d` with what it was made of, and does nothing else."""
    kind = type(convolution)
    own = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    if not own:
        return False
    settings = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation
    return all(isinstance(one, tuple) for one in settings)


def has_kernel(shape: Sequence[int], groups: int) -> bool:
    """Whether kernels of our own run a convolution in single precision on this processor, of a weight of this shape."""
    return (groups == 1 or (groups == shape[0] and shape[1] == 1)) and conv_crops_is_native()


def by_tiles(shape: Sequence[int], stride: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> bool:
    """Whether Winograd's algorithm makes it with fewer products."""
    plain = (stride, dilation, groups) == ((1, 1), (1, 1), 1)
    return plain and tuple(shape[2:]) == (3, 3) and min(shape[:2]) >= _MANY


def packed_size(shape: Sequence[int], stride: tuple[int, ...], dilation: tuple[int, ...]) -> int:
    """Return how many bytes a weight of this shape takes at most, as kernels take it, where there are no groups."""
    pixels = 16 if by_tiles(shape, stride, dilation, 1) else math.prod(shape[2:])
    return 4 * -(-shape[0] // PANEL) * PANEL * shape[1] * pixels


def _padded(x: Tensor, padding: tuple[int, int]) -> Overlaid:
    """Return maps, (K, C, H, W), with zeros around, which are not made where a kernel looks there itself."""
    (count, _, *sides), device = x.shape, torch.device("cpu")
    corner = -torch.tensor(padding, device=device).expand(count, 2).contiguous()
    size = (sides[0] + 2 * padding[0], sides[1] + 2 * padding[1])
    return Overlaid(x[:1], x, torch.zeros(count, 2, dtype=torch.int64, device=device), corner, size)


def convolved(
    x: Tensor | Overlaid,
    shape: Sequence[int],
    kernel: Callable[[Pack], tuple[Tensor, Tensor]],
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    low: float = -math.inf,
    high: float = math.inf,
    added: Tensor | Overlaid | None = None,
) -> Tensor:
    """Convolve by the kernel that takes least: (K, C, h, w) -> (K, M, *size), channels last.

    Args:
        x: as `cnnviz.ops.conv_crops` takes it.
        shape: the weight's.
        kernel: returns the weight, packed so, and the bias.
        stride: (height, width).
        padding: likewise, of maps; crops have theirs.
        dilation: likewise.
        groups: one that `has_kernel`.
        low: what is below is set to it.
        high: what is above is set to it.
        added: is added before.
    """
    if any(padding):
        assert isinstance(x, Tensor)
        x = _padded(x, padding)
    rows, columns = x.shape[2] - 2, x.shape[3] - 2
    tiles = -(-rows // 2) * -(-columns // 2)  # at a side of odd length a half of the last one is nobody's
    if by_tiles(shape, stride, dilation, groups) and tiles * TILE < 9 * rows * columns:
        return winograd_crops(x, *kernel(_of_tiles), low=low, high=high, added=added)
    packed, bias = kernel(packed_kernel)
    return conv_crops(x, packed, bias, stride=stride, dilation=dilation, low=low, high=high, added=added)


def _of_tiles(weight: Tensor, groups: int) -> Tensor:  # noqa: ARG001  # one
    return winograd_kernel(weight)
