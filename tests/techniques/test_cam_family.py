"""The CAM family beside its twins and beside pytorch-grad-cam and torchcam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
import torchvision
from captum.attr import GuidedGradCam
from torch import Tensor, nn
from torch.nn import functional as F

import cnnviz
from tests.reference.cam import cam, grad_cam_plus_plus, layer_cam, score_cam, windowed_scores
from tests.reference.grad_cam import maps_and_slopes
from tests.techniques.measure import assert_same_map, distance
from tests.techniques.networks import TARGET, images, network, score
from tests.techniques.peers import grad_cam_maps, large, torchcam_maps, unit

POOLED = {  # networks whose head is a global average and one linear layer: its weights, and the maps before it
    "resnet18": ("fc", "layer4"),
    "mobilenet_v2": ("classifier.1", "features"),
    "regnet_y_400mf": ("fc", "trunk_output"),
    "googlenet": ("fc", "inception5b"),
    "efficientnet_b0": ("classifier.1", "features"),
}
WEIGHTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"grad-cam++": grad_cam_plus_plus, "layer-cam": layer_cam}
LAYERS = [("resnet18", "layer3"), ("resnet18", "layer4"), ("squeezenet1_1", "features.12"), ("densenet121", "features")]


def explained(net: nn.Module, technique: str, **options: Any) -> Tensor:
    return cnnviz.explain(net, images(torch.float64), technique, target=TARGET, **options).values


@pytest.mark.parametrize("name", POOLED)
def test_cam_is_the_maps_weighted_by_the_class(name: str) -> None:
    net, (head, layer) = network(name, torch.float64), POOLED[name]
    maps, _ = maps_and_slopes(net, images(torch.float64), score, layer)
    weight = net.get_submodule(head).weight.detach()
    made = explained(net, "cam", upsample=None)
    assert_same_map(made, cam(maps, weight, TARGET))
    bias = net.get_submodule(head).bias.detach()[TARGET]
    torch.testing.assert_close(made.mean((1, 2, 3)) + bias, score(net(images(torch.float64))).detach())


def test_cam_equals_torchcam() -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    with torchcam.methods.CAM(net, "layer4", "fc") as extractor:
        net(x)
        theirs = extractor(TARGET)[0][:, None]
    assert distance(unit(explained(net, "cam", upsample=None)), theirs.double()) < 1e-6  # theirs is clamped near 1e-7


def test_cam_of_class_scores_on_a_map_is_that_map() -> None:
    net, x = network("squeezenet1_1", torch.float64), images(torch.float64)
    maps = net.classifier[:3](net.features(x)).detach()
    assert_same_map(explained(net, "cam", upsample=None), maps[range(2), TARGET][:, None])


class Small(nn.Module):
    """A head as VGG's: pooled to 3 x 3, flattened, and two linear layers."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(size)
        first, last = nn.Linear(4 * size**2, 6), nn.Linear(6, 8)
        self.head = nn.Sequential(nn.Dropout(), first, nn.ReLU(inplace=True), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("side", [(6, 6), (10, 14), (4, 4)])
def test_a_head_of_linear_layers_sees_the_window_around_each_place(size: int, side: tuple[int, int]) -> None:
    net = Small(size).eval().double()
    x = torch.randn(2, 3, *side, dtype=torch.float64)
    maps = net.features(x).detach()
    scores = windowed_scores(maps, size, lambda window: net.head(window.flatten(1)).detach())
    expected = scores[range(2), TARGET][:, None] - net.head[3].bias.detach()[TARGET][:, None, None, None]
    made = cnnviz.explain(net, x, "cam", target=TARGET, upsample=None).values
    assert_same_map(made, expected)
    assert cnnviz.explain(net, x, "cam").values.shape == (2, 1, *side)


def test_the_middle_of_the_map_has_the_score_of_the_network_itself() -> None:
    net = Small().eval().double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)  # maps of 3 x 3
    middle = cnnviz.explain(net, x, "cam", target=TARGET, upsample=None).values[:, 0, 1, 1]
    torch.testing.assert_close(middle + net.head[3].bias.detach()[TARGET], score(net(x)).detach())


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small", "convnext_tiny", "shufflenet_v2_x0_5", "swin_t"])
@pytest.mark.parametrize("size", [(224, 224), (160, 256)])
def test_cam_takes_other_heads_at_any_size(name: str, size: tuple[int, int]) -> None:
    net = torchvision.models.get_model(name, num_classes=5).eval()
    made = cnnviz.explain(net, torch.randn(1, 3, *size), "cam", target=2)
    assert made.values.shape == (1, 1, *size)
    assert made.values.std() > 0


class ByToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x)[:, :, 0, 0])


class BySoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)).cumsum(1))


@pytest.mark.parametrize(("net", "words"), [(ByToken(), "it pools no map"), (BySoftmax(), "its head calls cumsum")])
def test_a_head_that_cannot_be_converted_is_refused_with_the_reason(net: nn.Module, words: str) -> None:
    with pytest.raises(cnnviz.ModelError, match=words + ".*use grad-cam"):
        cnnviz.explain(net, torch.randn(1, 3, 8, 8), "cam")


class Pooled(nn.Module):
    """A head that brings the map to one place by a function of its own."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.pool = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), pool
        self.head = nn.LazyLinear(4)
        self(torch.zeros(1, 3, 12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.body(x)), 1))


POOLS: dict[str, tuple[Any, str]] = {
    "the largest": (lambda x: F.adaptive_max_pool2d(x, 1), "adaptive_max_pool2d"),
    "the largest, by a window": (lambda x: F.max_pool2d(x, x.shape[2:]), "max_pool2d"),
    "both": (lambda x: torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1), "adaptive_max_pool2d"),
    "a power mean": (lambda x: F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(3), 1).pow(1 / 3), "pow"),
    "scaled": (lambda x: F.adaptive_avg_pool2d(x, 1) * 2.0, "mul"),
    "a sum": (lambda x: x.sum((2, 3), keepdim=True), "sum"),
    "scaled, then flattened by a view": (lambda x: (x.mean((2, 3), keepdim=True) * 2).view(len(x), -1, 1, 1), "mul"),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_head_that_pools_otherwise_is_refused_and_no_flat_map(name: str) -> None:
    pool, call = POOLS[name]
    with pytest.raises(cnnviz.ModelError, match=f"its head calls {call}, which has no counterpart on a map"):
        cnnviz.explain(Pooled(pool).eval(), torch.rand(1, 3, 12, 12), "cam", target=1)


def test_gates_in_the_body_are_no_head() -> None:
    """Squeeze and excitation brings a map to one place as well, and multiplies the map by it."""

    class Gated(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            maps = self.body(x)
            maps = maps * F.adaptive_max_pool2d(maps, 1).sigmoid() * F.adaptive_avg_pool2d(maps, 1).sigmoid()
            return self.head(torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1))

    net, x = Gated(lambda x: F.adaptive_avg_pool2d(x, 1)).eval(), torch.rand(1, 3, 12, 12)
    made = cnnviz.explain(net, x, "cam", target=1, upsample=None)
    assert made.values.shape == (1, 1, 10, 10)
    maps = net.body(x)
    maps = maps * F.adaptive_max_pool2d(maps, 1).sigmoid() * F.adaptive_avg_pool2d(maps, 1).sigmoid()
    expected = (net.head.weight[1][:, None, None] * maps).sum(1, keepdim=True)
    torch.testing.assert_close(made.values, expected.detach())


def test_cam_explains_classes_alone() -> None:
    net = network("resnet18", torch.float64)
    with pytest.raises(cnnviz.TargetError, match="explain classes"):
        cnnviz.explain(net, images(torch.float64), "cam", target=lambda output: output[:, 0])


@pytest.mark.parametrize("technique", WEIGHTED)
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_weighted_maps_equal_their_twin(technique: str, name: str, layer: str) -> None:
    net = network(name, torch.float64)
    maps, slopes = maps_and_slopes(net, images(torch.float64), score, layer)
    assert_same_map(explained(net, technique, layer=layer, upsample=None), WEIGHTED[technique](maps, slopes))


KINDS: dict[str, Any] = {
    "grad-cam": (pytorch_grad_cam.GradCAM, torchcam.methods.GradCAM),
    "grad-cam++": (pytorch_grad_cam.GradCAMPlusPlus, torchcam.methods.GradCAMpp),
    "layer-cam": (pytorch_grad_cam.LayerCAM, torchcam.methods.LayerCAM),
}


@pytest.mark.parametrize("technique", KINDS)
@pytest.mark.parametrize(("name", "layer"), LAYERS[:3])
def test_weighted_maps_equal_other_libraries(technique: str, name: str, layer: str) -> None:
    net, x = network(name, torch.float32), images(torch.float32)
    kinds = KINDS[technique]
    mine = cnnviz.explain(net, x, technique, target=large, layer=layer).values
    # pytorch-grad-cam stretches maps to [0, 1] and resizes them by OpenCV, in single precision
    assert distance(unit(mine), grad_cam_maps(kinds[0], net, x, layer)) < 1e-3
    mine = cnnviz.explain(net, x, technique, target=large, layer=layer, upsample=None).values
    apart = distance(unit(mine), torchcam_maps(kinds[1], net, x, layer))
    if technique == "grad-cam++":  # it sums the product of maps and slopes where equation 19 sums the maps alone
        assert apart > 1e-2, "torchcam is mended: compare it as the others are"
    else:
        assert apart < 1e-4


def test_score_cam_equals_its_twin() -> None:
    net, x = Small().eval().double(), torch.randn(2, 3, 12, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = score_cam(net.features(x), x, lambda seen, n: float(net(seen)[0, TARGET[n]]))
    assert_same_map(
        cnnviz.explain(net, x, "score-cam", target=TARGET, layer="features", upsample=None).values, expected
    )


def test_score_cam_equals_other_libraries() -> None:
    """Where maps are as large as the input, so that it does not matter how, and when, they are enlarged."""
    net, x = network("vgg16", torch.float32), images(torch.float32)
    mine = cnnviz.explain(net, x, "score-cam", target=TARGET, layer="features.1", upsample=None).values
    with torchcam.methods.ScoreCAM(net, "features.1") as extractor, torch.no_grad():
        net(x)
        theirs = extractor(TARGET)[0][:, None]
    assert distance(unit(mine), theirs) < 1e-3
    with pytorch_grad_cam.ScoreCAM(model=net, target_layers=[net.features[1]]) as extractor:
        targets = [lambda output, k=k: output[k] for k in TARGET]
        theirs = torch.from_numpy(extractor(x.clone(), targets=targets))[:, None]
    assert distance(unit(mine), theirs) < 1e-3


MANY = [
    name
    for name, technique in cnnviz.techniques().usable().items()
    if technique.layers == "many" and technique.family == "attribution"
]


@pytest.mark.parametrize("technique", MANY)
def test_several_layers_are_the_mean_of_each_alone(technique: str) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8)),
    )
    net, x = net.double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    alone = [cnnviz.explain(net, x, technique, target=TARGET, layer=layer).values for layer in ("1", "4")]
    for layers in (["1", "4"], ["4", "1"]):
        assert_same_map(cnnviz.explain(net, x, technique, target=TARGET, layer=layers).values, sum(alone) / 2)


@pytest.mark.filterwarnings("ignore:Setting (forward|backward)")  # captum tells of its hooks at each call
def test_guided_grad_cam_equals_captum() -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    made = (
        GuidedGradCam(net, net.layer4)
        .attribute(x.clone().requires_grad_(), target=TARGET, interpolate_mode="bilinear")
        .detach()
    )
    assert_same_map(explained(net, "guided-grad-cam", layer="layer4"), made)


def test_maps_worked_out_by_hand() -> None:
    """Two channels, a = [[1, 2]] and b = [[3, -1]], scored by 2·mean(a) + 4·mean(b²)/2."""
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]], dtype=torch.float64)

    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            seen = self.maps(x)
            return (2 * seen[:, :1].mean((2, 3))) + (2 * seen[:, 1:].square().mean((2, 3)))

    def heat(technique: str) -> list[float]:
        options = {"target": 0, "layer": "maps", "upsample": None, "relu": False}
        return cnnviz.explain(Scored().double(), maps, technique, **options).values.flatten().tolist()

    # Slopes: of a 1 and 1; of b, 2·b = 6 and -2. Means: 1 and 2.
    assert heat("grad-cam") == [7.0, 0.0]
    assert heat("layer-cam") == [1 + 6 * 3, 2.0]
    # Shares: of a 1 / (2 + 3) twice; of b, for its one positive slope, 36 / (72 + 2 · 216).
    weights = 2 / 5, 36 / 504 * 6
    assert heat("grad-cam++") == pytest.approx([weights[0] + 3 * weights[1], 2 * weights[0] - weights[1]])


def test_weights_of_many_places_are_more_than_half_precision_holds() -> None:
    """Slopes of single places are as small as its numbers go; their means and products with maps are not rounded so."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.body(x))

        def rest(self, maps: Tensor) -> Tensor:
            return self.head(maps.relu()).mean((2, 3))

    net, x = Large().half().eval(), torch.rand(1, 3, 224, 224).half()
    made = cnnviz.explain(net, x, "grad-cam", layer="body", target=1, relu=False, upsample=None).values
    maps = net.body(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(net.rest(maps)[0, 1], maps)
    expected = (slope.float().mean((2, 3), keepdim=True) * maps.float()).sum(1, keepdim=True).detach()
    torch.testing.assert_close(made, expected.half(), rtol=0, atol=2.0**-24)
    assert float(expected.abs().max()) > 20 * 2.0**-24


def test_small_slopes_count_in_half_precision() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    x = torch.rand(1, 3, 112, 112)
    precise = cnnviz.explain(net, x, "grad-cam++", target=0, relu=False).values
    half = cnnviz.explain(net.half(), x.half(), "grad-cam++", target=0, relu=False).values
    assert float((half.float() - precise).abs().max()) <= 0.02 * float(precise.abs().max())


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(144), nn.LayerNorm(144)])
def test_cam_refuses_what_has_numbers_of_its_own_for_each_place(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), norm, nn.Linear(144, 5)).eval()
    with pytest.raises(cnnviz.ModelError, match="has no counterpart on a map"):
        cnnviz.explain(net, torch.rand(1, 3, 8, 8), "cam", target=0)
