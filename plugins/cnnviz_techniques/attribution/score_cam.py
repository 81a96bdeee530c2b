"""Class activation maps without gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cnnviz import LayerError, Request, Technique, capture, hookimpl

from .grad_cam import GradCamOptions, weighted_sum


def score_cam(request: Request, options: GradCamOptions) -> Tensor:
    """Weight each activation map by what the score becomes when the input shows through that map alone.

    (N, C, H, W) -> (N, 1, h, w) of the layer, resized to the input by the framework. A forward pass for each of the
    layer's channels; weights are the softmax, over channels, of the scores. Wang 2020, algorithm 1.
    """
    maps = request.once(request.layer, lambda: _maps(request))
    if not isinstance(maps, Tensor) or maps.dim() != 4:
        raise LayerError(f"layer '{request.layer}' returns no maps (N, C, h, w); name a spatial layer")
    x, (count, channels) = request.inputs, maps.shape[:2]
    owner = torch.arange(count, device="cpu").repeat_interleave(channels)
    masks = maps.flatten(0, 1)[:, None]

    def shown(start: int, stop: int) -> Tensor:
        large = interpolate(masks[start:stop], x.shape[2:], mode="bilinear", align_corners=False)
        low, high = large.amin((2, 3), keepdim=True), large.amax((2, 3), keepdim=True)
        through = (large - low) / torch.where(high > low, high - low, 1)
        return x[owner[start:stop].to(x.device)] * through

    scores = request.sweep(shown, count * channels, owner, shared=True, rounding="any")
    weight = scores.reshape(count, channels).softmax(1)[:, :, None, None]
    return weighted_sum(maps, weight, options)


def _maps(request: Request) -> Any:
    with torch.no_grad(), capture(request.model, request.layer) as seen:
        request.score()
    return seen.output


@hookimpl
def cnnviz_techniques(register):
    register(Technique("score-cam", score_cam, GradCamOptions, family="attribution", layers="many", on_request=True))
