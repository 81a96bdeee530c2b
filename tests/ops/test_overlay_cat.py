from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, corners, drawn, sizes


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
    given = {"scale": scale, "shift": shift}
    made = ops.overlay_cat(
        [base.to(device) for base in bases],
        [patch.to(device) for patch in patches],
        at,
        crop_yx,
        size,
        **{name: None if value is None else value.to(device) for name, value in given.items()},
        low=-0.5,
        high=1.5,
    )
    parts = zip(bases, patches, at, strict=True)
    expected = torch.cat([twin.overlay_crop(base, patch, yx, crop_yx, size) for base, patch, yx in parts], 1).double()
    if scale is not None and shift is not None:
        expected = expected * scale[:, None, None].double() + shift[:, None, None].double()
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made.cpu().double(), expected.clamp(-0.5, 1.5), rtol=1e-6, atol=1e-6)


def test_what_is_no_number_stays_so() -> None:
    base, patch = torch.full((1, 3, 4, 4), math.nan), torch.ones(1, 3, 2, 2)
    at = torch.ones(1, 2, dtype=torch.long)
    made = ops.overlay_cat([base], [patch], at[None], at - 1, (4, 4), low=0.0, high=6.0)
    assert bool(made[0, :, 1:3, 1:3].eq(1).all())
    assert int(made.isnan().sum()) == 3 * 12
