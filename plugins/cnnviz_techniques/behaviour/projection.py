"""A map of images on which near means alike to the network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, Options, Projection, Request, Technique, hookimpl
from cnnviz.index import Principal, thumbnails, tsne

from .collection import INDEX, features, open_index


class ProjectionOptions(Options):
    """Options of `projection`."""

    method: Literal["pca", "tsne"] = Field("pca", description="principal components, or t-SNE (cnnviz[maps])")
    perplexity: float = Field(30.0, ge=1, le=1000, description="about how many neighbours count for t-SNE")
    index: str | None = INDEX


def project(request: Request, options: ProjectionOptions) -> Projection:
    """Map of images by what a layer returns for them: points (M, 2), with small pictures.

    Features are the means of the layer's maps. Images that are given beside an index are placed into its map, after
    its own; otherwise they are the map. van der Maaten & Hinton 2008; Karpathy 2014.
    """
    own = features(request, share=(0.0, 0.5)) if request.given else torch.empty(0)
    caption = f"{options.method} of {request.layer}"
    if request.given and options.index is None:
        return Projection(points=_laid_out(request, options, own), captions=(f"{caption}, {len(own)} images",))
    index = open_index(request, options.index)
    known, items, seed = index.features(request.layer), index.ids, request.generator.initial_seed()
    points = index.points(options.method, request.layer, perplexity=options.perplexity, seed=seed)
    if points is None or len(points) < len(known):
        points = _laid_out(request, options, known)
    shown = index.thumbnails()
    if request.given:
        points = torch.cat([points, _laid_out(request, options, known, own, points)])
        small = thumbnails((request.pictures * 255).round().byte(), shown.shape[-1])
        shown, items = torch.cat([shown, small]), (*items, *(f"image {i}" for i in range(len(own))))
    return Projection(
        points=points, items=items, pictures=shown.float() / 255, captions=(f"{caption}, {len(points)} images",)
    )


def _laid_out(
    request: Request,
    options: ProjectionOptions,
    vectors: Tensor,
    more: Tensor | None = None,
    points: Tensor | None = None,
) -> Tensor:
    """Return the map of vectors, or where more of them are in it, (M, 2)."""
    if options.method == "pca":
        axes = Principal(lambda: [vectors], 2, seed=request.generator.initial_seed())
        made = axes(vectors if more is None else more)
        return torch.nn.functional.pad(made, (0, 2 - made.shape[1]))  # a layer of one channel
    return tsne(
        vectors,
        perplexity=options.perplexity,
        seed=request.generator.initial_seed(),
        more=more,
        points=points,
        progress=lambda done, total: request.advance(done, total, (0.5, 1.0)),
    )


@hookimpl
def cnnviz_techniques(register):
    register(Technique("projection", project, ProjectionOptions, family="behaviour", inputs="any", layers="one"))
