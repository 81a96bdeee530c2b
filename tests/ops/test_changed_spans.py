from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, DTYPES, drawn, layouts, sizes


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(
    count=st.integers(0, 4),
    channels=st.integers(1, 40),
    whole=st.tuples(st.integers(6, 9), st.integers(6, 9)),
    extent=st.tuples(sizes, sizes),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]),
    odd=st.sampled_from([0.0, math.inf, math.nan]),
    dtype=st.sampled_from(DTYPES),
    layout=layouts,
    seed=st.integers(0, 99),
)
def test_any_patches(
    device: str,
    count: int,
    channels: int,
    whole: tuple[int, int],
    extent: tuple[int, int],
    share: float,
    odd: float,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    seed: int,
) -> None:
    """Spans within the patches, empty ones among them; pixels that differ by much and by nothing, and by no number."""
    draws = torch.Generator().manual_seed(seed)
    base = torch.randn(1, channels, *whole, generator=draws).to(dtype)
    room = torch.tensor(whole) - torch.tensor(extent) + 1
    places = (torch.rand(count, 2, generator=draws) * room).long()
    patch = torch.stack(
        [base[0, :, top : top + extent[0], left : left + extent[1]] for top, left in places.tolist()]
        or [base[0, :, : extent[0], : extent[1]]]
    )[:count]
    change = torch.randn(patch.shape, generator=draws).to(dtype) ** 5
    patch = torch.where(torch.rand(count, 1, *extent, generator=draws) < 0.5, patch, patch + change)
    if odd and count:
        patch[0, 0, 0, 0] = odd
    ends = torch.rand(count, 2, 2, generator=draws) * (torch.tensor(extent) + 1)[:, None]
    spans = ends.long().sort(2).values + places[:, :, None]
    made = ops.changed_spans(layout(base).to(device), layout(patch).to(device), places, spans, share)
    number = torch.float64 if dtype == torch.float64 else torch.float32
    assert made.device.type == "cpu"
    assert torch.equal(made, twin.changed_spans(base.to(number), patch.to(number), places, spans, share))


def test_what_changes_nothing_has_empty_spans() -> None:
    base, places = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([[2, 3], [1, 1]])
    patch = torch.stack([base[0, :, 2:6, 3:7], base[0, :, 1:5, 1:5]])
    patch[1, 2, 1, 2] += 1
    spans = torch.tensor([[[2, 6], [3, 6]], [[1, 5], [1, 5]]])
    assert ops.changed_spans(base, patch, places, spans, 0.1).tolist() == [[[2, 2], [3, 3]], [[2, 3], [3, 4]]]
