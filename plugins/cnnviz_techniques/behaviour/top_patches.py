"""The image patches that excite a channel most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from cnnviz import (
    Field,
    Gallery,
    LayerError,
    OptionError,
    Options,
    Request,
    Technique,
    capture,
    hookimpl,
    layers,
    relu_rule,
    render,
)
from cnnviz.ops import crop_patches

_FIRST = 16
_TILE = 96
_GAP = 12


class TopPatchesOptions(Options):
    """Options of `top-patches`."""

    channels: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description=f"numbers of the channels to show; the first {_FIRST} where none are named"
    )
    top: int = Field(9, ge=1, le=100, description="how many images are shown for each channel")
    projection: Literal["none", "deconvnet", "guided"] = Field(
        "none", description="show beside each patch what in it excites the unit, by this rule at each ReLU"
    )


def top_patches(request: Request, options: TopPatchesOptions) -> Gallery:
    """Image patches that excite a channel most, and what in them does so.

    Of each image the channel's strongest unit counts. What this unit can see is cut out: its receptive field, or the
    whole image where the field is larger or unknown. One picture for each channel, (M, 3, h, w): its strongest patches,
    strongest first, and beside them their projections, each with its own contrast. `rows` are the channels' numbers,
    `values` (M, K, 4) each unit's activation, image, row and column. All images are held in memory. Zeiler & Fergus
    2014, figure 2; Springenberg 2015, figure 3.
    """
    best, places = _strongest(request)
    count = best.shape[1]
    wrong = [channel for channel in options.channels if channel >= count]
    if wrong:
        told = f"but layer '{request.layer}' has channels 0 to {count - 1}"
        raise OptionError(f"option 'channels': got {wrong[0]}, {told}")
    channels = torch.tensor(options.channels or range(min(_FIRST, count)))
    top = best[:, channels].T.topk(min(options.top, len(best)), 1)
    units = places[top.indices, channels[:, None]]  # (M, K, 2)
    image, unit = top.indices.flatten(), units.flatten(0, 1)
    corners, size = _fields(request, unit)
    cut = [crop_patches(request.pictures, image, corners, size, pad=0.5)]
    if options.projection != "none":
        of = channels.repeat_interleave(top.indices.shape[1])
        slopes = _slopes(request, options.projection, of, image, unit, (corners, size))
        cut.append(torch.stack([render.Scale.of(slope).unit(slope) for slope in slopes]))
    rows = zip(*(patches.unflatten(0, top.indices.shape) for patches in cut), strict=True)
    captions = tuple(
        f"channel {channel} of {request.layer}: {row[0]:.3g} to {row[-1]:.3g}"
        for channel, row in zip(channels.tolist(), top.values.tolist(), strict=True)
    )
    return Gallery(
        images=torch.stack([_picture(row) for row in rows]),
        rows=channels,
        values=torch.cat([top.values[..., None], top.indices[..., None], units], 2),
        captions=captions,
    )


def _strongest(request: Request) -> tuple[Tensor, Tensor]:
    """Return each channel's largest activation in each image, (N, C), and its row and column, (N, C, 2)."""

    def part(start: int, stop: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), capture(request.model, str(request.layer), stop=True) as seen:
            request.model(request.inputs[start:stop].clone())
        maps: Any = seen.output
        if not isinstance(maps, Tensor) or maps.dim() != 4:
            raise LayerError(f"layer '{request.layer}' returns no maps (N, C, h, w); name a spatial layer")
        found = maps.flatten(2).max(2)
        request.progress(stop, 2 * len(request.inputs))
        rows, columns = found.indices // maps.shape[3], found.indices % maps.shape[3]
        return found.values.float().cpu(), torch.stack([rows, columns], 2).cpu()

    parts = request.batched(part, len(request.inputs))
    return torch.cat([values for values, _ in parts]), torch.cat([places for _, places in parts])


def _fields(request: Request, units: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return where each unit's receptive field begins, (K, 2), and the size of all of them in pixels."""
    name = str(request.layer)
    (layer,) = (layer for layer in layers(request.model, request.inputs[:1]) if layer.name == name)
    image = torch.tensor(request.inputs.shape[2:])
    field = layer.receptive_field
    if field is None:
        return torch.zeros_like(units), (int(image[0]), int(image[1]))
    begin = torch.tensor(field.start) + units * torch.tensor(field.stride)
    height, width = torch.minimum(torch.tensor(field.size), image).tolist()
    # A field that is larger than the image shows the whole image.
    return torch.where(torch.tensor(field.size) >= image, 0, begin), (height, width)


def _slopes(
    request: Request,
    rule: Literal["deconvnet", "guided"],
    channel: Tensor,
    image: Tensor,
    unit: Tensor,
    fields: tuple[Tensor, tuple[int, int]],
) -> Tensor:
    """Return each unit's gradient in its field, in colour, (K, 3, h, w)."""
    corners, size = fields

    def part(start: int, stop: int) -> Tensor:
        x = request.inputs[image[start:stop]].detach().requires_grad_()
        with relu_rule(rule), capture(request.model, str(request.layer), stop=True) as seen:
            request.model(x.clone())
        maps: Any = seen.output
        score = maps[range(len(x)), channel[start:stop], unit[start:stop, 0], unit[start:stop, 1]].sum()
        (slope,) = torch.autograd.grad(score, x)
        request.progress(len(image) + stop, 2 * len(image))
        coloured = slope if slope.shape[1] == 3 else slope.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return crop_patches(coloured.float().cpu(), torch.arange(len(x)), corners[start:stop], size)

    return torch.cat(request.batched(part, len(image), backward=True))


def _picture(sets: Sequence[Tensor]) -> Tensor:
    """Lay the patches of one channel out, (K, 3, h, w), and beside them their projections: (3, h, w)."""
    grids = [render.grid([render.to_pil(patch) for patch in patches], tile=_TILE) for patches in sets]
    whole = render.grid(grids, columns=len(grids), gap=_GAP)
    return render.to_tensor(whole)


@hookimpl
def cnnviz_techniques(register):
    register(Technique("top-patches", top_patches, TopPatchesOptions, family="behaviour", inputs="all", layers="one"))
