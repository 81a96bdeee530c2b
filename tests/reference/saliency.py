"""Gradient of a score at the input, Simonyan 2013; SmoothGrad, Smilkov 2017; reduced pixel by pixel."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Score = Callable[[Any], Tensor]
"""From a network's output to (N,) scores."""


def gradient(network: nn.Module, x: Tensor, score: Score) -> Tensor:
    """Return the plain gradient, image by image: (N, C, H, W) -> (N, C, H, W)."""
    twin = copy.deepcopy(network).eval()
    leaf = x.clone().requires_grad_()
    score(twin(leaf)).sum().backward()
    return leaf.grad


def smooth_gradient(network: nn.Module, x: Tensor, score: Score, *, samples: int, noise: float, seed: int) -> Tensor:
    """Return the mean gradient over noisy copies.

    Each copy adds one draw of standard normal numbers (C, H, W), the same for all images, times `noise` times the
    difference between the image's largest and smallest value.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(x)
    for _ in range(samples):
        drawn = torch.randn(x.shape[1:], generator=generator)
        noisy = x.clone()
        for image in range(len(x)):
            span = float(x[image].max()) - float(x[image].min())
            noisy[image] = x[image] + (noise * span) * drawn.to(x.dtype)
        total = total + gradient(network, noisy, score)
    return total / samples


def reduced(slope: Tensor, *, sign: str, channels: str) -> Tensor:
    """Take each gradient's sign option first, then make one map of the channels: (N, C, H, W) -> (N, 1 or C, H, W)."""
    signed = {"abs": abs, "square": lambda value: value * value, "signed": lambda value: value}[sign]
    images, depth, height, width = slope.shape
    made = torch.zeros(images, depth if channels == "none" else 1, height, width, dtype=slope.dtype)
    numbers = slope.tolist()
    for n in range(images):
        for y in range(height):
            for x in range(width):
                column = [signed(numbers[n][c][y][x]) for c in range(depth)]
                if channels == "none":
                    for c in range(depth):
                        made[n, c, y, x] = column[c]
                else:
                    made[n, 0, y, x] = _ONE[channels](column)
    return made


_ONE: dict[str, Callable[[list[float]], float]] = {
    "max": max,
    "mean": lambda column: sum(column) / len(column),
    "norm": lambda column: math.sqrt(sum(value * value for value in column)),
}
