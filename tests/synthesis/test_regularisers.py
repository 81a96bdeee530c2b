"""Penalties and edits are their formulas, and so are their gradients."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cnnviz.synthesis import blur, clip_gradients, clip_pixels, p_norm, total_variation
from tests.reference import synthesis as twin

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SIZES, st.sampled_from([1.0, 2.0, 3.0, 6.0]), st.integers(0, 5))
def test_penalties_are_their_formulas(shape: tuple[int, ...], power: float, seed: int) -> None:
    x = drawn(shape, seed)
    torch.testing.assert_close(p_norm(x, power), twin.p_norm(x, power))
    torch.testing.assert_close(total_variation(x, power), twin.total_variation(x, power))


@pytest.mark.parametrize("power", [1.0, 2.0, 6.0])
@pytest.mark.parametrize("penalty", [p_norm, total_variation])
def test_gradients_of_penalties_are_those_of_differences(penalty: Any, power: float) -> None:
    x = drawn((2, 3, 5, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: penalty(y, power), x)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_flat_pictures_have_no_slope(power: float) -> None:
    x = torch.zeros(1, 3, 5, 5, requires_grad=True)
    (slope,) = torch.autograd.grad(total_variation(x, power).sum(), x)
    assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.7])
def test_blur_is_a_gaussian(sigma: float) -> None:
    x = drawn((2, 3, 9, 7))
    torch.testing.assert_close(blur(sigma)(x, x), twin.blur(x, sigma))
    flat = torch.full_like(x, 0.7)
    torch.testing.assert_close(blur(sigma)(flat, x), flat)


@given(st.floats(0, 99), st.integers(0, 20))
def test_clipping_removes_the_lowest_pixels(percent: float, seed: int) -> None:
    x, slope = drawn((2, 3, 4, 5), seed), drawn((2, 3, 4, 5), seed + 1)
    assert torch.equal(clip_pixels(percent)(x, slope), twin.without_lowest(x, x.norm(dim=1), percent))
    worth = (x * slope).sum(1).abs()
    assert torch.equal(clip_gradients(percent)(x, slope), twin.without_lowest(x, worth, percent))


@pytest.mark.parametrize("size", [(5, 40), (1, 9), (2, 2)])
def test_blur_wider_than_the_picture_goes_on_mirroring(size: tuple[int, int]) -> None:
    x = drawn((1, 2, *size))
    padded = numpy.pad(x.numpy(), ((0, 0), (0, 0), (12, 12), (12, 12)), mode="reflect")
    inner = blur(4.0)(torch.from_numpy(padded), x)[..., 12:-12, 12:-12]
    torch.testing.assert_close(blur(4.0)(x, x), inner)
