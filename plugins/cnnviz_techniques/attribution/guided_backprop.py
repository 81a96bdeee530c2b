"""Guided backpropagation."""

from __future__ import annotations

from torch import Tensor

from cnnviz import Request, Technique, hookimpl

from .smooth import SmoothOptions, smooth_gradient


def guided_backprop(request: Request, options: SmoothOptions) -> Tensor:
    """Gradient that passes a ReLU only where both its input and the arriving gradient are positive.

    Signed, (N, C, H, W) -> (N, C, H, W); for a class, a channel or one neuron of any layer. Sharp, but known to depend
    little on the class and on the upper layers' weights (Adebayo 2018): the map of a photograph by the embedded model
    has a rank correlation of 0.39 with maps by the same network with random weights; `saliency` has 0.05, `grad-cam`
    0.11 and `occlusion` 0.00. Springenberg 2015, figure 1.
    """
    return smooth_gradient(request, options, "guided")


@hookimpl
def cnnviz_techniques(register):
    register(Technique("guided-backprop", guided_backprop, SmoothOptions, family="attribution"))
