"""Drop of a score under a sliding window, Zeiler & Fergus 2014, section 4.2."""

from __future__ import annotations

import itertools
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

Box = tuple[int, int, int, int]
"""Top, bottom, left and right; the bottom and the right exclusive."""

Cover = Callable[[Tensor, Box], Tensor]
"""From an image (C, H, W) and a box to a picture (C, H, W), of which what lies in the box is taken."""


def occlusion(
    score: Score, images: Tensor, window: tuple[int, int], stride: tuple[int, int], baseline: Tensor | Cover
) -> Tensor:
    """Return the mean drop over the windows that cover a pixel, 0 where none does: (N, C, H, W) -> (N, 1, H, W).

    `window` and `stride` are (height, width); `baseline` (C, H, W), or what it returns, stands in a covered pixel's
    place.
    """
    count, _, height, width = images.shape
    heat = torch.zeros(count, 1, height, width, dtype=images.dtype)
    for n in range(count):
        total = [[0.0] * width for _ in range(height)]
        covering = [[0] * width for _ in range(height)]
        original = float(score(images[n : n + 1].clone(), n))
        for top, bottom in windows(height, window[0], stride[0]):
            for left, right in windows(width, window[1], stride[1]):
                box = (top, bottom, left, right)
                cover = baseline if isinstance(baseline, Tensor) else baseline(images[n], box)
                drop = original - float(score(covered(images[n], box, cover), n))
                for y in range(top, bottom):
                    for x in range(left, right):
                        total[y][x] += drop
                        covering[y][x] += 1
        for y in range(height):
            for x in range(width):
                heat[n, 0, y, x] = total[y][x] / covering[y][x] if covering[y][x] else 0.0
    return heat


def covered(image: Tensor, box: Box, baseline: Tensor) -> Tensor:
    """Return the image (1, C, H, W) with the baseline in one window, pixel by pixel."""
    made, cover = image.numpy().copy(), baseline.numpy()
    top, bottom, left, right = box
    for c in range(len(made)):
        for y in range(top, bottom):
            for x in range(left, right):
                made[c, y, x] = cover[c, y, x]
    return torch.from_numpy(made)[None]


def coarse_to_fine(
    drops: Tensor, run: set[tuple[int, int]], steps: tuple[int, int], tolerance: float
) -> tuple[Tensor, set[tuple[int, int]]]:
    """Return (rows, columns) drops of which few are looked at, and which these are.

    Every few windows are run; where the corners of a cell differ by more than the tolerance, a share of the range of
    all that were run, those halfway are run too, and so on. What is not run is interpolated between corners.

    Args:
        drops: what running a window would give.
        run: windows that are run anyway.
        steps: from one of the first windows to the next, down and across.
        tolerance: share of the range.
    """
    rows, columns = lattice(drops.shape[0], steps[0]), lattice(drops.shape[1], steps[1])
    run = run | {(i, j) for i in rows for j in columns}
    made = {(i, j): float(drops[i, j]) for i in rows for j in columns}
    while max(steps) > 1:
        looked_at = [float(drops[place]) for place in run]
        enough = tolerance * (max(looked_at) - min(looked_at))
        steps = max(1, steps[0] // 2), max(1, steps[1] // 2)
        finer_rows, finer_columns = lattice(drops.shape[0], steps[0]), lattice(drops.shape[1], steps[1])
        wanted, guessed = set(), {}
        for top, bottom in cells(rows):
            for left, right in cells(columns):
                corners = [made[i, j] for i in (top, bottom) for j in (left, right)]
                for i in (i for i in finer_rows if top <= i <= bottom):
                    for j in (j for j in finer_columns if left <= j <= right):
                        down = (i - top) / max(1, bottom - top)
                        across = (j - left) / max(1, right - left)
                        weights = [a * b for a in (1 - down, down) for b in (1 - across, across)]
                        guessed[i, j] = sum(w * corner for w, corner in zip(weights, corners, strict=True))
                        if max(corners) - min(corners) > enough:
                            wanted.add((i, j))
        run = run | wanted
        made = {place: float(drops[place]) if place in run else value for place, value in guessed.items()}
        rows, columns = finer_rows, finer_columns
    filled = [[made[i, j] for j in range(drops.shape[1])] for i in range(drops.shape[0])]
    return torch.tensor(filled, dtype=drops.dtype), run


def lattice(count: int, step: int) -> list[int]:
    """Return every so many of so many numbers, and the last."""
    return sorted({*range(0, count, step), count - 1})


def cells(numbers: list[int]) -> list[tuple[int, int]]:
    """Return neighbours; of a single one itself twice."""
    return list(itertools.pairwise(numbers)) or [(numbers[0], numbers[0])]
