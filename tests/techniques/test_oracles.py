"""Whole networks of torchvision: cnnviz against the twins of tests/reference and against captum.

Where captum is wrong the twin decides, and a test says that captum is wrong, so that we notice when it is mended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

import cnnviz
from tests.reference.grad_cam import bilinear, grad_cam, maps_and_slopes
from tests.reference.occlusion import occlusion
from tests.reference.relu_rules import ruled_gradient
from tests.reference.saliency import gradient, reduced
from tests.techniques import peers
from tests.techniques.measure import assert_same_map, assert_same_single_map, distance
from tests.techniques.networks import NAMES, SIZE, TARGET, images, network, score

Map = Callable[[nn.Module, Tensor], Tensor]

CAPTUM_IS_RIGHT = ("resnet18", "vgg16", "squeezenet1_1")  # every rectifier is an nn.ReLU
# ReLU6; one functional ReLU; nothing but functional ones
CAPTUM_IS_WRONG = ("mobilenet_v2", "densenet121", "googlenet")
LAYERS = [
    ("resnet18", "layer4"),
    ("resnet18", "layer4.1.bn2"),  # overwritten by += and by an in-place ReLU
    ("vgg16", "features.28"),  # a convolution, overwritten by an in-place ReLU
    ("vgg16", "features.22"),
    ("squeezenet1_1", "features.12"),
    ("squeezenet1_1", "features.6.expand3x3"),
    ("mobilenet_v2", "features.18"),
    ("mobilenet_v2", "features.7.conv.2"),
    ("densenet121", "features.norm5"),  # overwritten by F.relu(inplace=True)
    ("densenet121", "features.denseblock3"),
]


def explained(technique: str, **arguments: Any) -> Map:
    return lambda net, x: cnnviz.explain(net, x, technique, target=TARGET, **arguments).values


def assert_agree(name: str, mine: Map, reference: Map) -> None:
    """Compare in float64, then in float32."""
    exact = reference(network(name, torch.float64), images(torch.float64))
    assert_same_map(mine(network(name, torch.float64), images(torch.float64)), exact)
    single = network(name, torch.float32), images(torch.float32)
    assert_same_single_map(mine(*single), reference(*single), exact)


def twin_saliency(net: nn.Module, x: Tensor) -> Tensor:
    return reduced(gradient(net, x, score), sign="abs", channels="max")


def captum_saliency(net: nn.Module, x: Tensor) -> Tensor:
    made = captum.attr.Saliency(net).attribute(x.clone().requires_grad_(), target=TARGET)
    return made.detach().amax(1, keepdim=True)


@pytest.mark.parametrize("reference", [twin_saliency, captum_saliency])
@pytest.mark.parametrize("name", NAMES)
def test_saliency_equals_other_implementations(name: str, reference: Map) -> None:
    assert_agree(name, explained("saliency"), reference)


def twin_ruled(rule: str) -> Map:
    return lambda net, x: ruled_gradient(net, x, score, rule)


def captum_ruled(rule: str) -> Map:
    kind = {"guided": captum.attr.GuidedBackprop, "deconvnet": captum.attr.Deconvolution}[rule]
    return partial(peers.captum_ruled, kind)


RULES = pytest.mark.parametrize(("technique", "rule"), [("guided-backprop", "guided"), ("deconvnet", "deconvnet")])


@RULES
@pytest.mark.parametrize("name", sorted({*NAMES, *CAPTUM_IS_WRONG}))
def test_relu_rules_equal_twin(name: str, technique: str, rule: str) -> None:
    assert_agree(name, explained(technique), twin_ruled(rule))


@RULES
@pytest.mark.parametrize("name", CAPTUM_IS_RIGHT)
def test_relu_rules_equal_captum_where_every_relu_is_a_module(name: str, technique: str, rule: str) -> None:
    assert_agree(name, explained(technique), captum_ruled(rule))


@RULES
@pytest.mark.parametrize("name", CAPTUM_IS_WRONG)
def test_captum_misses_functional_relus_and_relu6(name: str, technique: str, rule: str) -> None:
    net, x = network(name, torch.float64), images(torch.float64)
    right = twin_ruled(rule)(net, x)
    assert distance(captum_ruled(rule)(net, x), right) > 0.1, "captum is mended: move this network to CAPTUM_IS_RIGHT"
    assert distance(explained(technique)(net, x), right) <= 1e-9


@RULES
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_relu_rules_are_not_the_plain_gradient(name: str, technique: str, rule: str) -> None:
    net, x = network(name, torch.float64), images(torch.float64)
    assert distance(explained(technique)(net, x), gradient(net, x, score)) > 0.1


def twin_grad_cam(layer: str) -> Map:
    def heat(net: nn.Module, x: Tensor) -> Tensor:
        return bilinear(grad_cam(*maps_and_slopes(net, x, score, layer)), (SIZE, SIZE))

    return heat


def captum_grad_cam(layer: str) -> Map:
    def heat(net: nn.Module, x: Tensor) -> Tensor:
        cam = captum.attr.LayerGradCam(net, net.get_submodule(layer))
        made = cam.attribute(x.clone(), target=TARGET, relu_attributions=True)
        return captum.attr.LayerAttribution.interpolate(made, (SIZE, SIZE), interpolate_mode="bilinear").detach()

    return heat


@pytest.mark.parametrize("reference", [twin_grad_cam, captum_grad_cam])
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_grad_cam_equals_other_implementations(name: str, layer: str, reference: Callable[[str], Map]) -> None:
    assert_agree(name, explained("grad-cam", layer=layer), reference(layer))


WINDOW, STRIDE, BASELINE = (40, 36), (20, 16), (0.25, -0.5, 1.0)  # the last windows of both axes are clipped


def twin_occlusion(net: nn.Module, x: Tensor) -> Tensor:
    cover = torch.tensor(BASELINE, dtype=x.dtype)[:, None, None].expand(3, SIZE, SIZE)
    with torch.no_grad():
        return occlusion(lambda image, n: net(image)[0, TARGET[n]], x, WINDOW, STRIDE, cover)


def captum_occlusion(net: nn.Module, x: Tensor) -> Tensor:
    return peers.captum_occlusion(net, x, WINDOW, STRIDE, BASELINE)


@pytest.mark.parametrize("name", NAMES)
def test_occlusion_equals_other_implementations(name: str) -> None:
    mine, references = (
        explained("occlusion", window=WINDOW, stride=STRIDE, baseline=BASELINE),
        [twin_occlusion, captum_occlusion],
    )
    double, single = ((network(name, dtype), images(dtype)) for dtype in (torch.float64, torch.float32))
    made, precise = mine(*double), [reference(*double) for reference in references]
    for exact in precise:
        assert_same_map(made, exact)
    made, others = mine(*single), [reference(*single) for reference in references]
    # Both run the same images, by one and by as many as there are: how far these are from double precision is chance,
    # and the farther of the two tells what single precision does to this network.
    own = max(float((other - exact).abs().max()) for other, exact in zip(others, precise, strict=True))
    for other in others:
        assert float((made - other).abs().max()) <= 2 * own
