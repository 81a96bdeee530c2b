"""Grad-CAM with weights for several objects of one class."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnviz import Request, Technique, hookimpl

from .grad_cam import GradCamOptions, precise, weighted_sum


def grad_cam_plus_plus(request: Request, options: GradCamOptions) -> Tensor:
    """Weight each activation map by its positive gradients, each by its share in the score, and add up.

    (N, C, H, W) -> (N, 1, h, w) of the layer, resized to the input by the framework. Chattopadhay 2018, equations 5
    and 19, for the exponential of the score, whose own factor, the same at every place, is left out.
    """
    maps, slope = request.layer_gradient()
    total, slope = precise(maps).sum((2, 3), keepdim=True), precise(slope)
    below = 2 + total * slope  # both sides of equation 19 by the square of the slope
    share = torch.where(below == 0, 0, 1 / torch.where(below == 0, 1, below))
    weight = (share * slope.relu()).sum((2, 3), keepdim=True)
    return weighted_sum(maps, weight, options)


@hookimpl
def cnnviz_techniques(register):
    register(Technique("grad-cam++", grad_cam_plus_plus, GradCamOptions, family="attribution", layers="many"))
