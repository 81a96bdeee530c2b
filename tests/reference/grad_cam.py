"""Grad-CAM, Selvaraju 2017, equations 1 and 2."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Score = Callable[[Any], Tensor]
"""From a network's output to (N,) scores."""


def maps_and_slopes(network: nn.Module, x: Tensor, score: Score, layer: str, call: int = 0) -> tuple[Tensor, Tensor]:
    """Return what call number `call` of `layer` gave out, and the gradient of the scores there.

    The gradient is that of zeros which are added to the layer's output, so that nothing later can overwrite either.
    """
    twin = copy.deepcopy(network).eval()
    seen: list[Tensor] = []
    zeros: list[Tensor] = []

    def add_zeros(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().clone())
        zeros.append(torch.zeros_like(output, requires_grad=True))
        return output.detach() + zeros[-1] if len(seen) == call + 1 else output

    twin.get_submodule(layer).register_forward_hook(add_zeros)
    total = score(twin(x.clone())).sum()
    (slope,) = torch.autograd.grad(total, zeros[call])
    return seen[call], slope


def grad_cam(maps: Tensor, slopes: Tensor, *, relu: bool = True) -> Tensor:
    """Return the maps' sum weighted by their mean slopes: (N, C, h, w) -> (N, 1, h, w)."""
    images, channels, height, width = maps.shape
    heat = torch.zeros(images, 1, height, width, dtype=maps.dtype)
    for n in range(images):
        for c in range(channels):
            weight = 0.0
            for row in slopes[n, c].tolist():
                for value in row:
                    weight += value
            weight /= height * width
            heat[n, 0] += weight * maps[n, c]
    if relu:
        for n in range(images):
            for y in range(height):
                for x in range(width):
                    heat[n, 0, y, x] = max(float(heat[n, 0, y, x]), 0.0)
    return heat


def bilinear(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, 1, h, w) to `size`, corners not aligned: a pixel's centre is where it lies on both grids."""
    made = torch.zeros(len(heat), 1, *size, dtype=heat.dtype)
    for n in range(len(heat)):
        grid = heat[n, 0].tolist()
        for y in range(size[0]):
            upper, lower, down = _between(y, size[0], len(grid))
            for x in range(size[1]):
                left, right, across = _between(x, size[1], len(grid[0]))
                above = grid[upper][left] * (1 - across) + grid[upper][right] * across
                below = grid[lower][left] * (1 - across) + grid[lower][right] * across
                made[n, 0, y, x] = above * (1 - down) + below * down
    return made


def _between(place: int, size: int, cells: int) -> tuple[int, int, float]:
    """Return the two cells that a pixel's centre lies between, and how far it is towards the second."""
    centre = max((place + 0.5) * cells / size - 0.5, 0.0)
    first = min(int(centre), cells - 1)
    return first, min(first + 1, cells - 1), centre - first
