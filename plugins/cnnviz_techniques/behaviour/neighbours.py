"""The images that a network finds most alike."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, InputError, Neighbours, Options, Request, Technique, hookimpl
from cnnviz.index import Index, nearest, thumbnails

from .collection import INDEX, features, last_layer, open_index, shown

_SIDE = 32


class NeighboursOptions(Options):
    """Options of `neighbours`."""

    index: str | None = INDEX
    k: int = Field(5, ge=1, le=1000, description="how many neighbours of each image")
    metric: Literal["cosine", "euclidean"] = Field("cosine", description="distance of features; pixels are euclidean")
    space: Literal["features", "pixels", "both"] = Field(
        "features", description="compare the layer's features, small pictures, or both, a row for each"
    )


def neighbours(request: Request, options: NeighboursOptions) -> Neighbours:
    """Images nearest to each one, by what a layer returns for them: indices and distances (N, k), nearest first.

    Features are the means of the layer's maps. Neighbours come from an index, or from the images that were given
    themselves, each without itself. With `space="both"` row 2 i has image i's neighbours by features, row 2 i + 1 those
    by its pixels at 32 × 32. Krizhevsky 2012, figure 4.
    """
    spaces = ("features", "pixels") if options.space == "both" else (options.space,)
    index = None if options.index is None else open_index(request, options.index)
    if index is None and request.count < 2:
        raise InputError("one image has no neighbours among itself; give several, or index=FOLDER (cnnviz index build)")
    found = [_nearest(request, options, index, space) for space in spaces]
    distances, indices = (torch.stack(rows, 1).flatten(0, 1) for rows in zip(*found, strict=True))
    k, numbers = indices.shape[1], indices.flatten().tolist()
    if index is None:
        seen, names = request.pictures[numbers], [f"image {row}" for row in numbers]
    else:
        seen, names = shown(request, index, numbers), [index.ids[row] for row in numbers]
    far = [f"{name} ({distance:.3g})" for name, distance in zip(names, distances.flatten().tolist(), strict=True)]
    captions = tuple(
        f"image {row // len(spaces)}, at the left, by {spaces[row % len(spaces)]}: "
        + ", ".join(far[row * k : (row + 1) * k])
        for row in range(len(indices))
    )
    return Neighbours(
        indices=indices,
        distances=distances,
        found=seen.unflatten(0, tuple(indices.shape)),
        captions=captions,
        pictures=request.pictures.repeat_interleave(len(spaces), 0),
    )


def _nearest(request: Request, options: NeighboursOptions, index: Index | None, space: str) -> tuple[Tensor, Tensor]:
    """Return distances and numbers of each image's neighbours, (N, k)."""
    pixels = space == "pixels"
    if pixels:
        seen = (request.pictures * 255).round().byte()
        values = thumbnails(seen, index.recipe.thumbnail if index else _SIDE).flatten(1) / 255
    else:
        values = features(request)
    metric = "euclidean" if pixels else options.metric
    if index is not None:
        return index.search(values, options.k, metric=metric, layer=request.layer, pixels=pixels)
    return nearest(values, lambda: [values], options.k, metric, skip=torch.arange(len(values), device="cpu"))


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "neighbours",
            neighbours,
            NeighboursOptions,
            family="behaviour",
            inputs="all",
            layers="one",
            default_layer=last_layer,
        )
    )
