"""Gradient-weighted class activation maps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, Options, Request, Technique, hookimpl


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
    maps, slope = request.layer_gradient()
    return weighted_sum(maps, precise(slope).mean((2, 3), keepdim=True), options)


def precise(values: Tensor) -> Tensor:
    """Return numbers in single precision at least: means of half precision lose small ones."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def weighted_sum(maps: Tensor, weight: Tensor, options: GradCamOptions) -> Tensor:
    """Add weighted maps up, and keep what is positive if asked: (N, C, h, w) -> (N, 1, h, w)."""
    heat = (weight * precise(maps)).sum(1, keepdim=True).to(maps.dtype)
    return heat.relu() if options.relu else heat


@hookimpl
def cnnviz_techniques(register):
    register(Technique("grad-cam", grad_cam, GradCamOptions, family="attribution", layers="many"))
