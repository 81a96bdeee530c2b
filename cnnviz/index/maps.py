"""Features laid out in the plane: principal components and t-SNE."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy
import torch
from torch import Tensor

from ..errors import InputError, OptionError, SaveError
from .part import write_tensors
from .store import Index

_SPARE: Final = 10  # directions more than are asked for, so that those are exact
_PASSES: Final = 6  # over the data
_COMPONENTS: Final = 50  # that t-SNE sees
_ITERATIONS: Final = 750  # of openTSNE's own schedule
_EVERY: Final = 10  # of them between two looks at progress
_NEAR: Final = 5.0  # neighbours that decide where an image is placed in a map that stays


@dataclass(frozen=True)
class Principal:
    """Principal components of vectors.

    Attributes:
        mean: (D,), float64.
        axes: (D, k), orthonormal, of falling variance; the largest weight of each is positive.
        variance: (k,), along each axis.
        total: (), the variance along all D axes.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor
    total: Tensor

    @classmethod
    def of(cls, vectors: Callable[[], Iterable[Tensor]], k: int, *, seed: int = 0) -> Principal:
        """Find components by a randomised method that reads vectors in pieces.

        Block Krylov iteration on the covariance; Musco & Musco 2015, algorithm 2.

        Args:
            vectors: returns all vectors in pieces, (n, D), each time from the beginning.
            k: how many; D are found where there are no more.
            seed: of the first directions.
        """
        count, total, squares = 0, torch.zeros((), device="cpu"), torch.zeros((), dtype=torch.float64, device="cpu")
        for piece in vectors():
            count += len(piece)
            total = total + piece.double().sum(0)
            squares += piece.double().square().sum()
        mean = total / count
        width = len(mean)
        draws = torch.Generator().manual_seed(seed)
        block = torch.randn(width, min(k + _SPARE, width), generator=draws, dtype=torch.float64, device="cpu")
        blocks = []
        for _ in range(_PASSES):
            block = torch.linalg.qr(_scattered(vectors, mean, block)).Q
            blocks.append(block)
        basis = torch.linalg.qr(torch.cat(blocks, 1)[:, :width]).Q
        spread = torch.linalg.eigh(basis.T @ _scattered(vectors, mean, basis) / count)
        axes = basis @ spread.eigenvectors.flip(1)[:, : min(k, width)]
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        axes = axes * torch.where(largest < 0, -1.0, 1.0)
        variance = spread.eigenvalues.flip(0)[: axes.shape[1]].clamp(min=0)
        return cls(mean, axes, variance, squares / count - mean.square().sum())

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return vectors, (n, D), along the axes: (n, k) float32."""
        along: Tensor = (vectors.double() - self.mean) @ self.axes
        return along.float()

    def plane(self, vectors: Tensor) -> Tensor:
        """Return vectors, (n, D), along the first two axes: (n, 2); 0 along one that there is not."""
        along = self(vectors)[:, :2]
        return torch.nn.functional.pad(along, (0, 2 - along.shape[1]))


def _scattered(vectors: Callable[[], Iterable[Tensor]], mean: Tensor, basis: Tensor) -> Tensor:
    """Return the scatter matrix times a basis, (D, l)."""
    made = torch.zeros_like(basis)
    for piece in vectors():
        centred = piece.double() - mean
        made += centred.T @ (centred @ basis)
    return made


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
    axes = Principal.of(lambda: [features], min(_COMPONENTS, len(features) - 1), seed=seed)
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
    old = features if known is None else features[: len(known)]
    more = None if known is None else features[len(known) :]
    kept: dict[str, Tensor] = {}
    if method == "pca":
        axes = axes_of(index, old, seed=seed, layer=layer)
        made, kept = axes.plane(old if more is None else more), vars(axes)
    else:
        made = tsne(old, perplexity=perplexity, seed=seed, more=more, points=known, progress=progress)
    points = made if known is None else torch.cat([known, made])
    kept = {"points": points, **kept}
    file = index.points_file(method, layer, perplexity=perplexity, seed=seed)
    try:
        write_tensors(file, kept, {})
    except SaveError as error:
        warnings.warn(f"images that are added later will move the others on the map: {error}", stacklevel=2)
    return points


def axes_of(index: Index | None, features: Tensor, *, seed: int, layer: str | None) -> Principal:
    """Return the axes of an index's map, or of features where it has none."""
    kept = None if index is None else index.kept_map("pca", layer, seed=seed)
    if kept is not None:
        return Principal(**{name: tensor for name, tensor in kept.items() if name != "points"})
    return Principal.of(lambda: [features], 2, seed=seed)


def place(
    index: Index | None,
    method: Literal["tsne", "pca"],
    features: Tensor,
    more: Tensor | None = None,
    points: Tensor | None = None,
    *,
    perplexity: float = 30.0,
    seed: int = 0,
    layer: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return the map of features, (N, 2), or where more of them, (M, D), are in the map that the others have.

    See `tsne` and `Principal` for arguments and errors.
    """
    if method == "tsne":
        return tsne(features, perplexity=perplexity, seed=seed, more=more, points=points, progress=progress)
    return axes_of(index, features, seed=seed, layer=layer).plane(features if more is None else more)
