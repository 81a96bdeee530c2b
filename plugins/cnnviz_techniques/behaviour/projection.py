"""A map of images on which near means alike to the network."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from cnnviz import Field, Options, Projection, Request, Technique, hookimpl
from cnnviz.index import place, thumbnails

from .collection import INDEX, features, last_layer, open_index

_SHOWN = 20_000  # images of an index whose small pictures are shown


class ProjectionOptions(Options):
    """Options of `projection`."""

    method: Literal["pca", "tsne"] = Field("pca", description="principal components, or t-SNE (cnnviz[maps])")
    perplexity: float = Field(30.0, ge=1, le=1000, description="about how many neighbours count for t-SNE")
    index: str | None = INDEX


def project(request: Request, options: ProjectionOptions) -> Projection:
    """Map of images by what a layer returns for them: points (M, 2), with small pictures.

    Features are the means of the layer's maps. Images that are given beside an index are placed into its map, after
    its own, and framed; otherwise they are the map. van der Maaten & Hinton 2008; Karpathy 2014.
    """
    own = features(request, share=(0.0, 0.5)) if request.given else torch.empty(0, device="cpu")
    caption = f"{options.method} of {request.layer}"
    seed = request.generator.initial_seed()
    lay = partial(
        place,
        method=options.method,
        perplexity=options.perplexity,
        seed=seed,
        progress=lambda done, total: request.advance(done, total, (0.5, 1.0)),
    )
    if request.given and options.index is None:
        return Projection(points=lay(None, features=own), captions=(f"{caption}, {len(own)} images",))
    index = open_index(request, options.index)
    known, items = index.features(request.layer), index.ids
    points = index.points(options.method, request.layer, perplexity=options.perplexity, seed=seed)
    if points is None or len(points) < len(known):
        points = lay(index, features=known, layer=request.layer)
    shown = index.thumbnails() if len(index) <= _SHOWN else None
    if request.given:
        points = torch.cat([points, lay(index, features=known, more=own, points=points, layer=request.layer)])
        items = (*items, *(f"image {i}" for i in range(len(own))))
        if shown is not None:
            small = thumbnails((request.pictures * 255).round().byte(), shown.shape[-1])
            shown = torch.cat([shown, small])
    return Projection(
        points=points,
        items=items,
        pictures=None if shown is None else shown.float() / 255,
        marked=tuple(range(len(known), len(points))),
        captions=(f"{caption}, {len(points)} images",),
    )


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "projection",
            project,
            ProjectionOptions,
            family="behaviour",
            inputs="any",
            layers="one",
            default_layer=last_layer,
        )
    )
