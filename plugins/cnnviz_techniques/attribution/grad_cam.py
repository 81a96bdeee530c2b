"""Gradient-weighted class activation maps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, LayerError, Options, Request, Technique, capture, hookimpl


class GradCamOptions(Options):
    """Options of `grad-cam`."""

    relu: bool = Field(True, description="keep only what speaks for the target")
    upsample: Literal["bilinear"] | None = Field(
        "bilinear", description="resize the map to the input; none leaves it at the layer's size"
    )


def grad_cam(request: Request, options: GradCamOptions) -> Tensor:
    """Weight each activation map of a layer by its mean gradient, add them up, and keep what is positive.

    (N, C, H, W) -> (N, 1, h, w) of the layer, resized to the input by the framework. Works for any differentiable
    target. Selvaraju 2017, equations 1 and 2.
    """
    with capture(request.model, request.layer, grad=True) as seen:  # the graph starts at the layer
        score = request.score()
    maps = seen.output
    if not isinstance(maps, Tensor) or maps.dim() != 4:
        shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise LayerError(f"layer '{request.layer}' returns {shape}, expected maps (N, C, h, w); name a spatial layer")
    if not score.requires_grad:
        raise LayerError(f"the target does not depend on layer '{request.layer}'; name a layer before it")
    (slope,) = torch.autograd.grad(score.sum(), maps)
    heat = (slope.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True)
    return heat.relu() if options.relu else heat


@hookimpl
def cnnviz_techniques(register):
    register(Technique("grad-cam", grad_cam, GradCamOptions, family="attribution", layers="many"))
