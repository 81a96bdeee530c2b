"""Activation maps of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnviz import LayerError, Options, Request, Technique, capture, hookimpl


class ActivationsOptions(Options):
    """`activations` has no options."""


def activations(request: Request, options: ActivationsOptions) -> Tensor:
    """What a layer returns for the image, channel by channel.

    (N, C, H, W) -> (N, c, h, w) of the layer, as it returned it, whatever a later in-place operation made of it.
    Yosinski 2015.
    """
    with torch.no_grad(), capture(request.model, request.layer, stop=True) as seen:
        request.model(request.inputs.clone())
    maps = seen.output
    if not isinstance(maps, Tensor) or maps.dim() != 4:
        shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise LayerError(f"layer '{request.layer}' returns {shape}, expected maps (N, C, h, w); name a spatial layer")
    return maps


@hookimpl
def cnnviz_techniques(register):
    register(Technique("activations", activations, ActivationsOptions, family="inspection", layers="one"))
