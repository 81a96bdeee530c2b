from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, corners, drawn, overlaid, sizes


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(
    data=st.data(),
    count=st.integers(0, 4),
    channels=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    side=st.tuples(sizes, sizes),
    size=st.tuples(sizes, sizes),
    scaled=st.booleans(),
    last=st.booleans(),
    made=st.integers(1, 140),
    more=st.booleans(),
    seed=st.integers(0, 99),
)
def test_maps_side_by_side(
    device: str,
    data: st.DataObject,
    count: int,
    channels: list[int],
    side: tuple[int, int],
    size: tuple[int, int],
    scaled: bool,
    last: bool,
    made: int,
    more: bool,
    seed: int,
) -> None:
    draws = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if last else torch.contiguous_format
    bases = [torch.randn(1, c, *side, generator=draws).contiguous(memory_format=layout) for c in channels]
    extents = [data.draw(st.tuples(sizes, sizes)) for _ in channels]
    patches = [
        torch.randn(count, c, *extent, generator=draws).contiguous(memory_format=layout)
        for c, extent in zip(channels, extents, strict=True)
    ]
    at, crop_yx = torch.stack([corners(data, count) for _ in channels]), corners(data, count)
    scale, shift = (torch.randn(sum(channels), generator=draws) if scaled else None for _ in range(2))
    factors = (None if value is None else value.to(device) for value in (scale, shift))
    joined = ops.Joined(
        [base.to(device) for base in bases],
        [patch.to(device) for patch in patches],
        at,
        crop_yx,
        size,
        *factors,
        -0.5,
        1.5,
    )
    found = ops.overlay_cat(joined)
    parts = zip(bases, patches, at, strict=True)
    expected = torch.cat([twin.overlay_crop(base, patch, yx, crop_yx, size) for base, patch, yx in parts], 1).double()
    if scale is not None and shift is not None:
        expected = expected * scale[:, None, None].double() + shift[:, None, None].double()
    expected = expected.clamp(-0.5, 1.5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-6, atol=1e-6)

    weight, bias = torch.randn(made, sum(channels), 1, 1, generator=draws), torch.randn(made, generator=draws)
    kernel = ops.packed_kernel(weight).to(device)
    expected = twin.conv_crops(expected, weight, bias, (1, 1), (1, 1), 1)
    given, added = data.draw(overlaid(device, shape=tuple(expected.shape))) if more else (None, None)
    found = ops.conv_cat(joined, kernel, bias.to(device), low=-1.0, high=2.5, added=given)
    expected = (expected if added is None else expected + added.cpu()).clamp(-1.0, 2.5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=1e-6 * (1 + weight[0].numel()) ** 0.5 * 4)


def test_what_is_no_number_stays_so() -> None:
    base, patch = torch.full((1, 3, 4, 4), math.nan), torch.ones(1, 3, 2, 2)
    at = torch.ones(1, 2, dtype=torch.long)
    made = ops.overlay_cat(ops.Joined([base], [patch], at[None], at - 1, (4, 4), low=0.0, high=6.0))
    assert bool(made[0, :, 1:3, 1:3].eq(1).all())
    assert int(made.isnan().sum()) == 3 * 12


def test_a_convolution_has_the_same_bits_with_and_without_the_concatenation() -> None:
    draws = torch.Generator().manual_seed(0)
    bases = [torch.randn(1, c, 9, 8, generator=draws) for c in (40, 150, 7)]
    patches = [torch.randn(5, base.shape[1], 4, 3, generator=draws) for base in bases]
    at, crops = (torch.randint(0, 5, (*shape, 2), generator=draws) for shape in ((3, 5), (5,)))
    joined = ops.Joined(bases, patches, at, crops, (6, 5), torch.rand(197, generator=draws), torch.zeros(197), 0.0)
    kernel, bias = ops.packed_kernel(torch.randn(70, 197, 1, 1, generator=draws)), torch.randn(70, generator=draws)
    assert torch.equal(ops.conv_cat(joined, kernel, bias), ops.conv_crops(ops.overlay_cat(joined), kernel, bias))
