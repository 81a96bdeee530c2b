"""Random transforms between picture and network, so that what is made holds for more than one placement.

A transform takes pictures (N, C, H, W) and a generator on the CPU; all pictures of a batch are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Transform: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


def jitter(pixels: int) -> Transform:
    """Return a transform that shifts by up to so many pixels each way; what leaves on one side enters on the other."""

    def shift(x: Tensor, generator: torch.Generator) -> Tensor:
        down, right = torch.randint(-pixels, pixels + 1, (2,), generator=generator, device="cpu").tolist()
        return x.roll((down, right), (2, 3))

    return shift


def affine(scale: float, degrees: float) -> Transform:
    """Return a transform that enlarges or shrinks by up to `scale`, 0.1 for a tenth, and turns by up to `degrees`.

    Bilinear; beyond the border the picture is mirrored.
    """

    def move(x: Tensor, generator: torch.Generator) -> Tensor:
        by, turn = (2 * torch.rand(2, generator=generator, dtype=torch.float64, device="cpu") - 1).tolist()
        zoom, angle = (1 + scale) ** by, math.radians(degrees * turn)
        ratio = x.shape[3] / x.shape[2]  # the grid's units are half the picture's sides
        rows = [
            [math.cos(angle) / zoom, -math.sin(angle) / zoom / ratio, 0.0],
            [math.sin(angle) / zoom * ratio, math.cos(angle) / zoom, 0.0],
        ]
        grid = functional.affine_grid(x.new_tensor(rows).expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    return move
