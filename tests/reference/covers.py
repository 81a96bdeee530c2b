"""What covers a window, pixel by pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.reference.occlusion import Box


def inpainted(image: Tensor, box: Box) -> Tensor:
    """Return the image (C, H, W) with each pixel of a box the mean of its neighbours, which are all solved at once."""
    _, height, width = image.shape
    top, bottom, left, right = box
    made = image.clone()
    inside = [(y, x) for y in range(top, bottom) for x in range(left, right)]
    if len(inside) == height * width:
        return made.mean((1, 2), keepdim=True).expand_as(made)
    number = {place: i for i, place in enumerate(inside)}
    equations = torch.zeros(len(inside), len(inside), dtype=torch.double)
    known = torch.zeros(len(inside), len(image), dtype=torch.double)
    for (y, x), i in number.items():
        for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= place[0] < height and 0 <= place[1] < width):
                continue
            equations[i, i] += 1
            if place in number:
                equations[i, number[place]] -= 1
            else:
                known[i] += image[:, place[0], place[1]].double()
    for (y, x), value in zip(inside, torch.linalg.solve(equations, known), strict=True):
        made[:, y, x] = value
    return made


def blurred(image: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the image (C, H, W) blurred by a Gaussian of half a window's standard deviation, pixel by pixel."""
    _, height, width = image.shape
    made = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            weights = torch.tensor(
                [
                    [
                        math.exp(-2 * ((v - y) / window[0]) ** 2) * math.exp(-2 * ((u - x) / window[1]) ** 2)
                        for u in range(width)
                    ]
                    for v in range(height)
                ],
                dtype=image.dtype,
            )
            made[:, y, x] = (image * weights).sum((1, 2)) / weights.sum()
    return made


def noise(image: Tensor, seed: int) -> Tensor:
    """Return normal noise of the image's mean and standard deviation, channel by channel."""
    drawn = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    made = torch.zeros_like(image)
    for c, channel in enumerate(image):
        mean = channel.mean()
        made[c] = mean + (channel - mean).square().mean().sqrt() * drawn[c]
    return made
