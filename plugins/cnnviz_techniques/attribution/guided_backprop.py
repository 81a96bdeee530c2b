"""Guided backpropagation."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnviz import Options, Request, Technique, hookimpl, relu_rule


class GuidedBackpropOptions(Options):
    """`guided-backprop` has no options."""


def guided_backprop(request: Request, options: GuidedBackpropOptions) -> Tensor:
    """Gradient that passes a ReLU only where both its input and the arriving gradient are positive.

    Signed, (N, C, H, W) -> (N, C, H, W); for a class, a channel or one neuron of any layer. Sharp, but known to depend
    little on the class and on the upper layers' weights (Adebayo 2018). Springenberg 2015, figure 1.
    """
    x = request.inputs.detach().requires_grad_()
    with relu_rule("guided"):
        score = request.score(x)
    (gradient,) = torch.autograd.grad(score.sum(), x)
    return gradient


@hookimpl
def cnnviz_techniques(register):
    register(Technique("guided-backprop", guided_backprop, GuidedBackpropOptions, family="attribution"))
