"""The image patches that excite a channel most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from cnnviz import (
    Field,
    Gallery,
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
from cnnviz.index import Index, Strongest
from cnnviz.ops import crop_patches

from .collection import INDEX, chosen, last_layer, of_maps, open_index, pictures, strongest

_FIRST = 16
_TILE = 96
_GAP = 12


class TopPatchesOptions(Options):
    """Options of `top-patches`."""

    channels: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description=f"numbers of the channels to show; the first {_FIRST} where none are named"
    )
    top: int = Field(9, ge=1, le=100, description="how many images are shown for each channel")
    index: str | None = INDEX
    projection: Literal["none", "deconvnet", "guided"] = Field(
        "none", description="show beside each patch what in it excites the unit, by this rule at each ReLU"
    )


def top_patches(request: Request, options: TopPatchesOptions) -> Gallery:
    """Image patches that excite a channel most, and what in them does so.

    Of each image the channel's strongest unit counts. What this unit can see is cut out: its receptive field, or the
    whole image where the field is larger or unknown. One picture for each channel, (M, 3, h, w): its strongest patches,
    strongest first, and beside them their projections, each with its own contrast. `rows` are the channels' numbers,
    `values` (M, K, 4) each unit's activation, image, row and column. Images given are all held in memory; of an index
    those that are shown. Zeiler & Fergus 2014, figure 2; Springenberg 2015, figure 3.
    """
    if request.given and options.index is not None:
        raise OptionError("option 'index': got images as well; give one of the two")
    index = None if request.given else open_index(request, options.index)
    units = _strongest(request, options.top) if index is None else strongest(request, index, options.top)
    channels = torch.tensor(chosen(request, options.channels, units.values.shape[1], _FIRST), device="cpu")
    values = units.values.T[channels, : options.top]  # (M, K)
    places = units.places.transpose(0, 1)[channels, : options.top]  # (M, K, 3)
    inputs, shown, image = _looked_at(request, index, places[..., 0].flatten())
    unit = places[..., 1:].flatten(0, 1)
    corners, size = _fields(request, inputs, unit)
    cut = [crop_patches(shown, image, corners, size, pad=0.5)]
    if options.projection != "none":
        of = channels.repeat_interleave(values.shape[1])
        slopes = _slopes(request, options.projection, inputs[image], of, unit, (corners, size))
        cut.append(torch.stack([render.Scale.of(slope).unit(slope) for slope in slopes]))
    rows = zip(*(patches.unflatten(0, values.shape) for patches in cut), strict=True)
    captions = tuple(
        f"channel {channel} of {request.layer}: {row[0]:.3g} to {row[-1]:.3g}"
        for channel, row in zip(channels.tolist(), values.tolist(), strict=True)
    )
    return Gallery(
        images=torch.stack([_picture(row) for row in rows]),
        rows=channels,
        values=torch.cat([values[..., None], places], 2),
        captions=captions,
    )


def _strongest(request: Request, top: int) -> Strongest:
    """Return the images' strongest units."""
    parts = of_maps(request, request.inputs, Strongest.of, share=(0.0, 0.5))
    return Strongest.merged(parts, min(top, len(request.inputs)))


def _looked_at(request: Request, index: Index | None, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return images as inputs and as pictures, and the place of each row, (K,), among them."""
    if index is None:
        return request.inputs, request.pictures, rows
    wanted, image = rows.unique(return_inverse=True)
    shown = pictures(request, index, wanted.tolist())
    return request.normalisation.normalise(shown).to(request.example), shown, image


def _fields(request: Request, inputs: Tensor, units: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return where each unit's receptive field begins, (K, 2), and the size of all of them in pixels."""
    name = str(request.layer)
    (layer,) = (layer for layer in layers(request.model, inputs[:1]) if layer.name == name)
    image = torch.tensor(inputs.shape[2:], device="cpu")
    field = layer.receptive_field
    if field is None:
        return torch.zeros_like(units), (int(image[0]), int(image[1]))
    begin = torch.tensor(field.start, device="cpu") + units * torch.tensor(field.stride, device="cpu")
    height, width = torch.minimum(torch.tensor(field.size, device="cpu"), image).tolist()
    # A field that is larger than the image shows the whole image.
    return torch.where(torch.tensor(field.size, device="cpu") >= image, 0, begin), (height, width)


def _slopes(
    request: Request,
    rule: Literal["deconvnet", "guided"],
    inputs: Tensor,
    channel: Tensor,
    unit: Tensor,
    fields: tuple[Tensor, tuple[int, int]],
) -> Tensor:
    """Return each unit's gradient in its field, in colour, (K, 3, h, w)."""
    corners, size = fields

    def part(start: int, stop: int) -> Tensor:
        x = inputs[start:stop].detach().requires_grad_()
        with relu_rule(rule), capture(request.model, str(request.layer), stop=True) as seen:
            request.model(x.clone())
        maps: Any = seen.output
        score = maps[range(len(x)), channel[start:stop], unit[start:stop, 0], unit[start:stop, 1]].sum()
        (slope,) = torch.autograd.grad(score, x)
        request.advance(stop, len(inputs), (0.5, 1.0))
        coloured = slope if slope.shape[1] == 3 else slope.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return crop_patches(coloured.float().cpu(), torch.arange(len(x), device="cpu"), corners[start:stop], size)

    return torch.cat(request.batched(part, len(inputs), backward=True, example=inputs[:1]))


def _picture(sets: Sequence[Tensor]) -> Tensor:
    """Lay the patches of one channel out, (K, 3, h, w), and beside them their projections: (3, h, w)."""
    grids = [render.grid([render.to_pil(patch) for patch in patches], tile=_TILE) for patches in sets]
    whole = render.grid(grids, columns=len(grids), gap=_GAP)
    return render.to_tensor(whole)


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "top-patches",
            top_patches,
            TopPatchesOptions,
            family="behaviour",
            inputs="any",
            layers="one",
            default_layer=last_layer,
        )
    )
