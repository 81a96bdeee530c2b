"""Exact search beside a plain sort of all distances in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cnnviz.index import nearest


def obvious(queries: Tensor, vectors: Tensor, metric: str, skip: list[int] | None) -> list[list[tuple[float, int]]]:
    found = []
    for q, query in enumerate(queries.double()):
        rows = []
        for number, vector in enumerate(vectors.double()):
            if skip is not None and skip[q] == number:
                continue
            lengths = float(query.norm() * vector.norm())
            cosine = 1 - float(query @ vector) / lengths if lengths else 1.0
            rows.append((float((query - vector).norm()) if metric == "euclidean" else cosine, number))
        found.append(sorted(rows))
    return found


@settings(max_examples=40)
@given(
    st.integers(0, 999), st.integers(1, 60), st.integers(1, 9), st.integers(1, 8),
    st.sampled_from(["cosine", "euclidean"]), st.booleans(), st.integers(1, 20),
)  # fmt: skip
def test_neighbours_are_those_of_a_sort(
    seed: int, count: int, width: int, k: int, metric: Any, skipping: bool, piece: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, width, generator=draws) + 3
    vectors[0] = 0
    queries = (
        vectors[torch.randint(count, (4,), generator=draws)] if skipping else torch.randn(4, width, generator=draws)
    )
    skip = [int((vectors == query).all(1).nonzero()[0, 0]) for query in queries] if skipping else None
    distances, numbers = nearest(
        queries, lambda: vectors.split(piece), k, metric, skip=None if skip is None else torch.tensor(skip)
    )
    for row, expected in enumerate(obvious(queries, vectors, metric, skip)):
        told = [distance for distance, _ in expected[:k]]
        assert distances[row].tolist() == pytest.approx(told, rel=1e-6, abs=1e-9)
        every = {number: distance for distance, number in expected}
        # Equally near ones may stand in either order.
        assert [every[number] for number in numbers[row].tolist()] == pytest.approx(told, rel=1e-6, abs=1e-9)
        assert len(set(numbers[row].tolist())) == len(told)


def test_near_ones_far_from_the_origin_are_told_apart() -> None:
    """In single precision the squares of these distances drown in those of the lengths."""
    vectors = 1e4 + torch.arange(50)[:, None] * 1e-2 * torch.ones(1, 64)
    _, numbers = nearest(vectors[20:21], lambda: [vectors], 3, "euclidean")
    assert set(numbers[0].tolist()) == {19, 20, 21}
    assert int(numbers[0, 0]) == 20


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("piece", [7, 64, 1000])
def test_of_many_alike_the_first_are_found(metric: Any, piece: int) -> None:
    vectors = torch.randn(400, 24)
    vectors[50:250] = vectors[50]
    distances, numbers = nearest(vectors[50:51], lambda: vectors.split(piece), 5, metric)
    assert numbers[0].tolist() == [50, 51, 52, 53, 54]
    assert float(distances.max()) < 1e-6


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_many_that_single_precision_cannot_tell_apart(metric: Any) -> None:
    draws = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, 24, generator=draws) + 1e-6 * torch.randn(500, 24, generator=draws)
    others = torch.randn(300, 24, generator=draws)
    every = torch.cat([others, vectors])
    queries = torch.cat([vectors[:3], others[:2]])
    distances, _ = nearest(queries, lambda: every.split(64), 5, metric)
    for row, expected in enumerate(obvious(queries, every, metric, None)):
        assert distances[row].tolist() == pytest.approx([away for away, _ in expected[:5]], rel=1e-6, abs=1e-12)
