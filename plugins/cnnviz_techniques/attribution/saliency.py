"""Gradient of the score at the input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, Request, Technique, hookimpl

from .smooth import SmoothOptions, smooth_gradient


class SaliencyOptions(SmoothOptions):
    """Options of `saliency`."""

    channels: Literal["max", "mean", "norm", "none"] = Field(
        "max", description="how the input's channels become one map: maximum, mean, Euclidean norm, or all of them"
    )
    sign: Literal["abs", "square", "signed"] = Field(
        "abs", description="what is taken of each gradient before channels: magnitude, square, or itself"
    )


def saliency(request: Request, options: SaliencyOptions) -> Tensor:
    """Gradient of the score at the input, as magnitude, square or signed, averaged over noisy copies if asked.

    (N, C, H, W) -> (N, 1, H, W), or (N, C, H, W) with channels="none". Simonyan 2013, section 3; SmoothGrad: Smilkov
    2017, section 3, where the gradients themselves are averaged before their magnitude is taken.
    """
    return _reduced(_signed(smooth_gradient(request, options), options.sign), options.channels)


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
