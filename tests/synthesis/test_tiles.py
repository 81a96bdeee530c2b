"""Losses taken piece by piece are means over the whole, with their gradients."""

from __future__ import annotations

import pytest
import torch

from cnnviz.synthesis import tiled


@pytest.mark.parametrize(("size", "pieces"), [((8, 8), 1), ((20, 8), 3), ((17, 23), 9), ((1, 9), 2)])
def test_a_mean_over_pieces_is_the_mean_over_the_whole(size: tuple[int, int], pieces: int) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64).requires_grad_()
    seen: list[int] = []

    def loss(part: torch.Tensor) -> torch.Tensor:
        seen.append(max(part.shape[2:]))
        return part.pow(3).mean((1, 2, 3))

    made = tiled(loss, 8)(x)
    assert len(seen) == pieces
    assert max(seen) <= 8
    torch.testing.assert_close(made, x.pow(3).mean((1, 2, 3)))
    (slope,) = torch.autograd.grad((made * torch.tensor([1.0, 2.0])).sum(), x)
    (wanted,) = torch.autograd.grad((x.pow(3).mean((1, 2, 3)) * torch.tensor([1.0, 2.0])).sum(), x)
    torch.testing.assert_close(slope, wanted)
