"""A batch of images, each with a window covered."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check, _layout
from ._operator import Operator


def occlude(images: Tensor, windows: Tensor, baseline: Tensor, *, channels_last: bool = False) -> Tensor:
    """Return for each window a copy of its image with the baseline inside the window: (N, C, H, W) -> (K, C, H, W).

    Args:
        images: (N, C, H, W); float32, float64, float16 or bfloat16.
        windows: (K, 5) int64: image, top, bottom, left, right, the bottom and the right exclusive; on the CPU,
            otherwise they are fetched.
        baseline: (C, H, W), or any of these 1 to repeat it; of the images' dtype and device.
        channels_last: memory format of the result.

    Raises:
        ValueError: shapes or types do not fit, or a window leaves its image.
    """
    _check.floating("occlude", "images", images, "NCHW")
    _check.floating("occlude", "baseline", baseline, "CHW")
    windows = _check.windows("occlude", windows, images.shape)
    _check.have_values("occlude", images, windows=windows)
    fits = all(have in (1, want) for have, want in zip(baseline.shape, images.shape[1:], strict=True))
    if not fits or baseline.dtype != images.dtype or baseline.device != images.device:
        raise ValueError(
            f"occlude: baseline is {tuple(baseline.shape)} {baseline.dtype} on {baseline.device}, expected "
            f"{tuple(images.shape[1:])}, or 1 for any of them, {images.dtype} on {images.device}"
        )
    return _forward(images, windows, baseline, channels_last)


@torch.library.custom_op("cnnviz::occlude", mutates_args=())
def _occlude(images: Tensor, windows: Tensor, baseline: Tensor, channels_last: bool) -> Tensor:
    made = _empty(images, len(windows), channels_last)
    cover = baseline.expand(images.shape[1:])
    for place, (row, top, bottom, left, right) in enumerate(windows.tolist()):
        made[place].copy_(images[row])
        made[place, :, top:bottom, left:right] = cover[:, top:bottom, left:right]
    return made


def _empty(images: Tensor, count: int, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return _layout.empty(images, (count, *images.shape[1:]), layout)


@_occlude.register_fake
def _(images: Tensor, windows: Tensor, baseline: Tensor, channels_last: bool) -> Tensor:
    return _empty(images, windows.shape[0], channels_last)


_forward = Operator(_occlude)
