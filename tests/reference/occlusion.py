"""Drop of a score under a sliding window, Zeiler & Fergus 2014, section 4.2."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def windows(size: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Return first pixel and the one after the last of each window along an axis."""
    made = []
    for number in range(math.ceil((size - window) / stride) + 1):
        start = number * stride
        made.append((start, min(start + window, size)))
    return made


Score = Callable[[Tensor, int], Tensor]
"""From one image (1, C, H, W) and its number to its score."""


def occlusion(
    score: Score, images: Tensor, window: tuple[int, int], stride: tuple[int, int], baseline: Tensor
) -> Tensor:
    """Return the mean drop over the windows that cover a pixel, 0 where none does: (N, C, H, W) -> (N, 1, H, W).

    `window` and `stride` are (height, width); `baseline` (C, H, W) is what stands in a covered pixel's place.
    """
    count, _, height, width = images.shape
    heat = torch.zeros(count, 1, height, width, dtype=images.dtype)
    for n in range(count):
        total = [[0.0] * width for _ in range(height)]
        covering = [[0] * width for _ in range(height)]
        original = float(score(images[n : n + 1].clone(), n))
        for top, bottom in windows(height, window[0], stride[0]):
            for left, right in windows(width, window[1], stride[1]):
                drop = original - float(score(covered(images[n], (top, bottom, left, right), baseline), n))
                for y in range(top, bottom):
                    for x in range(left, right):
                        total[y][x] += drop
                        covering[y][x] += 1
        for y in range(height):
            for x in range(width):
                heat[n, 0, y, x] = total[y][x] / covering[y][x] if covering[y][x] else 0.0
    return heat


def covered(image: Tensor, box: tuple[int, int, int, int], baseline: Tensor) -> Tensor:
    """Return the image (1, C, H, W) with the baseline in one window, pixel by pixel."""
    made, cover = image.numpy().copy(), baseline.numpy()
    top, bottom, left, right = box
    for c in range(len(made)):
        for y in range(top, bottom):
            for x in range(left, right):
                made[c, y, x] = cover[c, y, x]
    return torch.from_numpy(made)[None]
