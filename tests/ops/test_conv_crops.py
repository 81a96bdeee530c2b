from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, drawn, overlaid, roundings

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(
    count=st.integers(0, 3),
    channels=st.integers(1, 40),
    made=st.one_of(st.none(), st.integers(1, 140)),
    kernel=pairs,
    stride=pairs,
    dilation=pairs,
    size=st.tuples(st.integers(7, 10), st.integers(7, 10)),
    last=st.booleans(),
    more=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_maps(
    device: str,
    count: int,
    channels: int,
    made: int | None,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    last: bool,
    more: bool,
    seed: int,
) -> None:
    """One kernel for all channels; without `made` one for each."""
    draws = torch.Generator().manual_seed(seed)
    groups, outputs = (channels, channels) if made is None else (1, made)
    x = torch.randn(count, channels, *size, generator=draws)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight, bias = (
        torch.randn(outputs, channels // groups, *kernel, generator=draws),
        torch.randn(outputs, generator=draws),
    )
    expected = twin.conv_crops(x, weight, bias, stride, dilation, groups)
    added = torch.randn(expected.shape, generator=draws) if more and made is not None else None
    result = ops.conv_crops(
        x.to(device),
        ops.packed_kernel(weight, groups).to(device),
        bias.to(device),
        stride=stride,
        dilation=dilation,
        low=-1.0,
        high=2.5,
        added=None if added is None else added.to(device),
    )
    expected = (expected if added is None else expected + added).clamp(-1.0, 2.5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=1e-6 * (1 + weight[0].numel()) ** 0.5 * 4)


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(data=st.data(), each=st.booleans(), kernel=pairs, stride=pairs, dilation=pairs)
def test_crops_that_are_still_to_be_made(
    device: str,
    data: st.DataObject,
    each: bool,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    later, crops = data.draw(overlaid(device, smallest=7))
    channels = crops.shape[1]
    groups, made = (channels, channels) if each else (1, 70)
    draws = torch.Generator().manual_seed(0)
    packed = ops.packed_kernel(torch.randn(made, channels // groups, *kernel, generator=draws), groups).to(device)
    bias = torch.randn(made, generator=draws).to(device)
    given = {"stride": stride, "dilation": dilation, "low": -1.0, "high": 2.5}
    made_first = ops.conv_crops(crops, packed, bias, **given)
    more = (None, None) if each else data.draw(overlaid(device, shape=tuple(made_first.shape)))
    calls = zip((later, crops), more, strict=True)
    result, expected = (ops.conv_crops(x, packed, bias, **given, added=added) for x, added in calls)
    torch.testing.assert_close(result, expected, rtol=0, atol=roundings(device))


@pytest.mark.parametrize("groups", [1, 96])
def test_a_pixel_has_the_same_bits_in_whatever_map_it_lies(groups: int) -> None:
    if not ops.conv_crops_is_native():
        pytest.skip("PyTorch's convolutions round otherwise in other sizes")
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(5, 96, 20, 17, generator=draws)
    kernel = ops.packed_kernel(torch.randn(96, 96 // groups, 3, 3, generator=draws), groups)
    bias = torch.randn(96, generator=draws)
    whole = ops.conv_crops(x, kernel, bias)
    part = ops.conv_crops(x[2:4, :, 5:12, 3:9].contiguous(memory_format=torch.channels_last), kernel, bias)
    assert torch.equal(part, whole[2:4, :, 5:10, 3:7])


def test_it_rounds_no_further_than_the_library() -> None:
    """A sum over all channels and places one after the other, as with channels last, errs three times as far."""
    draws = torch.Generator().manual_seed(1)
    x, weight = torch.randn(4, 512, 9, 9, generator=draws).relu(), torch.randn(64, 512, 3, 3, generator=draws)
    precise = torch.nn.functional.conv2d(x.double(), weight.double())

    def error(made: torch.Tensor) -> float:
        return float((made.double() - precise).square().mean().sqrt())

    assert error(ops.conv_crops(x, ops.packed_kernel(weight), torch.zeros(64))) <= 1.2 * error(
        torch.nn.functional.conv2d(x, weight)
    )


def test_what_is_no_number_stays_so() -> None:
    for groups, channels in ((1, 1), (20, 20)):
        x, weight = torch.full((1, channels, 3, 3), math.nan), torch.ones(channels, channels // groups, 2, 2)
        made = ops.conv_crops(x, ops.packed_kernel(weight, groups), torch.zeros(channels), low=0.0, high=6.0)
        assert bool(made.isnan().all())
