"""Random masks one after the other, Petsiuk 2018, section 3.2 and equation 6."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.reference.grad_cam import bilinear


def masks(count: int, cells: tuple[int, int], keep: float, size: tuple[int, int], seed: int) -> Tensor:
    """Return (count, H, W): coarse grids of zeros and ones, enlarged to one cell more than the image, cut at random."""
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand(count, *cells, generator=generator) < keep).double()
    step = [math.ceil(size[axis] / cells[axis]) for axis in (0, 1)]
    top, left = (torch.randint(step[axis], (count, 1), generator=generator)[:, 0].tolist() for axis in (0, 1))
    made = []
    for i in range(count):
        large = bilinear(grids[i][None, None], ((cells[0] + 1) * step[0], (cells[1] + 1) * step[1]))[0, 0]
        made.append(large[top[i] : top[i] + size[0], left[i] : left[i] + size[1]])
    return torch.stack(made)


def rise(shown: Tensor, score: Callable[[Tensor], float], image: Tensor, keep: float) -> Tensor:
    """Return the mean of masks weighted by the score behind them, over the expected mask: (H, W)."""
    total = torch.zeros_like(shown[0])
    for mask in shown:
        total += score(image * mask) * mask
    return total / len(shown) / keep


def centred(shown: Tensor, scores: list[float], keep: float) -> Tensor:
    """Return the mean score plus the covariance of score and mask over the expected mask."""
    mean = sum(scores) / len(scores)
    total = torch.zeros_like(shown[0])
    for mask, value in zip(shown, scores, strict=True):
        total += (value - mean) * (mask - keep)
    return mean + total / (len(scores) - 1) / keep
