"""Slow twins of what keeps made pictures from noise, in plain loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def p_norm(x: Tensor, power: float) -> Tensor:
    values = []
    for picture in x:
        total = 0.0
        for value in picture.flatten().tolist():
            total += abs(value) ** power
        values.append(total / picture.numel())
    return torch.tensor(values, dtype=x.dtype)


def total_variation(x: Tensor, power: float) -> Tensor:
    """Mahendran 2015, equation 5, divided by the number of pixels."""
    values = []
    for picture in x:
        total = 0.0
        for channel in picture.tolist():
            height, width = len(channel), len(channel[0])
            for i in range(height):
                for j in range(width):
                    right = channel[i][j + 1] - channel[i][j] if j + 1 < width else 0.0
                    down = channel[i + 1][j] - channel[i][j] if i + 1 < height else 0.0
                    total += (right**2 + down**2) ** (power / 2)
        values.append(total / picture.numel())
    return torch.tensor(values, dtype=x.dtype)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Sum over a square window, mirrored at the border without repeating it."""
    radius = max(1, math.ceil(3 * sigma))
    bell = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    scale = sum(bell) ** 2
    height, width = x.shape[2:]

    def mirrored(place: int, length: int) -> int:
        place = abs(place)
        return place if place < length else 2 * (length - 1) - place

    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            for a in range(-radius, radius + 1):
                for b in range(-radius, radius + 1):
                    weight = bell[a + radius] * bell[b + radius] / scale
                    out[:, :, i, j] += weight * x[:, :, mirrored(i + a, height), mirrored(j + b, width)]
    return out


def without_lowest(x: Tensor, worth: Tensor, percent: float) -> Tensor:
    out = x.clone()
    for n in range(len(x)):
        places = [(float(worth[n, i, j]), i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]
        for _, i, j in sorted(places)[: int(len(places) * percent / 100)]:
            out[n, :, i, j] = 0
    return out


def gram(maps: Tensor) -> Tensor:
    """(C, h, w) -> (C, C), each pair of channels by itself, divided by channels and places."""
    channels = len(maps)
    made = torch.zeros(channels, channels, dtype=maps.dtype)
    for i in range(channels):
        for j in range(channels):
            made[i, j] = sum(a * b for a, b in zip(maps[i].flatten().tolist(), maps[j].flatten().tolist(), strict=True))
    return made / maps.numel()
