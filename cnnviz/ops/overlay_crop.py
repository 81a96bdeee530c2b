"""Crops of one shared map with each window's own changed patch laid over."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check, _layout
from ._operator import Operator
from .crop_patches import _crop_patches


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
    _check.floating("overlay_crop", "base", base, "1CHW")
    _check.floating("overlay_crop", "patch", patch, "KCHW")
    patch_yx = _check.corners("overlay_crop", "patch_yx", patch_yx, len(patch))
    crop_yx = _check.corners("overlay_crop", "crop_yx", crop_yx, len(patch))
    _check.have_values("overlay_crop", base, patch_yx=patch_yx, crop_yx=crop_yx)
    _check.size("overlay_crop", size)
    if len(base) != 1 or patch.shape[1] != base.shape[1] or patch.dtype != base.dtype or patch.device != base.device:
        raise ValueError(
            f"overlay_crop: base is {tuple(base.shape)} {base.dtype} on {base.device} and patch {tuple(patch.shape)} "
            f"{patch.dtype} on {patch.device}, expected (1, C, H, W) and (K, C, h, w) of one type on one device"
        )
    return _forward(base, patch, patch_yx, crop_yx, list(size), float(pad))


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
