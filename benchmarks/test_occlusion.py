"""Occlusion maps: what a window changed recomputed, beside every covered image run, here and by captum."""

from __future__ import annotations

import functools
from typing import Any

import captum.attr
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import cnnviz

CLASS = 3
NAMES = (
    "vgg16", "resnet18", "resnet50", "alexnet", "googlenet", "densenet121", "mobilenet_v2", "efficientnet_b0",
)  # fmt: skip
CASES = {f"{name}, 224 px, window-16, stride-{stride}": (name, stride) for stride in (16, 8) for name in NAMES}
AT_ONCE = (1, 2, 4, 8, 16, 32)


@functools.cache
def network(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    extra = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **extra).eval().to(device)


def by_captum(net: nn.Module, x: Tensor, stride: int, at_once: int) -> Tensor:
    with torch.no_grad():
        return captum.attr.Occlusion(net).attribute(
            x,
            target=CLASS,
            sliding_window_shapes=(3, 16, 16),
            strides=(3, stride, stride),
            baselines=0,
            perturbations_per_eval=at_once,
        )


@pytest.mark.parametrize("case", CASES)
def test_occlusion(case: str, race: Any, device: str) -> None:
    name, stride = CASES[case]
    if race.quick and (name, stride) != ("alexnet", 16):
        pytest.skip("takes minutes")
    net, x = network(name, device), torch.randn(1, 3, 224, 224, device=device)
    given = {"window": 16, "stride": stride}
    ours = {method: cnnviz.Explainer(net, "occlusion", method=method, **given) for method in ("auto", "dense")}
    race.rounds, race.warm, race.prepared = min(race.rounds, 3), 1, False
    best = _fastest(net, x)
    race(
        lambda: ours["auto"](x, CLASS),
        {
            "every covered image (dense)": lambda: ours["dense"](x, CLASS),
            f"captum, {best} at once": lambda: by_captum(net, x, stride, best),
        },
    )


def _fastest(net: nn.Module, x: Tensor) -> int:
    """Return how many covered images captum runs fastest at once, by a forward pass of as many."""

    def per_image(count: int) -> float:
        with torch.no_grad():
            timer = Timer(
                "net(x)", globals={"net": net, "x": x.repeat(count, 1, 1, 1)}, num_threads=torch.get_num_threads()
            )
            return timer.blocked_autorange(min_run_time=1.0).median / count

    return min(AT_ONCE, key=per_image)
