"""Patches cut out of a batch of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _layout
from ._operator import Operator


def crop_patches(images: Tensor, index: Tensor, yx: Tensor, size: tuple[int, int], *, pad: float = 0.0) -> Tensor:
    """Cut a patch of one size at each place: (N, C, H, W) -> (K, C, h, w).

    Args:
        images: (N, C, H, W); float32, float64, float16 or bfloat16.
        index: (K,) int64, the image of each patch; on the CPU, otherwise it is fetched.
        yx: (K, 2) int64, first row and column of each patch, outside of the image too; on the CPU likewise.
        size: (h, w) of every patch.
        pad: value outside of the image.

    Raises:
        ValueError: shapes or types do not fit, or an index is out of range.

    Channels-last images give channels-last patches. Differentiable with respect to `images`.
    """
    _check.floating("crop_patches", "images", images, "NCHW")
    index = _check.places("crop_patches", "index", index, len(images))
    yx = _check.corners("crop_patches", "yx", yx, len(index))
    _check.have_values("crop_patches", images, index=index, yx=yx)
    _check.size("crop_patches", size)
    return _forward(images, index, yx, list(size), float(pad))


@torch.library.custom_op("cnnviz::crop_patches", mutates_args=())
def _crop_patches(images: Tensor, index: Tensor, yx: Tensor, size: list[int], pad: float) -> Tensor:
    layout = _layout.memory_format(images)
    if not images.numel():
        return _empty(images, index, size).fill_(pad)
    index, yx = index.to(images.device), yx.to(images.device)
    rows, columns, inside = _places(images.shape, yx, size)
    picked = images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return torch.where(inside[:, None], picked, pad).to(images.dtype).contiguous(memory_format=layout)


def _places(shape: torch.Size, yx: Tensor, size: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows (K, h) and columns (K, w) clamped into the image, and which pixels (K, h, w) lie inside it."""
    rows = yx[:, :1] + torch.arange(size[0], device=yx.device)
    columns = yx[:, 1:] + torch.arange(size[1], device=yx.device)
    height, width = shape[2:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return rows.clamp(0, max(height - 1, 0)), columns.clamp(0, max(width - 1, 0)), inside


@_crop_patches.register_fake
def _(images: Tensor, index: Tensor, yx: Tensor, size: list[int], pad: float) -> Tensor:
    return _empty(images, index, size)


def _empty(images: Tensor, index: Tensor, size: list[int]) -> Tensor:
    return _layout.empty(images, (index.shape[0], images.shape[1], *size))


@torch.library.custom_op("cnnviz::crop_patches_backward", mutates_args=())
def _crop_patches_backward(grad: Tensor, index: Tensor, yx: Tensor, shape: list[int]) -> Tensor:
    index, yx = index.to(grad.device), yx.to(grad.device)
    rows, columns, inside = _places(torch.Size(shape), yx, list(grad.shape[2:]))
    total = _layout.empty(grad, tuple(shape)).zero_()
    if total.numel() and grad.numel():
        places = (index[:, None, None], rows[:, :, None], columns[:, None, :])
        kept = torch.where(inside[:, None], grad, 0).movedim(1, -1)
        # Rows of a channels-last view, so that one index names all channels of a pixel.
        total.movedim(1, -1).index_put_(tuple(p.expand(inside.shape) for p in places), kept, accumulate=True)
    return total


@_crop_patches_backward.register_fake
def _(grad: Tensor, index: Tensor, yx: Tensor, shape: list[int]) -> Tensor:
    return _layout.empty(grad, tuple(shape))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, index, yx, _, _ = inputs
    ctx.save_for_backward(index, yx)
    ctx.shape = list(images.shape)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    index, yx = ctx.saved_tensors
    return _once(grad, index, yx, ctx.shape), None, None, None, None


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, index, yx, _ = inputs
    ctx.save_for_backward(index, yx)
    ctx.size = list(grad.shape[2:])


def _backward_twice(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    index, yx = ctx.saved_tensors
    return _forward(grad, index, yx, ctx.size, 0.0), None, None, None


_forward = Operator(_crop_patches, _setup, _backward)
_once = Operator(_crop_patches_backward, _setup_twice, _backward_twice)
