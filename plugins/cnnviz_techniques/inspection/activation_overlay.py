"""Where in several images a channel is unusually active."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from cnnviz import Field, Gallery, Options, Request, Technique, hookimpl, render
from cnnviz.index import exact_quantile

from ..behaviour.collection import INDEX, chosen, last_layer, of_maps, open_index, pictures, strongest

_FIRST = 4
_TILE = 128  # pixels
_EDGE = torch.tensor([1.0, 0.85, 0.0], device="cpu")[:, None, None]


class ActivationOverlayOptions(Options):
    """Options of `activation-overlay`."""

    channels: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description=f"numbers of the channels to show; the first {_FIRST} where none are named"
    )
    quantile: float = Field(
        0.995, gt=0, lt=1, description="share of a channel's values over the data set that the region exceeds"
    )
    top: int = Field(6, ge=1, le=64, description="images of an index that are shown for each channel, strongest first")
    index: str | None = INDEX


def activation_overlay(request: Request, options: ActivationOverlayOptions) -> Gallery:
    """Regions of several images where a channel is above its top quantile over a data set.

    The data set is an index, or the images that were given themselves. One picture for each channel, (M, 3, h, w): the
    images that were given, or those of the index that excite it most, dark outside of the region; activations are
    resized to the image, bilinear. `rows` are the channels' numbers, `values` (M, K, h, w) the activations. Bau 2017,
    figure 3 and section 2.2.
    """
    index = None if request.given and options.index is None else open_index(request, options.index)
    every = _maps(request, request.inputs) if request.given else torch.empty(0, device="cpu")
    if index is None:
        limits = exact_quantile(every.transpose(0, 1).flatten(1), options.quantile)
    else:
        limits = index.threshold(options.quantile, request.layer)
    channels = chosen(request, options.channels, len(limits), _FIRST)
    shown_of = None  # rows of the index, (top, C)
    if index is not None and not request.given:
        shown_of = strongest(request, index, options.top).places[: options.top, :, 0]
    images, values = [], []
    for number, channel in enumerate(channels):
        share = (number / len(channels), (number + 1) / len(channels))
        if index is None or shown_of is None:
            shown, maps = request.pictures, every[:, channel]
        else:
            shown = pictures(request, index, shown_of[:, channel].tolist())
            inputs = request.normalisation.normalise(shown).to(request.example)
            maps = _maps(request, inputs, share)[:, channel]
        images.append(_picture(shown, maps, float(limits[channel])))
        values.append(maps)
    captions = tuple(
        f"channel {channel} of {request.layer}, above {limits[channel]:.3g} (top {100 * (1 - options.quantile):.3g} %)"
        for channel in channels
    )
    return Gallery(
        images=torch.stack(images),
        rows=torch.tensor(channels, device="cpu"),
        values=torch.stack(values),
        captions=captions,
    )


def _maps(request: Request, inputs: Tensor, share: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Return the layer's maps of some inputs, (N, C, h, w)."""
    return torch.cat(of_maps(request, inputs, lambda maps, _: maps.float().cpu(), share=share))


def _picture(shown: Tensor, maps: Tensor, limit: float) -> Tensor:
    """Lay the images out, (N, 3, h, w), dark where the maps, (N, h, w), are not above the limit."""
    factor = _TILE / max(shown.shape[2:])
    size = [max(1, round(factor * side)) for side in shown.shape[2:]]
    inside = functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False) > limit
    edge = functional.max_pool2d(inside.float(), 3, 1, 1) > inside
    shown = render.resize(shown, size).clamp(0, 1)
    lit = torch.where(inside, shown, 0.25 * shown)
    tiles = [render.to_pil(picture) for picture in torch.where(edge, _EDGE, lit)]
    return render.to_tensor(render.grid(tiles, columns=min(len(tiles), 6)))


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "activation-overlay",
            activation_overlay,
            ActivationOverlayOptions,
            family="inspection",
            inputs="any",
            layers="one",
            default_layer=last_layer,
        )
    )
