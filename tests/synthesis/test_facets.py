"""Clusters are those that are there."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnviz.synthesis import clusters


@given(st.integers(0, 50), st.integers(1, 6))
def test_far_groups_are_found(seed: int, count: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    group = torch.arange(count).repeat(7)
    centres = 100 * torch.eye(count, 8)
    points = centres[group] + torch.randn(len(group), 8, generator=draws)
    found = clusters(points, count, draws)
    pairs = {(int(a), int(b)) for a, b in zip(group, found, strict=True)}
    assert len(pairs) == count, "each group is one cluster"
    assert {b for _, b in pairs} == set(range(count))


@given(st.integers(0, 100), st.integers(1, 12), st.integers(0, 12))
def test_no_cluster_is_empty(seed: int, count: int, more: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    points = torch.randint(3, (count + more, 2), generator=draws).float()  # many of them coincide
    assert set(clusters(points, count, draws).tolist()) == set(range(count))
