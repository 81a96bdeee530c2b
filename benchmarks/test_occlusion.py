"""Occlusion maps: what a window changed recomputed, beside every covered image run, here and by captum."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import captum.attr
import pytest
import torch
import torchvision
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

import cnnviz
from cnnviz.data import demo_picture
from cnnviz.incremental import Operations
from tests.reference.occlusion import windows
from tests.trained import data_folder, resnet50_of_keras, vgg16_features

CLASS = 3
NAMES = (
    "vgg16", "resnet18", "resnet50", "alexnet", "googlenet", "densenet121", "mobilenet_v2", "efficientnet_b0",
)  # fmt: skip
CASES = {f"{name}, 224 px, window-16, stride-{stride}": (name, stride) for stride in (16, 8) for name in NAMES}
HEAVY = ("vgg16", "resnet50", "densenet121")
"""They take half a minute a round; of the others more rounds are run."""
AT_ONCE = (1, 2, 4, 8, 16, 32)


APPROXIMATE = (("resnet50", 48, 3, 0.9), ("vgg16", 32, 4, 0.9), ("resnet50", 16, 16, 0.5), ("vgg16", 16, 16, 0.5))
"""Window, stride and tolerance: windows that lie close, of which some are left out, and windows side by side."""
ROUGHLY = {
    f"{name}, a photograph, window-{window}, stride-{stride}, tolerance {tolerance}": (name, window, stride, tolerance)
    for name, window, stride, tolerance in APPROXIMATE
}


@functools.cache
def network(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    extra = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **extra).eval().to(device)


def trained(name: str, device: str) -> cnnviz.Model:
    """Return a network that was trained on ImageNet, VGG-16 without its classifier."""
    if name == "resnet50":
        net, units = resnet50_of_keras(data_folder())
    else:
        features, units = vgg16_features(data_folder())
        net = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        units = replace(units, resize=256, crop=(224, 224))
    return cnnviz.load_model(net.to(device), preprocess=units)


def by_captum(net: nn.Module, x: Tensor, stride: int, at_once: int, *, window: int = 16, target: int = CLASS) -> Tensor:
    with torch.no_grad():
        return captum.attr.Occlusion(net).attribute(
            x,
            target=target,
            sliding_window_shapes=(3, window, window),
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
    race.rounds, race.warm, race.prepared = min(race.rounds, 3 if name in HEAVY or stride < 16 else 9), 1, False
    best = _fastest(net, x)
    last: dict[str, Tensor] = {}

    def kept(name: str, call: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: last.update({name: call()})

    race.case += f"; {_where_time_goes(lambda: ours['auto'](x, CLASS), net, x, stride)}"
    race(
        kept("auto", lambda: ours["auto"](x, CLASS).values),
        {
            "every covered image (dense)": kept("dense", lambda: ours["dense"](x, CLASS).values),
            f"captum, {best} at once": kept("captum", lambda: by_captum(net, x, stride, best)[:, :1]),
        },
    )
    for name in ("auto", "dense"):
        # Looser than the design's bound, which takes a map in double precision: alike is all that is asked here.
        apart = (last[name] - last["captum"]).abs().max() / last["captum"].abs().max()
        assert apart <= 1e-3, f"{name} is another map than captum's, by {apart:.1e} of its largest value"


@pytest.mark.parametrize("case", ROUGHLY)
def test_approximate(case: str, race: Any, device: str) -> None:
    name, window, stride, share = ROUGHLY[case]
    if race.quick:
        pytest.skip("takes minutes")
    model = trained(name, device)
    net, x = model.module, model.prepare([demo_picture()])
    with torch.no_grad():
        target = int(net(x)[0].argmax())
    exact, roughly = (
        cnnviz.Explainer(model, "occlusion", window=window, stride=stride, tolerance=tolerance)
        for tolerance in (None, share)
    )
    expected, made = exact(x, target).values[0, 0].cpu().numpy(), roughly(x, target)
    alike = structural_similarity(
        made.values[0, 0].cpu().numpy(),
        expected,
        data_range=float(expected.max() - expected.min()),
        gaussian_weights=True,
    )
    race.rounds, race.warm, race.prepared = 2, 0, False
    best = _fastest(net, x)
    race.case += f", {int(made.draws[0]):,} windows run, SSIM {alike:.3f}"
    race(
        lambda: roughly(x, target),
        {f"captum, {best} at once": lambda: by_captum(net, x, stride, best, window=window, target=target)},
    )


PHASES = {
    "convolutions": (
        "cnnviz::conv_crops",
        "cnnviz::conv_cat",
        "cnnviz::winograd_crops",
        "aten::conv2d",
        "aten::linear",
    ),
    "crops": ("cnnviz::crop_patches",),
    "laying over": ("cnnviz::overlay_crop", "cnnviz::overlay_cat"),
}


def _where_time_goes(call: Callable[[], cnnviz.Heatmap], net: nn.Module, x: Tensor, stride: int) -> str:
    """Return how many times as many products whole images take, and the share of the time on the CPU by phase."""
    call()
    with Operations() as done:
        call()
    with Operations() as whole, torch.no_grad():
        net(x)
    count = math.prod(len(windows(side, 16, stride)) for side in x.shape[2:])
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
        seconds = time.perf_counter() - begun
    spent = {event.key: event.cpu_time_total * 1e-6 for event in seen.key_averages()}
    shares = {phase: sum(spent.get(name, 0.0) for name in names) / seconds for phase, names in PHASES.items()}
    shares["the rest"] = 1 - sum(shares.values())
    told = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
    return f"products saved {count * whole.count / done.count:.1f}×; {told}"


def _fastest(net: nn.Module, x: Tensor) -> int:
    """Return how many covered images captum runs fastest at once, by a forward pass of as many."""

    def per_image(count: int) -> float:
        with torch.no_grad():
            timer = Timer(
                "net(x)", globals={"net": net, "x": x.repeat(count, 1, 1, 1)}, num_threads=torch.get_num_threads()
            )
            return timer.blocked_autorange(min_run_time=1.0).median / count

    return min(AT_ONCE, key=per_image)
