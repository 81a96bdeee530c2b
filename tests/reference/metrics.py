"""Slow, obvious twins of the metrics: pixel by pixel, in plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Score = Callable[[Tensor], float]
"""From an image (C, H, W) to the score of its target."""


def area_of_curve(
    score: Score, image: Tensor, heat: Tensor, empty: Tensor, steps: int, *, inserting: bool
) -> tuple[float, list[float]]:
    """Return the area under the curve of Petsiuk 2018, section 4.1, and the curve: (C, H, W), (H, W), (C, H, W)."""
    height, width = heat.shape
    pixels = sorted(
        ((y, x) for y in range(height) for x in range(width)), key=lambda at: (-float(heat[at]), at[0] * width + at[1])
    )
    shown = (empty if inserting else image).clone()
    source = image if inserting else empty
    curve, shares, moved = [score(shown)], [0.0], 0
    for step in range(1, steps + 1):
        until = round(len(pixels) * step / steps)
        for y, x in pixels[moved:until]:
            shown[:, y, x] = source[:, y, x]
        moved = until
        curve.append(score(shown))
        shares.append(moved / len(pixels))
    area = sum((shares[i + 1] - shares[i]) * (curve[i] + curve[i + 1]) / 2 for i in range(steps))
    return area, curve


def blurred(image: Tensor, sigma: float, reach: int) -> Tensor:
    """Return an image's Gaussian blur, cut off at `reach` pixels, with zeros around it: (C, H, W) -> (C, H, W)."""
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=image.dtype) / sigma) ** 2)
    kernel = torch.outer(bell, bell) / bell.sum() ** 2
    channels, height, width = image.shape
    made = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        made[:, y, x] += kernel[dy + reach, dx + reach] * image[:, y + dy, x + dx]
    assert made.shape[0] == channels
    return made


def inside(boxes: Sequence[Sequence[float]], y: int, x: int, margin: float) -> bool:
    """Whether a pixel's centre lies in one of the boxes, or at most `margin` beside it."""
    return any(
        left - margin <= x + 0.5 <= right + margin and top - margin <= y + 0.5 <= bottom + margin
        for left, top, right, bottom in boxes
    )


def pointing_game(heat: Tensor, boxes: Sequence[Sequence[float]], margin: float) -> float:
    """Return the share of the map's maxima that hits a box: (H, W)."""
    height, width = heat.shape
    tops = [(y, x) for y in range(height) for x in range(width) if heat[y, x] == heat.max()]
    return sum(inside(boxes, y, x, margin) for y, x in tops) / len(tops)


def box_energy(heat: Tensor, boxes: Sequence[Sequence[float]]) -> float:
    """Return the share of the map's positive values in the boxes: (H, W)."""
    height, width = heat.shape
    energy = {(y, x): max(float(heat[y, x]), 0) for y in range(height) for x in range(width)}
    return sum(value for (y, x), value in energy.items() if inside(boxes, y, x, 0)) / sum(energy.values())
