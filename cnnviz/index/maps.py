"""Features laid out in the plane: principal components and t-SNE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

import numpy
import torch
from torch import Tensor

from ..errors import InputError, OptionError
from .part import write_tensors
from .store import Index

_SPARE: Final = 10  # directions more than are asked for, so that those are exact
_PASSES: Final = 6  # over the data
_COMPONENTS: Final = 50  # that t-SNE sees
_ITERATIONS: Final = 750  # of openTSNE's own schedule
_EVERY: Final = 10  # of them between two looks at progress
_NEAR: Final = 5.0  # neighbours that decide where an image is placed in a map that stays


class Principal:
    """Principal components of vectors, by a randomised method that reads them in pieces.

    Block Krylov iteration on the covariance; Musco & Musco 2015, algorithm 2.

    Attributes:
        mean: (D,), float64.
        axes: (D, k), orthonormal, of falling variance; the largest weight of each is positive.
        variance: (k,), along each axis.
        total: the variance along all D axes.
    """

    def __init__(self, vectors: Callable[[], Iterable[Tensor]], k: int, *, seed: int = 0) -> None:
        """Find the components.

        Args:
            vectors: returns all vectors in pieces, (n, D), each time from the beginning.
            k: how many; D are found where there are no more.
            seed: of the first directions.
        """
        count, total = 0, torch.zeros(())
        squares = 0.0
        for piece in vectors():
            count += len(piece)
            total = total + piece.double().sum(0)
            squares += float(piece.double().square().sum())
        self.mean = total / count
        self.total = squares / count - float(self.mean.square().sum())
        width = len(self.mean)
        draws = torch.Generator().manual_seed(seed)
        block = torch.randn(width, min(k + _SPARE, width), generator=draws, dtype=torch.float64)
        blocks = []
        for _ in range(_PASSES):
            block = torch.linalg.qr(self._through(vectors, block)).Q
            blocks.append(block)
        basis = torch.linalg.qr(torch.cat(blocks, 1)[:, :width]).Q
        spread = torch.linalg.eigh(basis.T @ self._through(vectors, basis) / count)
        axes = basis @ spread.eigenvectors.flip(1)[:, : min(k, width)]
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        self.axes = axes * torch.where(largest < 0, -1.0, 1.0)
        self.variance = spread.eigenvalues.flip(0)[: self.axes.shape[1]].clamp(min=0)

    def _through(self, vectors: Callable[[], Iterable[Tensor]], basis: Tensor) -> Tensor:
        """Return the scatter matrix times a basis, (D, l)."""
        made = torch.zeros_like(basis)
        for piece in vectors():
            centred = piece.double() - self.mean
            made += centred.T @ (centred @ basis)
        return made

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return vectors, (n, D), in the plane of the axes: (n, k) float32."""
        plane: Tensor = (vectors.double() - self.mean) @ self.axes
        return plane.float()


def tsne(
    features: Tensor,
    *,
    perplexity: float = 30.0,
    seed: int = 0,
    more: Tensor | None = None,
    points: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Lay vectors out in the plane so that near ones stay near, by openTSNE. van der Maaten & Hinton 2008.

    Args:
        features: (N, D); of more than 50 values the first 50 principal components are taken.
        perplexity: about how many neighbours count.
        seed: of the random numbers.
        more: (M, D), placed into the map of `features` without moving it.
        points: (N, 2), the map of `features`, where it is known already.
        progress: called with iterations done and their total; may raise to cancel.

    Returns:
        (N, 2), or (M, 2) where more was given.

    Raises:
        InputError: openTSNE is not installed, or there are too few vectors.
    """
    try:
        from openTSNE import TSNE, TSNEEmbedding, affinity
    except ImportError as error:
        raise InputError("t-SNE needs openTSNE; pip install 'cnnviz[maps]', or take method='pca'") from error
    if len(features) < 4:
        raise InputError(f"t-SNE needs at least 4 images, got {len(features)}; take method='pca'")
    if not 1 <= perplexity <= (len(features) - 1) / 3:
        limit = (len(features) - 1) / 3
        raise OptionError(f"perplexity: got {perplexity:g}, expected 1 to {limit:.3g} for {len(features)} images")
    axes = Principal(lambda: [features], min(_COMPONENTS, len(features) - 1), seed=seed)
    plain = axes(features).double().numpy()
    settings: dict[str, Any] = {"random_state": seed % 2**32, "n_jobs": torch.get_num_threads()}
    done = 0

    def told(*_: Any) -> None:
        nonlocal done
        done = min(done + _EVERY, _ITERATIONS)
        if progress is not None:
            progress(done, _ITERATIONS)

    if points is None:
        watched = {"callbacks": told, "callbacks_every_iters": _EVERY}
        made = TSNE(perplexity=perplexity, initialization="pca", **settings, **watched).fit(plain)
    else:
        near = affinity.PerplexityBasedNN(plain, perplexity=perplexity, **settings)
        made = TSNEEmbedding(points.double().numpy(), near, **settings)
    if more is None:
        return _single(made)
    before = made[:1].copy()
    placed = made.transform(axes(more).double().numpy(), perplexity=min(_NEAR, perplexity))
    return _single(placed + (before - made[:1]))  # transform() moves the map, and what it places, to the middle


def _single(values: Any) -> Tensor:
    return torch.from_numpy(numpy.array(values, dtype=numpy.float32))


def lay_out(
    index: Index,
    method: Literal["tsne", "pca"] = "tsne",
    *,
    layer: str | None = None,
    perplexity: float = 30.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Lay out all images of an index and keep their places in its folder; images added since are placed among them.

    Args:
        index: the images.
        method: "tsne" or "pca".
        layer: whose features; the index's last layer by default.
        perplexity: of t-SNE.
        seed: of the random numbers.
        progress: called with steps done and their total; may raise to cancel.

    Returns:
        (N, 2).
    """
    known = index.points(method, layer, perplexity=perplexity, seed=seed)
    features = index.features(layer)
    if known is not None and len(known) == len(features):
        return known
    if method == "pca":
        axes = Principal(lambda: [features if known is None else features[: len(known)]], 2, seed=seed)
        points = axes(features)
    else:
        old = features if known is None else features[: len(known)]
        more = None if known is None else features[len(known) :]
        made = tsne(old, perplexity=perplexity, seed=seed, more=more, points=known, progress=progress)
        points = made if known is None else torch.cat([known, made])
    write_tensors(index.points_file(method, layer, perplexity=perplexity, seed=seed), {"points": points}, {})
    return points
