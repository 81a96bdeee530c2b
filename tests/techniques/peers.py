"""Maps by other libraries, asked for in the same way."""

from __future__ import annotations

import warnings
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

from tests.reference.occlusion import windows
from tests.techniques.networks import TARGET, score

LARGE = 1e4
"""What scores are multiplied by: the larger they are, the less what others add to divisors tells."""


def large(output: Tensor) -> Tensor:
    """Return each image's score, enlarged: (2, classes) -> (2,)."""
    return LARGE * score(output)


def unit(heat: Tensor) -> Tensor:
    """Stretch each map to [0, 1], as the other implementations do before they return one."""
    low, high = heat.amin((2, 3), keepdim=True), heat.amax((2, 3), keepdim=True)
    return (heat - low) / (high - low)


def captum_ruled(kind: Any, net: nn.Module, x: Tensor) -> Tensor:
    with warnings.catch_warnings():  # captum says at each call that it sets hooks, and takes them away again
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU activations")
        return kind(net).attribute(x.clone().requires_grad_(), target=TARGET).detach()


def captum_occlusion(
    net: nn.Module, x: Tensor, window: tuple[int, int], stride: tuple[int, int], baseline: tuple[float, ...]
) -> Tensor:
    slider = captum.attr.Occlusion(net)
    slider.use_weights = False  # with it, captum rounds its quotient to float32; without it, it returns the sums
    cover = torch.tensor(baseline, dtype=x.dtype)[None, :, None, None].expand_as(x[:1])
    with torch.no_grad():
        sums = slider.attribute(x.clone(), (3, *window), (3, *stride), baselines=cover, target=TARGET)
    down, across = (
        torch.tensor([sum(start <= pixel < stop for start, stop in windows(side, *step)) for pixel in range(side)])
        for side, step in zip(x.shape[2:], zip(window, stride, strict=True), strict=True)
    )
    return sums[:, :1] / (down[:, None] * across)


def torchcam_maps(kind: Any, net: nn.Module, x: Tensor, layer: str) -> Tensor:
    with kind(net, layer) as extractor:
        return extractor(TARGET, LARGE * net(x.clone().requires_grad_()))[0][:, None].detach()


def grad_cam_maps(kind: Any, net: nn.Module, x: Tensor, layer: str) -> Tensor:
    targets = [lambda output, k=k: LARGE * output[k] for k in TARGET]
    with kind(model=net, target_layers=[net.get_submodule(layer)]) as extractor:
        return torch.from_numpy(extractor(x.clone(), targets=targets))[:, None]
