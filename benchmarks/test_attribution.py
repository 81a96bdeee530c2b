"""Attribution beside a bare forward pass, and beside other libraries."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import captum.attr
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import cnnviz
from cnnviz.data import demo_picture

LAYERS = {"resnet50": "layer4", "vgg16": "features.29"}
SWEPT = {
    f"rise with equal masks: {name}, 96 masks": name
    for name in ("resnet50", "vgg16", "resnet18", "densenet121", "mobilenet_v2", "efficientnet_b0")
}
CLASS = 3
SIZES = (1, 16, 64)
ROUNDS = {1: (15, 3), 16: (5, 1), 64: (3, 1)}  # and how many to warm up


@functools.cache
def network(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval().to(device)


def passes(net: nn.Module, x: Tensor, _layer: str) -> None:
    with torch.no_grad():
        net(x)


def passes_back(net: nn.Module, x: Tensor, _layer: str) -> None:
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(net(leaf)[:, CLASS].sum(), leaf)


def grad_cam_of_captum(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    maps = captum.attr.LayerGradCam(net, net.get_submodule(layer)).attribute(x, CLASS, relu_attributions=True)
    return captum.attr.LayerAttribution.interpolate(maps, tuple(x.shape[2:]), "bilinear")


def grad_cam_of_pytorch_grad_cam(net: nn.Module, x: Tensor, layer: str) -> Any:
    with pytorch_grad_cam.GradCAM(model=net, target_layers=[net.get_submodule(layer)]) as extractor:
        return extractor(x, [ClassifierOutputTarget(CLASS)] * len(x))


def grad_cam_of_torchcam(net: nn.Module, x: Tensor, layer: str) -> Any:
    with torchcam.methods.GradCAM(net, layer) as extractor:
        return extractor(CLASS, net(x.clone().requires_grad_()))


def saliency_of_captum(net: nn.Module, x: Tensor, _layer: str) -> Tensor:
    return captum.attr.Saliency(net).attribute(x.clone().requires_grad_(), CLASS)


def guided_of_captum(net: nn.Module, x: Tensor, _layer: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return captum.attr.GuidedBackprop(net).attribute(x.clone().requires_grad_(), CLASS)


OTHERS = {
    "grad-cam": {
        "a forward pass": passes,
        "captum": grad_cam_of_captum,
        "pytorch-grad-cam": grad_cam_of_pytorch_grad_cam,
        "torchcam": grad_cam_of_torchcam,
    },
    "saliency": {"forward and backward": passes_back, "captum": saliency_of_captum},
    "guided-backprop": {
        "forward and backward": passes_back,
        "captum": guided_of_captum,
    },
}
CASES = {
    f"{technique} of {name}, {count} x 224": (technique, name, count)
    for technique in OTHERS
    for name in LAYERS
    for count in SIZES
}


def same_as_captum(net: nn.Module, x: Tensor, technique: str, layer: str) -> bool:
    """Whether a map is captum's, within a ten-thousandth of its largest value: both run the same passes.

    The others scale their maps; tests/techniques compare with them in double precision.
    """
    made, theirs = cnnviz.explain(net, x, technique, target=CLASS).values, OTHERS[technique]["captum"](net, x, layer)
    expected = theirs.amax(1, keepdim=True) if technique == "saliency" else theirs
    return bool((made - expected).abs().max() <= 1e-4 * expected.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_attribution(case: str, race: Any, device: str) -> None:
    technique, name, count = CASES[case]
    if race.quick and (count > 1 or name == "vgg16"):
        pytest.skip("takes minutes")
    net, x = network(name, device), torch.randn(count, 3, 224, 224, device=device)
    assert same_as_captum(net, x[:1], technique, LAYERS[name])
    explainer = cnnviz.Explainer(net, technique)
    rounds, race.warm = ROUNDS[count]
    race.rounds, race.prepared = min(race.rounds, rounds), count == 1
    others = {other: functools.partial(run, net, x, LAYERS[name]) for other, run in OTHERS[technique].items()}
    race(lambda: explainer(x, CLASS).values, others)


def straightforward_rise(net: nn.Module, x: Tensor, target: int, masks: int, batch: int = 32) -> Tensor:
    """All masks at once, images in batches: (1, H, W)."""
    return weighted_masks(net, x, target, masks, batch).mean(0)


def weighted_masks(net: nn.Module, x: Tensor, target: int, masks: int, batch: int = 32) -> Tensor:
    """Return what the paper's estimator averages, (masks, 1, H, W)."""
    grids = (torch.rand(masks, 1, 7, 7, device=x.device) < 0.5).float()
    step = 224 // 7
    large = nn.functional.interpolate(grids, (8 * step, 8 * step), mode="bilinear", align_corners=False)
    places = torch.randint(step, (masks, 2)).tolist()
    shown = torch.stack(
        [m[:, top : top + 224, left : left + 224] for m, (top, left) in zip(large, places, strict=True)]
    )
    with torch.no_grad():
        scores = torch.cat([net(x * part).softmax(1)[:, target] for part in shown.split(batch)])
    return scores[:, None, None, None] * shown / 0.5


@pytest.mark.parametrize("case", SWEPT)
def test_rise(case: str, race: Any, device: str) -> None:
    net, x, masks = network(SWEPT[case], device), torch.randn(1, 3, 224, 224, device=device), 8 if race.quick else 96
    race.rounds, race.warm = 3, 1
    race(
        lambda: cnnviz.explain(net, x, "rise", target=CLASS, masks=masks),
        {
            f"batches of {batch}": functools.partial(straightforward_rise, net, x, CLASS, masks, batch)
            for batch in (32, 8)
        },
    )


@pytest.mark.parametrize("case", ["rise with equal standard error: mobilenet_v2, a cat, 1,000 masks"])
def test_rise_with_a_tolerance(case: str, race: Any, device: str) -> None:  # noqa: ARG001  # as above
    model = cnnviz.load_model(device=device)
    x, cat = model.prepare([demo_picture()]), 285
    masks = 64 if race.quick else 1000
    torch.manual_seed(0)
    wanted = weighted_masks(model.module, x, cat, masks).std(0).max() / masks**0.5
    drawn = cnnviz.explain(model, x, "rise", target=cat, masks=masks)
    tolerance = float(wanted / (drawn.values.max() - drawn.values.min()))
    made: list[Tensor] = []

    def ours() -> None:
        made.append(cnnviz.explain(model, x, "rise", target=cat, tolerance=min(tolerance, 0.99)).errors.max())

    race.rounds, race.warm = 3, 1
    race(
        ours,
        {"the paper's estimator, batches of 32": lambda: straightforward_rise(model.module, x, cat, masks)},
    )
    assert max(made) <= 1.1 * wanted, "the map is as good"
