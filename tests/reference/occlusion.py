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


def occlusion(
    score: Callable[[Tensor, int], Tensor],
    images: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    baseline: Tensor,
) -> Tensor:
    """Return the mean drop over the windows that cover a pixel, 0 where none does: (N, C, H, W) -> (N, 1, H, W).

    Args:
        score: from one image (1, C, H, W) and its number to its score.
        images: (N, C, H, W).
        window: height and width.
        stride: down and across.
        baseline: (C, H, W), what stands in a covered pixel's place.
    """
    count, channels, height, width = images.shape
    cover = baseline.numpy()
    heat = torch.zeros(count, 1, height, width, dtype=images.dtype)
    for n in range(count):
        original = float(score(images[n : n + 1].clone(), n))
        total = [[0.0] * width for _ in range(height)]
        covering = [[0] * width for _ in range(height)]
        for top, bottom in windows(height, window[0], stride[0]):
            for left, right in windows(width, window[1], stride[1]):
                covered = images[n].numpy().copy()
                for c in range(channels):
                    for y in range(top, bottom):
                        for x in range(left, right):
                            covered[c, y, x] = cover[c, y, x]
                drop = original - float(score(torch.from_numpy(covered)[None], n))
                for y in range(top, bottom):
                    for x in range(left, right):
                        total[y][x] += drop
                        covering[y][x] += 1
        for y in range(height):
            for x in range(width):
                if covering[y][x]:
                    heat[n, 0, y, x] = total[y][x] / covering[y][x]
    return heat
