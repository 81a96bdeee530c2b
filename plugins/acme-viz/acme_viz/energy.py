"""Gradient energy: the example that CONTRIBUTING.md walks through."""

from __future__ import annotations

import torch

import cnnviz


class Options(cnnviz.Options):
    """Options of `acme-energy`."""

    power: float = cnnviz.Field(2.0, ge=0.5, le=4, description="exponent of the gradient")


def energy(request: cnnviz.Request, options: Options) -> torch.Tensor:
    """Gradient energy at the input: (N, C, H, W) -> (N, 1, H, W)."""
    x = request.inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(request.score(x).sum(), x)
    return gradient.abs().pow(options.power).sum(1, keepdim=True)


@cnnviz.hookimpl
def cnnviz_techniques(register):
    register(cnnviz.Technique("acme-energy", energy, Options, family="attribution"))
