from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, drawn, overlaid, roundings


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(
    count=st.integers(0, 4),
    channels=st.integers(1, 40),
    made=st.integers(1, 140),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    last=st.booleans(),
    more=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_maps(
    device: str, count: int, channels: int, made: int, size: tuple[int, int], last: bool, more: bool, seed: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, *size, generator=draws)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight, bias = torch.randn(made, channels, 3, 3, generator=draws), torch.randn(made, generator=draws)
    kernel = ops.winograd_kernel(weight).to(device)
    expected = twin.conv_crops(x, weight, bias, (1, 1), (1, 1), 1)
    added = torch.randn(expected.shape, generator=draws) if more else None
    given = None if added is None else added.to(device)
    result = ops.winograd_crops(x.to(device), kernel, bias.to(device), low=-1.0, high=2.5, added=given)
    expected = (expected if added is None else expected + added).clamp(-1.0, 2.5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=1e-6 * (1 + weight[0].numel()) ** 0.5 * 4)


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(data=st.data(), made=st.integers(1, 70))
def test_crops_that_are_still_to_be_made(device: str, data: st.DataObject, made: int) -> None:
    later, crops = data.draw(overlaid(device, smallest=3))
    draws = torch.Generator().manual_seed(0)
    kernel = ops.winograd_kernel(torch.randn(made, crops.shape[1], 3, 3, generator=draws)).to(device)
    bias = torch.randn(made, generator=draws).to(device)
    rows, columns = later.size
    more = data.draw(overlaid(device, shape=(len(crops), made, rows - 2, columns - 2)))
    calls = zip((later, crops), more, strict=True)
    result, expected = (ops.winograd_crops(x, kernel, bias, low=-1.0, high=2.5, added=added) for x, added in calls)
    torch.testing.assert_close(result, expected, rtol=0, atol=roundings(device))


@pytest.mark.parametrize("count", [1, 40])
def test_many_tiles_and_channels(count: int) -> None:
    """More than one block of tiles, more than one chain of products, more than one panel of channels."""
    draws = torch.Generator().manual_seed(count)
    x, weight = torch.randn(count, 200, 9, 12, generator=draws), torch.randn(130, 200, 3, 3, generator=draws)
    made = ops.winograd_crops(x, ops.winograd_kernel(weight), torch.zeros(130))
    expected = functional.conv2d(x.double(), weight.double())
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.skipif(not ops.conv_crops_is_native(), reason="PyTorch's matrix products round as they do")
def test_it_rounds_little_further_than_the_library() -> None:
    draws = torch.Generator().manual_seed(1)
    x, weight = torch.randn(4, 512, 9, 9, generator=draws).relu(), torch.randn(64, 512, 3, 3, generator=draws)
    precise = functional.conv2d(x.double(), weight.double())

    def error(made: torch.Tensor) -> float:
        return float((made.double() - precise).square().mean().sqrt())

    made = ops.winograd_crops(x, ops.winograd_kernel(weight), torch.zeros(64))
    assert error(made) <= 1.6 * error(functional.conv2d(x, weight))


def test_kernels_are_those_of_the_paper() -> None:
    draws = torch.Generator().manual_seed(2)
    weight = torch.randn(70, 19, 3, 3, generator=draws)
    made = ops.winograd_kernel(weight)
    assert made.shape == (2, 16, 19, 64)
    into = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    for m, c in ((0, 0), (63, 18), (64, 3), (69, 17)):
        expected = into @ weight[m, c].double() @ into.T
        torch.testing.assert_close(made[m // 64, :, c, m % 64].double(), expected.flatten(), rtol=1e-7, atol=1e-8)
    assert not made[1, :, :, 6:].any()


def test_what_is_no_number_stays_where_it_is() -> None:
    x, weight = torch.zeros(1, 20, 8, 7), torch.ones(70, 20, 3, 3)
    x[0, 3, 4, 4] = math.nan
    made = ops.winograd_crops(x, ops.winograd_kernel(weight), torch.zeros(70), low=0.0, high=6.0)
    assert torch.equal(made.isnan(), functional.conv2d(x, weight).isnan())
