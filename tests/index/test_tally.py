"""Tallies of channels beside loops over all values, in whatever pieces they come."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cnnviz.index import Histogram, Strongest, exact_quantile


def drawn(seed: int, images: int) -> Tensor:
    """Maps of 5 channels with very different ranges: one is never active, one is negative."""
    maps = torch.randn(images, 5, 3, 4, generator=torch.Generator().manual_seed(seed))
    return (
        maps * torch.tensor([1.0, 0.0, 1e-3, 300.0, -1.0])[:, None, None]
        - torch.tensor([0, 0, 0, 0, 5.0])[:, None, None]
    )


def obvious(maps: Tensor, channel: int, top: int) -> list[tuple[float, int, int, int]]:
    """Each image's strongest unit, strongest image first, of equals the first image."""
    units = []
    for number, image in enumerate(maps):
        value, row, column = max((float(image[channel, r, c]), -r, -c) for r in range(3) for c in range(4))
        units.append((value, number, -row, -column))
    return sorted(units, key=lambda unit: (-unit[0], unit[1]))[:top]


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 12), st.lists(st.integers(1, 5), max_size=4), st.integers(1, 6))
def test_strongest_units_are_those_of_a_loop(seed: int, images: int, cuts: list[int], top: int) -> None:
    maps = drawn(seed, images)
    places = sorted({0, *(min(cut, images) for cut in cuts), images})
    parts = [Strongest.of(maps[a:b], a) for a, b in itertools.pairwise(places)]
    made = Strongest.merged(parts, top)
    for channel in range(5):
        expected = obvious(maps, channel, top)
        found = torch.cat([made.values[:, channel, None], made.places[:, channel]], 1)
        if channel != 1:  # where all are 0, any unit of an image is the strongest
            torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0)
        else:
            assert found[:, 1].tolist() == [unit[1] for unit in expected]


def test_images_are_renumbered_and_none_stays_none() -> None:
    made = Strongest.none(3, 2).shifted(10)
    assert made.places.unique().tolist() == [-1]
    assert Strongest.of(drawn(0, 2), 0).shifted(7).places[..., 0].unique().tolist() == [7, 8]


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 9), st.floats(0.001, 0.999))
def test_quantiles_are_within_a_hundredth(seed: int, images: int, q: float) -> None:
    maps = drawn(seed, images)
    histogram = Histogram.none(5)
    for image in maps:
        histogram.add(image[None])
    values = maps.transpose(0, 1).flatten(1)
    expected = torch.tensor([sorted(row)[math.ceil(q * len(row)) - 1] for row in values.tolist()])
    assert torch.equal(exact_quantile(values, q), expected)
    small = expected.abs() < 2**-16
    gap = (histogram.quantile(q) - expected).abs()
    assert bool((gap <= torch.where(small, 2**-16, 0.01 * expected.abs())).all())


def test_histograms_add_up_in_any_order() -> None:
    maps = drawn(3, 6)
    whole = Histogram.none(5)
    whole.add(maps)
    assert int(whole.counts.sum()) == maps.numel()
    parts = []
    for piece in maps.split(2):
        one = Histogram.none(5)
        one.add(piece)
        parts.append(one.packed())
    for order in (parts, parts[::-1]):
        added = Histogram.none(5)
        for bins, counts in order:
            added.add_packed(bins, counts)
        assert torch.equal(added.counts, whole.counts)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, 1e30, -1e30, 65535.9])
def test_values_of_any_size_are_counted(value: float) -> None:
    histogram = Histogram.none(1)
    histogram.add(torch.full((1, 1, 1, 1), value))
    assert int(histogram.counts.sum()) == 1
    found = float(histogram.quantile(0.5))
    assert math.copysign(1, found) == math.copysign(1, value) or found == 0
    assert abs(found) <= 65536


@pytest.mark.parametrize(("count", "q", "expected"), [(100, 0.07, 6), (100, 0.5, 49), (12, 5 / 12, 4), (10, 1e-9, 0)])
def test_rounding_takes_no_quantile_one_rank_further(count: int, q: float, expected: int) -> None:
    values = torch.arange(float(count))
    assert int(exact_quantile(values[None], q)) == expected
    histogram = Histogram.none(1)
    histogram.add(values[None, None, None])
    assert float(histogram.quantile(q)) == pytest.approx(expected, rel=0.01)
