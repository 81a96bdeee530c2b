"""Class activation maps with a weight for every place, for shallow layers too."""

from __future__ import annotations

from torch import Tensor

from cnnviz import Request, Technique, hookimpl

from .grad_cam import GradCamOptions, weighted_sum


def layer_cam(request: Request, options: GradCamOptions) -> Tensor:
    """Weight each place of each activation map by its own positive gradient, add up, and keep what is positive.

    (N, C, H, W) -> (N, 1, h, w) of the layer, resized to the input by the framework. Jiang 2021, equations 4 to 6;
    several layers are fused by their mean.
    """
    maps, slope = request.layer_gradient()
    return weighted_sum(maps, slope.relu(), options)


@hookimpl
def cnnviz_techniques(register):
    register(Technique("layer-cam", layer_cam, GradCamOptions, family="attribution", layers="many"))
