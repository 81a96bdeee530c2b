"""Crops of several maps with their patches laid over, side by side in their channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _check, _layout
from ._operator import Operator
from .overlay_crop import _overlay_crop


def overlay_cat(
    bases: Sequence[Tensor],
    patches: Sequence[Tensor],
    patch_yx: Tensor,
    crop_yx: Tensor,
    size: tuple[int, int],
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Tensor:
    """Concatenate what `overlay_crop` makes of each base and its patches, n of each: (K, sum of C, *size).

    It makes what follows a concatenation of maps that changed only inside of a patch each, without making each of them
    first; channels last, without a gradient.

    Args:
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

    Raises:
        ValueError: shapes or types do not fit.
    """
    if not bases or len(bases) != len(patches):
        raise ValueError(
            f"overlay_cat: got {len(bases)} bases and {len(patches)} patches, expected as many, at least 1"
        )
    for base, patch in zip(bases, patches, strict=True):
        _check.floating("overlay_cat", "base", base, "1CHW")
        _check.floating("overlay_cat", "patch", patch, "KCHW")
        fits = len(base) == 1 and base.shape[1] == patch.shape[1] and base.shape[2:] == bases[0].shape[2:]
        if not fits or len(patch) != len(crop_yx) or any(x.dtype != torch.float32 for x in (base, patch)):
            raise ValueError(
                f"overlay_cat: base is {tuple(base.shape)} {base.dtype} and patch {tuple(patch.shape)} {patch.dtype}, "
                f"expected float32, (1, C, {bases[0].shape[2]}, {bases[0].shape[3]}) as the first base is, and "
                f"({len(crop_yx)}, C, h, w) as there are crops"
            )
    crop_yx = _check.corners("overlay_cat", "crop_yx", crop_yx, len(crop_yx))
    patch_yx = _check.integers("overlay_cat", "patch_yx", patch_yx, (len(bases), len(crop_yx), 2))
    _check.corners("overlay_cat", "patch_yx", patch_yx.flatten(0, 1), len(bases) * len(crop_yx))
    _check.have_values("overlay_cat", bases[0], patch_yx=patch_yx, crop_yx=crop_yx)
    _check.size("overlay_cat", size)
    channels = sum(base.shape[1] for base in bases)
    if (scale is None) != (shift is None) or any(
        value is not None and (value.shape != (channels,) or value.dtype != torch.float32) for value in (scale, shift)
    ):
        raise ValueError(
            f"overlay_cat: scale is {_check.told(scale)} and shift {_check.told(shift)}, expected two float32 tensors "
            f"({channels},), or neither"
        )
    return _forward(list(bases), list(patches), patch_yx, crop_yx, list(size), scale, shift, float(low), float(high))


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
    channels = sum(base.shape[1] for base in bases)
    return _layout.empty(bases[0], (crop_yx.shape[0], channels, *size), torch.channels_last)


_forward = Operator(_overlay_cat)
