"""Crops of one shared map with each window's own changed patch laid over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _check, _layout
from ._operator import Operator
from .crop_patches import _crop_patches


class Overlaid(NamedTuple):
    """What `overlay_crop` makes of its arguments, with 0 around the base: (K, C, *size), for operators that look there.

    Attributes:
        base: (1, C, H, W).
        patch: (K, C, h, w).
        patch_yx: (K, 2) int64, first row and column of each patch within the base.
        crop_yx: (K, 2) int64, first row and column of each crop.
        size: (height, width) of every crop.
    """

    base: Tensor
    patch: Tensor
    patch_yx: Tensor
    crop_yx: Tensor
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Its shape once it is made."""
        return (self.patch.shape[0], self.patch.shape[1], *self.size)

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        return self.base.dtype


def overlay_crop(
    base: Tensor, patch: Tensor, patch_yx: Tensor, crop_yx: Tensor, size: tuple[int, int], *, pad: float = 0.0
) -> Tensor:
    """Crop the base at each place, with that place's patch laid over it: (1, C, H, W), (K, C, h, w) -> (K, C, *size).

    It makes the input of a layer whose map changed only inside a patch: what the kernel needs around the patch comes
    from the unchanged map. A patch reaches no further than the base: what lies outside of it is padding.

    Args:
        base: (1, C, H, W); float32, float64, float16 or bfloat16.
        patch: (K, C, h, w) of the same type.
        patch_yx: (K, 2) int64, first row and column of each patch within the base; on the CPU, otherwise it is
            fetched.
        crop_yx: (K, 2) int64, first row and column of each crop within the base, outside of it too; likewise.
        size: (height, width) of every crop.
        pad: value outside of the base.

    Raises:
        ValueError: shapes or types do not fit.

    A channels-last base gives channels-last crops.
    """
    return _forward(*checked("overlay_crop", Overlaid(base, patch, patch_yx, crop_yx, size)), float(pad))


def checked(operator: str, overlaid: Overlaid) -> tuple[Any, ...]:
    """Return the parts as operators take them.

    Raises:
        ValueError: shapes or types do not fit.
    """
    base, patch, patch_yx, crop_yx, size = overlaid
    _check.patches(operator, base, patch)
    patch_yx = _check.corners(operator, "patch_yx", patch_yx, len(patch))
    crop_yx = _check.corners(operator, "crop_yx", crop_yx, len(patch))
    _check.have_values(operator, base, patch_yx=patch_yx, crop_yx=crop_yx)
    _check.size(operator, size)
    return base, patch, patch_yx, crop_yx, list(size)


def taken(operator: str, x: Tensor | Overlaid) -> tuple[list[Tensor], list[int]]:
    """Return maps or crops as operators take them that look at crops where they lie: what they are made of, their size.

    Raises:
        ValueError: shapes or types do not fit.
    """
    if not isinstance(x, Overlaid):
        _check.floating(operator, "x", x, "KCHW")
        return [x], list(x.shape[2:])
    *parts, size = checked(operator, x)
    return parts, size


def added_to(operator: str, added: Tensor | Overlaid | None, shape: tuple[int, ...]) -> list[Tensor]:
    """Return what is added to a result of such a shape as operators take it: nothing, maps, or what crops are made of.

    Raises:
        ValueError: it is not float32 and of the result's shape.
    """
    if added is None:
        return []
    _check.added(operator, added, shape)
    return taken(operator, added)[0]


def made_of(parts: list[Tensor], size: Sequence[int]) -> Tensor:
    """Return maps, or the crops of this size that are made of such parts."""
    made: Tensor = parts[0] if len(parts) == 1 else _overlay_crop(*parts, list(size), 0.0)
    return made


@torch.library.custom_op("cnnviz::overlay_crop", mutates_args=())
def _overlay_crop(
    base: Tensor, patch: Tensor, patch_yx: Tensor, crop_yx: Tensor, size: list[int], pad: float
) -> Tensor:
    count = len(patch)
    zeros = crop_yx.new_zeros(count)
    under = _crop_patches(base, zeros, crop_yx, size, pad)
    # The crop's pixels in the patch's own coordinates: a crop out of the patch, and where that lies inside it.
    relative = crop_yx - patch_yx
    each = torch.arange(count, device="cpu")
    over = _crop_patches(patch, each, relative, size, 0.0)
    covered = _crop_patches(torch.ones_like(patch[:1, :1]), zeros, relative, size, 0.0).bool()
    on_base = _crop_patches(torch.ones_like(base[:, :1]), zeros, crop_yx, size, 0.0).bool()
    return torch.where(covered & on_base, over, under).contiguous(memory_format=_layout.memory_format(base))


@_overlay_crop.register_fake
def _(base: Tensor, patch: Tensor, patch_yx: Tensor, crop_yx: Tensor, size: list[int], pad: float) -> Tensor:
    return _layout.empty(base, (patch.shape[0], base.shape[1], *size))


_forward = Operator(_overlay_crop)
