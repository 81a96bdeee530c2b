"""SmoothGrad: gradients averaged over noisy copies of the input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, Options, Request


class SmoothOptions(Options):
    """Options of every technique that takes gradients at the input."""

    samples: int = Field(1, ge=1, le=10_000, description="SmoothGrad: number of noisy copies that are averaged")
    noise: float = Field(
        0.0, ge=0, le=10, description="SmoothGrad: deviation of the noise, as a share of each input's value range"
    )


def smooth_gradient(
    request: Request, options: SmoothOptions, rule: Literal["deconvnet", "guided"] | None = None
) -> Tensor:
    """Return the mean gradient over noisy copies, (N, C, H, W). Smilkov 2017, section 3."""
    if options.noise == 0:
        return request.gradient(rule=rule)  # every copy would be the same
    x = request.inputs
    span = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)

    def noisy(_: int) -> Tensor:
        drawn = torch.randn(x.shape[1:], generator=request.generator, dtype=torch.float32, device="cpu")
        return x + options.noise * span * drawn.to(x)

    return request.gradient(noisy, [1 / options.samples] * options.samples, rule=rule)
