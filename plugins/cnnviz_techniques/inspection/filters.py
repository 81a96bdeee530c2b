"""Weights of a convolution as pictures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cnnviz import Field, Gallery, LayerError, Options, Request, Technique, hookimpl


class FiltersOptions(Options):
    """Options of `filters`."""

    scale: Literal["each", "all"] = Field(
        "each", description="stretch the contrast of each filter by itself, or of all by the largest weight"
    )
    slices: int = Field(
        16, ge=1, le=4096, description="of a filter over more than 3 channels, how many of its channels are shown"
    )


def filters(request: Request, options: FiltersOptions) -> Gallery:
    """Weights of a convolution as pictures: in colour where it looks at three channels, else one picture a channel.

    Zero is grey. `images` are (M, 3, kh, kw), `values` the raw weights (M, 3 or 1, kh, kw), `rows` the filter's number.
    Krizhevsky 2012, figure 3.
    """
    name = str(request.layer).partition("#")[0]
    convolution = request.model.get_submodule(name)
    if not isinstance(convolution, nn.Conv2d):
        raise LayerError(f"layer '{name}' is {type(convolution).__name__}, expected nn.Conv2d; name a convolution")
    weight = convolution.weight.detach()
    count, channels = weight.shape[:2]
    rows = torch.arange(count, device=weight.device)
    if channels == 3:
        values = weight
    else:
        values = weight[:, : options.slices].reshape(-1, 1, *weight.shape[2:])
        rows = rows.repeat_interleave(min(channels, options.slices))
    shown = f", channels 0 to {options.slices - 1} of {channels}" if channels > options.slices and channels != 3 else ""
    caption = f"filters of {name}: {count} of {channels} x {weight.shape[2]} x {weight.shape[3]}{shown}"
    return Gallery(images=_pictures(values, options.scale), rows=rows, values=values.clone(), captions=(caption,))


def _pictures(values: Tensor, scale: str) -> Tensor:
    magnitude = values.abs().amax((1, 2, 3), keepdim=True) if scale == "each" else values.abs().max()
    centred = values / magnitude.clamp(min=torch.finfo(values.dtype).tiny)
    return (0.5 + 0.5 * centred).float().clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "filters",
            filters,
            FiltersOptions,
            family="inspection",
            inputs="none",
            layers="one",
            default_layer="first-convolution",
        )
    )
