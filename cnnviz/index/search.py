"""Exact search for nearest vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import InputError, OptionError

Metric: TypeAlias = Literal["cosine", "euclidean"]

_SPARE = 32  # candidates that single precision might have put behind the k nearest
_PAIRS = 4096  # whose distances are computed at once


def nearest(
    queries: Tensor,
    vectors: Callable[[], Iterable[Tensor]],
    k: int,
    metric: Metric,
    *,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k nearest vectors of each query, nearest first; of equally near ones the first.

    Candidates are found by products in single precision; their distances, and so their order, are those of double
    precision.

    Args:
        queries: (Q, D).
        vectors: returns all vectors in pieces (n, D), each time from the beginning.
        k: how many; fewer are returned where there are no more.
        metric: "cosine" distance is 1 minus the cosine, 1 where a vector is 0.
        skip: (Q,), the number of a vector that is left out for each query, such as its own; -1 for none.

    Returns:
        Distances (Q, k) and numbers (Q, k).

    Raises:
        OptionError: another metric, or no neighbours asked for.
    """
    check(k, metric)
    wanted = k + _SPARE
    # Distances do not change, and fewer digits are lost to lengths.
    centre = queries.double().mean(0) if metric == "euclidean" else torch.zeros((), device="cpu")
    centred = (queries - centre).float()
    near = queries.new_empty((len(queries), 0), dtype=torch.float32)
    numbers = torch.empty((len(queries), 0), dtype=torch.long, device="cpu")
    first, longest = 0, 0.0
    for piece in vectors():
        longest = max(longest, float((piece - centre).norm(dim=1).max()))
        found = _candidates(centred, (piece - centre).float(), wanted, metric, None if skip is None else skip - first)
        near, numbers = torch.cat([near, found.values], 1), torch.cat([numbers, found.indices + first], 1)
        near, order = near.topk(min(wanted, near.shape[1]), 1, largest=False)
        numbers = numbers.gather(1, order)
        first += len(piece)
    exact = torch.full(numbers.shape, torch.inf, dtype=torch.float64, device="cpu")
    first = 0
    for piece in vectors():
        inside = (numbers >= first) & (numbers < first + len(piece)) & near.isfinite()
        for pairs in torch.split(inside.nonzero(), _PAIRS):
            row, column = pairs.unbind(1)
            exact[row, column] = _distance(queries[row], piece[numbers[row, column] - first], metric)
        first += len(piece)
    numbers, order = numbers.sort(1)
    exact, order = exact.gather(1, order).sort(dim=1, stable=True)
    numbers = numbers.gather(1, order)
    unsure = (
        _unsure(near, k, _rounding(centred, longest, metric)) if first > wanted else torch.empty(0, device="cpu").long()
    )
    if len(unsure):
        rest = _by_all(queries[unsure], vectors, wanted, metric, None if skip is None else skip[unsure])
        exact[unsure], numbers[unsure] = rest
    kept = min(k, first - (0 if skip is None else int((skip >= 0).any())))
    return exact[:, :kept].float(), numbers[:, :kept]


def check(k: int, metric: str) -> None:
    """Refuse what cannot be searched for.

    Raises:
        OptionError: another metric, or no neighbours asked for.
    """
    if metric not in ("cosine", "euclidean"):
        raise OptionError(f"metric: got {metric!r}, expected 'cosine' or 'euclidean'")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise OptionError(f"k: got {k!r}, expected a whole number of at least 1")


def check_queries(queries: Tensor, width: int) -> None:
    """Refuse queries that are not of so many values each, or not all of them finite.

    Raises:
        InputError: they are (Q, others), or no (Q, D) at all, or values are not finite.
    """
    if queries.dim() != 2 or queries.shape[1] != width:
        raise InputError(f"queries: got {tuple(queries.shape)}, expected (Q, {width})")
    if not bool(torch.isfinite(queries).all()):
        raise InputError("queries: got values that are not finite, which nothing is near to; leave such queries out")


def _rounding(queries: Tensor, longest: float, metric: Metric) -> Tensor:
    """Return by how much rough numbers may be wrong, for each query."""
    unit: float = 8 * torch.finfo(torch.float32).eps * queries.shape[1] ** 0.5
    lengths = queries.double().norm(dim=1)
    largest: Tensor = lengths if metric == "cosine" else lengths * (2 * longest) + longest**2
    return largest * unit


def _unsure(near: Tensor, k: int, rounding: Tensor) -> Tensor:
    """Return the queries of which a vector that is no candidate might be among the k nearest."""
    return ((near[:, -1].double() - near[:, k - 1].double()) <= 2 * rounding).nonzero()[:, 0]


def _by_all(
    queries: Tensor, vectors: Callable[[], Iterable[Tensor]], wanted: int, metric: Metric, skip: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return distances and numbers of the nearest by the distances of all, in double precision."""
    best = torch.empty(len(queries), 0, dtype=torch.float64, device="cpu")
    numbers = torch.empty(len(queries), 0, dtype=torch.long, device="cpu")
    first = 0
    for piece in vectors():
        away = torch.stack([_distance(query.expand_as(piece), piece, metric) for query in queries])
        own = torch.arange(first, first + len(piece), device="cpu").expand(len(queries), -1)
        if skip is not None:
            away = away.masked_fill(own == skip[:, None], torch.inf)
        best, order = torch.cat([best, away], 1).sort(dim=1, stable=True)  # the first of equals stays the first
        numbers = torch.cat([numbers, own], 1).gather(1, order)
        best, numbers = best[:, :wanted], numbers[:, :wanted]
        first += len(piece)
    return best, numbers


def _candidates(queries: Tensor, piece: Tensor, wanted: int, metric: Metric, skip: Tensor | None) -> Any:
    """Return roughly the nearest rows of a piece, with values in the order of their distances: topk's result."""
    rough = _rough(queries, piece, metric)
    if skip is not None:
        rows = ((skip >= 0) & (skip < len(piece))).nonzero()[:, 0]
        rough[rows, skip[rows]] = torch.inf
    return rough.topk(min(wanted, len(piece)), 1, largest=False)


def _rough(a: Tensor, b: Tensor, metric: Metric) -> Tensor:
    """Return numbers that are in the order of the distances of rows of `a` to rows of `b`, but for rounding."""
    if metric == "cosine":
        lengths = b.norm(dim=1)
        return -(a @ b.T) / torch.where(lengths > 0, lengths, 1)
    return b.square().sum(1) - 2 * (a @ b.T)


def _distance(a: Tensor, b: Tensor, metric: Metric) -> Tensor:
    """Return the distance of each pair of rows, (n,)."""
    a, b = a.double(), b.double()
    if metric == "euclidean":
        return (a - b).square().sum(1).sqrt()
    lengths = a.norm(dim=1) * b.norm(dim=1)
    return (1 - (a * b).sum(1) / torch.where(lengths > 0, lengths, 1)).clamp(min=0)  # rounded, it may be below
