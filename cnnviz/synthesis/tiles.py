"""Losses of pictures that are too large for memory, taken piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..request import Request

_LEAST = 64  # pixels


def fitting(request: Request, example: Tensor, tile: int, *, least: int = _LEAST) -> int:
    """Return the longest side, `tile` or less, of pieces of which one fits the memory budget.

    Args:
        request: knows the budget.
        example: a picture, (1, C, H, W).
        tile: the longest side that is wanted.
        least: the shortest that pieces may have.

    Raises:
        InputError: not even the smallest does.
    """
    while not request.fits(example[..., :tile, :tile]):
        if tile <= least:
            size = f"{min(tile, example.shape[2])} x {min(tile, example.shape[3])}"
            raise InputError(f"a piece of {size} pixels does not fit the memory budget; give a larger one (memory=…)")
        tile = max(least, tile // 2)
    return tile


def tiled(loss: Callable[[Tensor], Tensor], tile: int) -> Callable[[Tensor], Tensor]:
    """Return a loss that is the mean of the losses of pieces, weighted by area, of which one is in memory at a time.

    Args:
        loss: from (N, C, h, w) to (N,).
        tile: longest side of a piece, in pixels; a picture that is no larger is one piece.
    """

    def whole(x: Tensor) -> Tensor:
        if max(x.shape[2:]) <= tile:
            return loss(x)
        return with_slope(x, in_pieces)

    def in_pieces(x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        slope = torch.zeros_like(x)
        for rows, columns in pieces((x.shape[2], x.shape[3]), tile):
            piece = x[..., rows, columns].detach().clone().requires_grad_()
            share = piece[0].numel() / x[0].numel()
            with torch.enable_grad():
                losses = share * loss(piece)
                (slope[..., rows, columns],) = torch.autograd.grad(losses.sum(), piece)
            total += losses.detach()
        return total, slope

    return whole


def pieces(size: tuple[int, int], tile: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of pieces of about the same size that cover a picture."""
    rows, columns = (_cuts(length, tile) for length in size)
    return ((row, column) for row in rows for column in columns)


def _cuts(length: int, tile: int) -> list[slice]:
    count = math.ceil(length / tile)
    ends = [length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]


def with_slope(x: Tensor, losses_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Return losses, (N,), whose gradient at `x` was computed along with them, so that no graph need be kept."""
    made: Tensor = _WithSlope.apply(x, losses_and_slope)
    return made


class _WithSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, losses_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        losses, slope = losses_and_slope(x)
        ctx.save_for_backward(slope)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0].reshape(-1, 1, 1, 1), None
