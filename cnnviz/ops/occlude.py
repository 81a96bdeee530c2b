"""A batch of images, each with a window covered."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check


def occlude(images: Tensor, windows: Tensor, baseline: Tensor, *, channels_last: bool = False) -> Tensor:
    """Return for each window a copy of its image with the baseline inside the window: (N, C, H, W) -> (K, C, H, W).

    Args:
        images: (N, C, H, W); float32, float64, float16 or bfloat16.
        windows: (K, 5) int64 on the CPU: image, top, bottom, left, right; bottom and right are exclusive.
        baseline: (C, H, W), or any of these 1 to repeat it; of the images' dtype and device.
        channels_last: memory format of the result.

    Raises:
        ValueError: shapes or types do not fit, or a window leaves its image.
    """
    _check.floating("occlude", "images", images, "NCHW")
    _check.floating("occlude", "baseline", baseline, "CHW")
    _check.integers("occlude", "windows", windows, (None, 5))
    count, channels, height, width = images.shape
    fits = all(have in (1, want) for have, want in zip(baseline.shape, images.shape[1:], strict=True))
    if not fits or baseline.dtype != images.dtype or baseline.device != images.device:
        raise ValueError(
            f"occlude: baseline is {tuple(baseline.shape)} {baseline.dtype} on {baseline.device}, expected "
            f"({channels}, {height}, {width}), or 1 for any of them, {images.dtype} on {images.device}"
        )
    if windows.is_cuda:
        raise ValueError("occlude: windows are on a GPU, expected the CPU; use windows.cpu()")
    if len(windows):
        row, top, bottom, left, right = windows.unbind(1)
        _check.within("occlude", "windows[:, 0]", row, count)
        inside = (top >= 0) & (top <= bottom) & (bottom <= height) & (left >= 0) & (left <= right) & (right <= width)
        if not bool(inside.all()):
            wrong = int((~inside).nonzero()[0])
            box = windows[wrong].tolist()
            raise ValueError(f"occlude: window {wrong} is {box}, expected one inside the {height} x {width} image")
    made: Tensor = _occlude(images, windows, baseline, channels_last)
    return made


@torch.library.custom_op("cnnviz::occlude", mutates_args=())
def _occlude(images: Tensor, windows: Tensor, baseline: Tensor, channels_last: bool) -> Tensor:
    made = _empty(images, len(windows), channels_last)
    cover = baseline.expand(images.shape[1:])
    for place, (row, top, bottom, left, right) in enumerate(windows.tolist()):
        made[place].copy_(images[row])
        made[place, :, top:bottom, left:right] = cover[:, top:bottom, left:right]
    return made


def _empty(images: Tensor, count: int, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        (count, *images.shape[1:]), dtype=images.dtype, device=images.device, memory_format=memory_format
    )


@_occlude.register_fake
def _(images: Tensor, windows: Tensor, baseline: Tensor, channels_last: bool) -> Tensor:
    return _empty(images, windows.shape[0], channels_last)
