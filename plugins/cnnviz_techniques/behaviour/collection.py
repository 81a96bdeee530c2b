"""Images that a technique looks at together: those it was given, or those of an index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from cnnviz import Field, InputError, LayerError, OptionError, Request, capture, render
from cnnviz.index import Index, Strongest

Made = TypeVar("Made")

INDEX = Field(None, description="folder that cnnviz index build wrote; its images are looked at")


def open_index(request: Request, folder: str | None) -> Index:
    """Return the index in a folder, made with the request's model.

    Raises:
        InputError: neither images nor an index were given.
        SaveError: it cannot be read, or was made with another model.
    """
    if folder is None:
        raise InputError("there are neither images nor an index; give inputs, or index=FOLDER (cnnviz index build)")
    index = Index(folder)
    index.check(request.described)
    return index


def last_layer(options: Any) -> str | None:
    """Return the last layer of the index that the options name, None where they name none."""
    return None if options.index is None else Index(options.index).layers[-1]


def strongest(request: Request, index: Index, top: int) -> Strongest:
    """Return the units of an index in which each channel was most active, of at least `top` images.

    Raises:
        OptionError: it keeps fewer.
    """
    if top > index.recipe.top:
        raise OptionError(f"option 'top': got {top}, but the index keeps {index.recipe.top} for each channel")
    return index.strongest(request.layer)


def chosen(request: Request, named: tuple[int, ...], count: int, first: int) -> tuple[int, ...]:
    """Return the channels that were named, of so many; the first ones where none were.

    Raises:
        OptionError: the layer does not have one.
    """
    wrong = [channel for channel in named if channel >= count]
    if wrong:
        told = f"but layer '{request.layer}' has channels 0 to {count - 1}"
        raise OptionError(f"option 'channels': got {wrong[0]}, {told}")
    return named or tuple(range(min(first, count)))


def pictures(request: Request, index: Index, rows: list[int]) -> Tensor:
    """Return what the network saw of images of an index, (n, 3, H, W) in [0, 1].

    Raises:
        InputError: a file is gone, or is another one than was looked at.
    """
    return torch.stack([render.to_tensor(index.picture(row, request.described)) for row in rows])


def shown(request: Request, index: Index, rows: list[int]) -> Tensor:
    """Return pictures of images of an index to look at, (n, 3, H, W): small ones, enlarged, where files are gone."""
    made = {row: render.to_tensor(_picture(request, index, row)) for row in set(rows)}
    return torch.stack([made[row] for row in rows])


def _picture(request: Request, index: Index, row: int) -> Image.Image:
    try:
        return index.picture(row, request.described)
    except InputError:
        height, width = request.described.input_size or (224, 224)
        return index.thumbnail(row).resize((width, height))


def of_maps(
    request: Request,
    inputs: Tensor,
    work: Callable[[Tensor, int], Made],
    *,
    spatial: bool = True,
    share: tuple[float, float] = (0.0, 1.0),
) -> list[Made]:
    """Return what `work` makes of the layer's maps, (n, C, h, w), of some inputs and the number of the first of them.

    Args:
        request: which layer, and of what model.
        inputs: (N, C, H, W).
        work: called with consecutive batches.
        spatial: refuse a layer that returns (N, C) values; otherwise these are maps of one unit.
        share: from where to where progress goes meanwhile.
    """

    def part(start: int, stop: int) -> Made:
        with torch.no_grad(), capture(request.model, str(request.layer), stop=True) as seen:
            request.model(inputs[start:stop].clone())
        maps: Any = seen.output
        if not isinstance(maps, Tensor) or maps.dim() not in ((4,) if spatial else (2, 4)):
            raise LayerError(f"layer '{request.layer}' returns no maps (N, C, h, w); name a spatial layer")
        made = work(maps if maps.dim() == 4 else maps[:, :, None, None], start)
        request.advance(stop, len(inputs), share)
        return made

    return request.batched(part, len(inputs), example=inputs[:1])


def features(request: Request, *, share: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Return the inputs' features, the means of the layer's maps: (N, C)."""
    return torch.cat(
        of_maps(request, request.inputs, lambda maps, _: maps.float().mean((2, 3)).cpu(), spatial=False, share=share)
    )
