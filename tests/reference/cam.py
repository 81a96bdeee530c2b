"""Class activation maps and their relatives, place by place.

Zhou 2016, equations 1 and 2; Chattopadhay 2018, equations 5 and 19; Jiang 2021, equations 4 to 6; Wang 2020,
algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.reference.grad_cam import bilinear


def cam(maps: Tensor, weight: Tensor, classes: list[int]) -> Tensor:
    """Return each image's maps, weighted by its class's row of the linear layer: (N, C, h, w) -> (N, 1, h, w)."""
    images, channels, height, width = maps.shape
    heat = torch.zeros(images, 1, height, width, dtype=maps.dtype)
    for n, k in enumerate(classes):
        for y in range(height):
            for x in range(width):
                heat[n, 0, y, x] = sum(float(weight[k, c]) * float(maps[n, c, y, x]) for c in range(channels))
    return heat


def windowed_scores(maps: Tensor, size: int, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what a head for maps of `size` x `size` says of the window around each place, zeros beyond the map."""
    images, channels, height, width = maps.shape
    rows = []
    for n in range(images):
        for y in range(height):
            for x in range(width):
                window = torch.zeros(channels, size, size, dtype=maps.dtype)
                for v in range(size):
                    for u in range(size):
                        down, across = y + v - (size - 1) // 2, x + u - (size - 1) // 2
                        if 0 <= down < height and 0 <= across < width:
                            window[:, v, u] = maps[n, :, down, across]
                rows.append(head(window[None])[0])
    return torch.stack(rows).reshape(images, height, width, -1).permute(0, 3, 1, 2)


def grad_cam_plus_plus(maps: Tensor, slopes: Tensor) -> Tensor:
    """Return the maps weighted as for the exponential of the score, without its factor."""
    images, channels, height, width = maps.shape
    heat = torch.zeros(images, 1, height, width, dtype=maps.dtype)
    for n in range(images):
        for c in range(channels):
            a, g = maps[n, c].flatten().tolist(), slopes[n, c].flatten().tolist()
            weight = 0.0
            for slope in g:
                below = 2 * slope**2 + sum(a) * slope**3
                weight += slope**2 / below * max(slope, 0.0) if below else 0.0
            heat[n, 0] += weight * maps[n, c]
    return heat.clamp(min=0)


def layer_cam(maps: Tensor, slopes: Tensor) -> Tensor:
    """Return the sum of maps, each place weighted by its own positive slope."""
    images, channels, height, width = maps.shape
    heat = torch.zeros(images, 1, height, width, dtype=maps.dtype)
    for n in range(images):
        for y in range(height):
            for x in range(width):
                total = 0.0
                for c in range(channels):
                    total += max(float(slopes[n, c, y, x]), 0.0) * float(maps[n, c, y, x])
                heat[n, 0, y, x] = max(total, 0.0)
    return heat


def score_cam(maps: Tensor, images: Tensor, score: Callable[[Tensor, int], float]) -> Tensor:
    """Return the maps weighted by the softmax of the scores that the images have behind them."""
    heat = torch.zeros(len(maps), 1, *maps.shape[2:], dtype=maps.dtype)
    for n in range(len(maps)):
        scores = []
        for channel in maps[n]:
            large = bilinear(channel[None, None], (images.shape[2], images.shape[3]))
            low, high = float(large.min()), float(large.max())
            through = (large - low) / (high - low) if high > low else torch.zeros_like(large)
            scores.append(score(images[n : n + 1] * through, n))
        largest = max(scores)
        shares = [math.exp(value - largest) for value in scores]
        for share, channel in zip(shares, maps[n], strict=True):
            heat[n, 0] += share / sum(shares) * channel
    return heat.clamp(min=0)
