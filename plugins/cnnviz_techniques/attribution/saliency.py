"""Gradient of the score at the input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, Options, Request, Technique, hookimpl


class SaliencyOptions(Options):
    """Options of `saliency`."""

    channels: Literal["max", "mean", "norm", "none"] = Field(
        "max", description="how the input's channels become one map: maximum, mean, Euclidean norm, or all of them"
    )
    sign: Literal["abs", "square", "signed"] = Field(
        "abs", description="what is taken of each gradient before channels: magnitude, square, or itself"
    )
    samples: int = Field(1, ge=1, le=10_000, description="SmoothGrad: number of noisy copies that are averaged")
    noise: float = Field(
        0.0, ge=0, le=10, description="SmoothGrad: deviation of the noise, as a share of each input's value range"
    )


def saliency(request: Request, options: SaliencyOptions) -> Tensor:
    """Gradient of the score at the input, as magnitude, square or signed, averaged over noisy copies if asked.

    (N, C, H, W) -> (N, 1, H, W), or (N, C, H, W) with channels="none". Simonyan 2013, section 3; SmoothGrad: Smilkov
    2017, section 3, where the gradients themselves are averaged before their magnitude is taken.
    """
    total = torch.zeros_like(request.inputs)
    span = request.inputs.amax((1, 2, 3), keepdim=True) - request.inputs.amin((1, 2, 3), keepdim=True)
    for step in range(options.samples):
        x = request.inputs.detach()
        if options.noise:
            drawn = torch.randn(x.shape[1:], generator=request.generator, dtype=torch.float32)
            x = x + options.noise * span * drawn.to(x)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(request.score(x).sum(), x)
        total += gradient
        request.progress(step + 1, options.samples)
    return _reduced(_signed(total / options.samples, options.sign), options.channels)


def _signed(gradient: Tensor, sign: str) -> Tensor:
    return {"abs": gradient.abs, "square": gradient.square, "signed": lambda: gradient}[sign]()


def _reduced(gradient: Tensor, channels: str) -> Tensor:
    match channels:
        case "max":
            return gradient.amax(1, keepdim=True)
        case "mean":
            return gradient.mean(1, keepdim=True)
        case "norm":
            return torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        case _:
            return gradient


@hookimpl
def cnnviz_techniques(register):
    register(Technique("saliency", saliency, SaliencyOptions, family="attribution"))
