"""Zeiler and Fergus' deconvolutional network."""

from __future__ import annotations

from torch import Tensor

from cnnviz import Request, Technique, hookimpl

from .smooth import SmoothOptions, smooth_gradient


def deconvnet(request: Request, options: SmoothOptions) -> Tensor:
    """Project the score back to the input, keeping only what is positive at each ReLU of the way back.

    Signed, (N, C, H, W) -> (N, C, H, W); max pooling passes through its switches. For a class, a channel or one neuron
    of any layer. Zeiler & Fergus 2014, section 2.1.

    The image has a say through max pooling's switches alone: a network without max pooling (MobileNet, EfficientNet)
    shows nearly the same pattern for every image (Springenberg 2015, section 4).
    """
    return smooth_gradient(request, options, "deconvnet")


@hookimpl
def cnnviz_techniques(register):
    register(Technique("deconvnet", deconvnet, SmoothOptions, family="attribution"))
