"""Crops of several maps with their patches laid over, side by side in their channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _check, _layout
from ._operator import Operator
from .conv_crops import _conv_crops
from .overlay_crop import Overlaid, _overlay_crop, added_to


class Joined(NamedTuple):
    """Crops of several maps with their patches laid over, side by side in their channels: (K, sum of C, *size).

    Attributes:
        bases: (1, C, H, W) float32, C of each its own.
        patches: (K, C, h, w) float32, h and w of each their own.
        patch_yx: (n, K, 2) int64, first row and column of each patch within the base; on the CPU, otherwise it is
            fetched.
        crop_yx: (K, 2) int64, first row and column of each crop; likewise. Outside of the base there is 0.
        size: (height, width) of every crop.
        scale: (sum of C,) float32, by which channels are multiplied; with `shift`, or neither.
        shift: (sum of C,) float32, which is then added to them.
        low: what is below after that is set to it; 0 for a ReLU.
        high: what is above is set to it.
    """

    bases: Sequence[Tensor]
    patches: Sequence[Tensor]
    patch_yx: Tensor
    crop_yx: Tensor
    size: tuple[int, int]
    scale: Tensor | None = None
    shift: Tensor | None = None
    low: float = -math.inf
    high: float = math.inf


def overlay_cat(joined: Joined) -> Tensor:
    """Concatenate what `overlay_crop` makes of each base and its patches, without making each of them first.

    Channels lie last; without a gradient.

    Raises:
        ValueError: shapes or types do not fit.
    """
    return _forward(*_checked("overlay_cat", joined))


def conv_cat(
    joined: Joined,
    kernel: Tensor,
    bias: Tensor,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    added: Tensor | Overlaid | None = None,
) -> Tensor:
    """Convolve with a kernel of one pixel what `overlay_cat` makes, without making that: (K, M, *size).

    Channels lie last; without a gradient. Products are summed up in the order of `conv_crops`.

    Args:
        joined: what is convolved.
        kernel: what `packed_kernel` makes of (M, sum of C, 1, 1).
        bias: (M,) float32.
        low: what is below is set to it; 0 for a ReLU.
        high: what is above is set to it.
        added: of the result's shape, is added to it before limits are set; crops are not made first.

    Raises:
        ValueError: shapes or types do not fit.
    """
    checked = _checked("conv_cat", joined)
    channels = sum(base.shape[1] for base in joined.bases)
    fits = kernel.dim() == 5 and kernel.shape[1:4] == (1, 1, channels) and bias.dim() == 1
    made = kernel.shape[0] * kernel.shape[-1]
    if not (fits and made - kernel.shape[-1] < bias.shape[0] <= made and kernel.dtype == bias.dtype == torch.float32):
        raise ValueError(
            f"conv_cat: kernel is {_check.told(kernel)} and bias {_check.told(bias)}, expected float32, what "
            f"`packed_kernel` makes of (M, {channels}, 1, 1), and (M,)"
        )
    more = added_to("conv_cat", added, (joined.crop_yx.shape[0], bias.shape[0], *joined.size))
    return _convolved(*checked, kernel, bias, float(low), float(high), more)


def _checked(operator: str, joined: Joined) -> tuple[Any, ...]:
    """Return the parts as the operators take them."""
    bases, patches, patch_yx, crop_yx, size, scale, shift, low, high = joined
    if not bases or len(bases) != len(patches):
        raise ValueError(f"{operator}: got {len(bases)} bases and {len(patches)} patches, expected as many, at least 1")
    count, sides = crop_yx.shape[0], tuple(bases[0].shape[2:])
    for base, patch in zip(bases, patches, strict=True):
        _check.floating(operator, "base", base, "1CHW")
        _check.floating(operator, "patch", patch, "KCHW")
        channels = base.shape[1]
        fits = base.shape == (1, channels, *sides) and patch.shape[:2] == (count, channels)
        if not fits or not base.dtype == patch.dtype == torch.float32:
            raise ValueError(
                f"{operator}: base is {_check.told(base)} and patch {_check.told(patch)}, expected float32, "
                f"(1, C, {sides[0]}, {sides[1]}) as the first base is, and ({count}, C, h, w) as there are crops"
            )
    crop_yx = _check.corners(operator, "crop_yx", crop_yx, count)
    patch_yx = _check.integers(operator, "patch_yx", patch_yx, (len(bases), count, 2))
    _check.corners(operator, "patch_yx", patch_yx.flatten(0, 1), len(bases) * count)
    _check.have_values(operator, bases[0], patch_yx=patch_yx, crop_yx=crop_yx)
    _check.size(operator, size)
    channels = sum(base.shape[1] for base in bases)
    if (scale is None) != (shift is None) or any(
        value is not None and (value.shape != (channels,) or value.dtype != torch.float32) for value in (scale, shift)
    ):
        raise ValueError(
            f"{operator}: scale is {_check.told(scale)} and shift {_check.told(shift)}, expected two float32 tensors "
            f"({channels},), or neither"
        )
    return list(bases), list(patches), patch_yx, crop_yx, list(size), scale, shift, float(low), float(high)


@torch.library.custom_op("cnnviz::overlay_cat", mutates_args=())
def _overlay_cat(
    bases: list[Tensor],
    patches: list[Tensor],
    patch_yx: Tensor,
    crop_yx: Tensor,
    size: list[int],
    scale: Tensor | None,
    shift: Tensor | None,
    low: float,
    high: float,
) -> Tensor:
    parts = zip(bases, patches, patch_yx, strict=True)
    made = torch.cat([_overlay_crop(base, patch, places, crop_yx, size, 0.0) for base, patch, places in parts], 1)
    if scale is not None and shift is not None:
        made = made * scale[:, None, None] + shift[:, None, None]
    return made.clamp(low, high).contiguous(memory_format=torch.channels_last)


@_overlay_cat.register_fake
def _(
    bases: list[Tensor], patches: list[Tensor], patch_yx: Tensor, crop_yx: Tensor, size: list[int], *_: Any
) -> Tensor:
    channels = sum(base.shape[1] for base in bases)
    return _layout.empty(bases[0], (crop_yx.shape[0], channels, *size), torch.channels_last)


_forward = Operator(_overlay_cat)


@torch.library.custom_op("cnnviz::conv_cat", mutates_args=())
def _conv_cat(
    bases: list[Tensor],
    patches: list[Tensor],
    patch_yx: Tensor,
    crop_yx: Tensor,
    size: list[int],
    scale: Tensor | None,
    shift: Tensor | None,
    low: float,
    high: float,
    kernel: Tensor,
    bias: Tensor,
    made_low: float,
    made_high: float,
    added: list[Tensor],
) -> Tensor:
    x = _overlay_cat(bases, patches, patch_yx, crop_yx, size, scale, shift, low, high)
    made: Tensor = _conv_crops([x], size, kernel, bias, [1, 1], [1, 1], made_low, made_high, added)
    return made


@_conv_cat.register_fake
def _(
    bases: list[Tensor], patches: list[Tensor], patch_yx: Tensor, crop_yx: Tensor, size: list[int], *given: Any
) -> Tensor:
    *_, bias, _low, _high, _added = given
    return _layout.empty(bases[0], (crop_yx.shape[0], bias.shape[0], *size), torch.channels_last)


_convolved = Operator(_conv_cat)
