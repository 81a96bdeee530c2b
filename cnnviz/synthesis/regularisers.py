"""What keeps made pictures from noise: penalties, which are added to the loss, and edits after a step.

Both take [0, 1] pictures less the mean colour of the network's training images, (N, C, H, W). A penalty returns (N,), a
mean over pixels, so that its weight means the same at every size. An edit takes the gradient of the loss too, and
returns what the pictures become.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Penalty: TypeAlias = Callable[[Tensor], Tensor]
Edit: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def p_norm(x: Tensor, power: float = 2.0) -> Tensor:
    """Return the mean of ``abs(x) ** power``: (N, C, H, W) -> (N,). Simonyan 2013 takes 2, Mahendran 2015 takes 6."""
    return x.abs().pow(power).mean((1, 2, 3))


def total_variation(x: Tensor, power: float = 2.0) -> Tensor:
    """Return the mean of the local gradient's length to `power`: (N, C, H, W) -> (N,).

    A pixel's gradient is its differences to the right and downwards, and zero beyond the border. Mahendran 2015,
    equation 5, where β is `power`; of 1 is usual total variation, whose slope at a flat place is taken to be 0.
    """
    right = functional.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1))
    down = functional.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    squares = right.square() + down.square()
    if power == 2:
        return squares.mean((1, 2, 3))
    flat = squares == 0
    return squares.masked_fill(flat, 1.0).pow(power / 2).masked_fill(flat, 0.0).mean((1, 2, 3))


def blur(sigma: float) -> Edit:
    """Return an edit that blurs with a Gaussian of standard deviation `sigma`, in pixels, mirrored at the border."""
    radius = max(1, math.ceil(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu") / sigma) ** 2)
    weights /= weights.sum()

    def edit(x: Tensor, slope: Tensor) -> Tensor:  # noqa: ARG001  # an edit takes both
        kernel = weights.to(x).expand(x.shape[1], 1, -1)
        mirrored = _mirrored(x, radius)
        across = functional.conv2d(mirrored, kernel[:, :, None], groups=x.shape[1])
        return functional.conv2d(across, kernel[..., None], groups=x.shape[1])

    return edit


def _mirrored(x: Tensor, by: int) -> Tensor:
    """Return pictures with so many pixels on each side, mirrored at the border, again where there are fewer."""
    for axis in (2, 3):
        left = by
        while left:
            step = left if x.shape[axis] == 1 else min(left, x.shape[axis] - 1)
            sides = (0, 0, step, step) if axis == 2 else (step, step, 0, 0)
            x = functional.pad(x, sides, mode="replicate" if x.shape[axis] == 1 else "reflect")
            left -= step
    return x


def clip_pixels(percent: float) -> Edit:
    """Return an edit that sets to zero the given percentage of pixels: those of the smallest norm over channels."""

    def edit(x: Tensor, slope: Tensor) -> Tensor:  # noqa: ARG001  # an edit takes both
        return _without_lowest(x, x.square().sum(1), percent)

    return edit


def clip_gradients(percent: float) -> Edit:
    """Return an edit that sets to zero the given percentage of pixels: those which contribute least to the loss.

    A pixel's contribution is the absolute value of the sum over channels of value times gradient. Yosinski 2015.
    """

    def edit(x: Tensor, slope: Tensor) -> Tensor:
        return _without_lowest(x, (x * slope).sum(1).abs(), percent)

    return edit


def _without_lowest(x: Tensor, worth: Tensor, percent: float) -> Tensor:
    flat = worth.flatten(1)
    count = int(flat.shape[1] * percent / 100)
    if count == 0:
        return x
    lowest = flat.argsort(dim=1, stable=True)[:, :count]
    kept = torch.ones_like(flat).scatter(1, lowest, 0.0)
    return x * kept.reshape(len(x), 1, *x.shape[2:])
