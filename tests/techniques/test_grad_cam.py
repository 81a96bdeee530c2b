from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from tests.reference.grad_cam import bilinear, grad_cam, maps_and_slopes
from tests.techniques.measure import assert_same_map
from tests.techniques.networks import images, network

MAPS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 0.0], [-4.0, 8.0]]]], dtype=torch.float64)  # two channels, 2 x 2


class Pooled(nn.Module):
    """Maps that are the input itself, averaged, and weighed for two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.maps = nn.Identity()
        self.later = nn.ReLU()
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[4.0, 8.0], [-4.0, 4.0]])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(self.first(x)).mean((2, 3)))


class Twice(nn.Module):
    """Calls one module twice, with three times its output in between, and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x + 0)
        x = self.relu(3 * x - 6)
        return x.sum((2, 3))


class Branches(nn.Module):
    """Two branches, each of which gives one output of two, and a third that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.idle = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.idle(x)
        return self.left(x[:, :1]).sum((1, 2, 3)), self.right(x[:, 1:]).sum((1, 2, 3))


class Nested(nn.Module):
    """Returns what segmentation networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(1, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": 2 * self.backbone(x)}


def grid(*rows: list[float]) -> Tensor:
    return torch.tensor([[rows]], dtype=torch.float64)


def explained(net: nn.Module, x: Tensor = MAPS, **arguments: Any) -> Tensor:
    return cnnviz.explain(net, x, "grad-cam", **arguments).values


# Class 0: the mean slopes are 4/4 = 1 and 8/4 = 2; class 1: -1 and 1.
CLASS_0 = grid([9, 2], [-5, 20])
CLASS_1 = grid([3, -2], [-7, 4])


@pytest.mark.parametrize(("target", "expected"), [(0, CLASS_0), (1, CLASS_1)])
def test_maps_are_weighed_by_their_mean_slopes(target: int, expected: Tensor) -> None:
    signed = explained(Pooled(), layer="maps", target=target, relu=False, upsample=None)
    torch.testing.assert_close(signed, expected)
    positive = explained(Pooled(), layer="maps", target=target, upsample=None)
    torch.testing.assert_close(positive, expected.clamp(min=0))


def test_slopes_are_averaged_over_space() -> None:
    class Uneven(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return (self.maps(x) * x.new_tensor([[1.0, 2.0], [3.0, 6.0]])).sum((2, 3))  # mean slope 3, or 0

    torch.testing.assert_close(explained(Uneven(), layer="maps", target=0, upsample=None), grid([3, 6], [9, 12]))


def test_relu_comes_before_upsampling() -> None:
    class Enlarged(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :, ::2, ::2])

    x = MAPS.repeat_interleave(2, 2).repeat_interleave(2, 3)
    got = explained(Enlarged(), x, layer="maps", target=1)
    torch.testing.assert_close(got[0, 0, 0], torch.tensor([3.0, 2.25, 0.75, 0.0], dtype=torch.float64))
    assert_same_map(got, bilinear(CLASS_1.clamp(min=0), (4, 4)))
    assert_same_map(explained(Enlarged(), x, layer="maps", target=1, relu=False), bilinear(CLASS_1, (4, 4)))


@pytest.mark.parametrize("size", [(64, 64), (50, 75), (33, 97)])
def test_any_image_size_equals_twin(size: tuple[int, int]) -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64, size=size)
    heat = grad_cam(*maps_and_slopes(net, x, lambda output: output[:, 2], "layer3"))
    assert_same_map(explained(net, x, layer="layer3", target=2), bilinear(heat, x.shape[2:]))
    assert_same_map(explained(net, x, layer="layer3", target=2, upsample=None), heat)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("vgg16", "features.29"),  # the pooling after it is none of its maps
        ("squeezenet1_1", "features"),  # classifier.1 holds the class scores, as maps
        ("mobilenet_v2", "features"),
        ("densenet121", "features"),  # what follows is functional
    ],
)
def test_default_layer_is_the_last_maps_before_the_head(name: str, layer: str) -> None:
    net, x = network(name, torch.float64), images(torch.float64)
    got = cnnviz.explain(net, x, "grad-cam", target=3)
    assert got.provenance.layer == layer
    assert torch.equal(got.values, explained(net, x, target=3, layer=layer))


def test_layers_are_fused_by_the_mean_of_their_enlarged_maps() -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    alone = [explained(net, x, target=3, layer=layer) for layer in ("layer2", "layer3", "layer4")]
    got = cnnviz.explain(net, x, "grad-cam", target=3, layer=["layer2", "layer3", "layer4"])
    assert_same_map(got.values, (alone[0] + alone[1] + alone[2]) / 3)
    assert got.provenance.layer == ["layer2", "layer3", "layer4"]


def test_each_layer_is_rectified_before_they_are_fused() -> None:
    class Sides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plus, self.minus = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.plus(x).mean((2, 3)) + 2 * self.minus(-x).mean((2, 3))

    x = grid([1, -2])
    layers = {"plus": grid([0.5, -1]), "minus": grid([-1, 2])}
    for layer, heat in layers.items():
        assert torch.equal(explained(Sides(), x, target=0, layer=layer, relu=False, upsample=None), heat)
    assert torch.equal(explained(Sides(), x, target=0, layer=list(layers), upsample=None), grid([0.25, 1]))
    signed = explained(Sides(), x, target=0, layer=list(layers), relu=False, upsample=None)
    assert torch.equal(signed, grid([-0.25, 0.5]))


def test_maps_of_one_size_are_fused_without_resizing() -> None:
    got = explained(Pooled(), layer=["first", "maps"], target=0, upsample=None)
    torch.testing.assert_close(got, CLASS_0.clamp(min=0))


def test_maps_of_different_sizes_are_not_fused_without_resizing() -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    with pytest.raises(cnnviz.OptionError, match="upsample"):
        explained(net, x, target=3, layer=["layer3", "layer4"], upsample=None)


# x = 1, 2, 3 gives 1, 2, 3 at the first call and 0, 0, 3 at the second; only the last pixel reaches the score.
@pytest.mark.parametrize(
    ("layer", "expected", "recorded"),
    [("relu#0", [1, 2, 3], "relu#0"), ("relu#1", [0, 0, 3], "relu#1"), ("relu", [0, 0, 3], "relu#1")],
)
def test_calls_of_a_reused_module_are_told_apart(layer: str, expected: list[float], recorded: str) -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0]]]], dtype=torch.float64)
    got = cnnviz.explain(Twice(), x, "grad-cam", target=0, layer=layer, upsample=None)
    torch.testing.assert_close(got.values, x.new_tensor(expected).reshape(1, 1, 1, 3))
    assert got.provenance.layer == recorded


@pytest.mark.parametrize("call", [0, 1])
def test_calls_of_a_reused_module_equal_twin(call: int) -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    heat = grad_cam(*maps_and_slopes(net, x, lambda output: output[:, 2], "layer2.1.relu", call))
    assert_same_map(explained(net, x, target=2, layer=f"layer2.1.relu#{call}", upsample=None), heat)


def test_a_call_that_does_not_happen_is_refused() -> None:
    with pytest.raises(cnnviz.LayerError, match=r"relu#2.*2 times.*#1"):
        explained(Twice(), torch.ones(1, 1, 2, 2), target=0, layer="relu#2")


@pytest.mark.parametrize(
    ("target", "score"),
    [
        (cnnviz.channel("layer4", 3), lambda maps: maps[:, 3].mean((1, 2))),
        (cnnviz.channel("layer4", 3, reduce="max"), lambda maps: maps[:, 3].amax((1, 2))),
        (cnnviz.neuron("layer4", 3, 1, 0), lambda maps: maps[:, 3, 1, 0]),
    ],
    ids=["mean", "maximum", "neuron"],
)
def test_inner_targets_equal_twin(target: Any, score: Any) -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    upto = nn.Sequential(*list(net.children())[:-2])
    heat = grad_cam(*maps_and_slopes(upto, x, score, "6"))
    assert_same_map(explained(net, x, layer="layer3", target=target, upsample=None), heat)


def test_the_layer_itself_may_be_the_target() -> None:
    got = explained(Pooled(), layer="maps", target=cnnviz.neuron("maps", 1, 0, 0), upsample=None)
    torch.testing.assert_close(got, grid([1, 0], [0, 2]))  # mean slope 0 and 1/4, at the second map


def test_a_callable_target_sees_the_whole_output() -> None:
    net = Nested().double()
    x = torch.randn(2, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = lambda output: output["out"][:, 1].mean((1, 2))
    got = cnnviz.explain(net, x, "grad-cam", layer="backbone", target=target, relu=False, upsample=None)
    torch.testing.assert_close(got.values, 0.1 * net.backbone(x)[:, 1:2].detach())
    assert got.target is None


def test_a_class_target_needs_class_scores() -> None:
    with pytest.raises(cnnviz.TargetError, match=r"callable"):
        explained(Nested().double(), torch.ones(1, 1, 4, 5, dtype=torch.float64), layer="backbone", target=1)


@pytest.mark.parametrize(("layer", "branch"), [("left", 1), ("right", 0), ("idle", 0)])
def test_a_target_that_does_not_depend_on_the_layer_is_refused(layer: str, branch: int) -> None:
    with pytest.raises(cnnviz.LayerError, match=f"does not depend on layer '{layer}'"):
        explained(Branches(), layer=layer, target=lambda output: output[branch])


def test_a_target_may_depend_on_one_branch_alone() -> None:
    got = explained(Branches(), layer="left", target=lambda output: output[0], upsample=None)
    torch.testing.assert_close(got, MAPS[:, :1])


def test_a_class_without_any_slope_at_the_layer_gives_zeros() -> None:
    net = Pooled()
    net.head.weight.data[1] = 0
    assert not explained(net, layer="maps", target=1).any()


def test_a_target_before_the_layer_is_refused() -> None:
    with pytest.raises(cnnviz.LayerError, match="maps"):
        explained(Pooled(), layer="maps", target=cnnviz.channel("first", 0))


def test_a_layer_that_returns_no_maps_is_refused() -> None:
    with pytest.raises(cnnviz.LayerError, match=r"head.*\(1, 2\)"):
        explained(Pooled(), layer="head", target=0)


def test_a_layer_that_is_not_called_is_refused() -> None:
    with pytest.raises(cnnviz.LayerError, match=r"later.*never called"):
        explained(Pooled(), layer="later", target=0)


def test_a_wrong_layer_tells_the_nearest() -> None:
    with pytest.raises(cnnviz.LayerError, match=r"layer5.*'layer4'"):
        explained(network("resnet18", torch.float64), images(torch.float64), layer="layer5")


@pytest.mark.parametrize("option", [{"upsample": "nearest"}, {"relu": "perhaps"}, {"upsamle": None}])
def test_a_wrong_option_is_named(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(cnnviz.OptionError, match=f"'{name}'"):
        explained(Pooled(), layer="maps", target=0, **option)


def test_each_sample_has_its_own_target_and_score() -> None:
    got = cnnviz.explain(Pooled(), MAPS.expand(2, -1, -1, -1), "grad-cam", layer="maps", target=[1, 0], relu=False)
    torch.testing.assert_close(got.values, torch.cat([CLASS_1, CLASS_0]))
    assert got.target.tolist() == [1, 0]
    assert got.scores.tolist() == [-2.0, 26.0]  # means 2.5 and 2


def test_batch_equals_singles() -> None:
    net, x = network("densenet121", torch.float64), images(torch.float64, count=3)
    batch = explained(net, x, target=[1, 5, 9])
    singles = [explained(net, x[i : i + 1], target=target) for i, target in enumerate([1, 5, 9])]
    assert_same_map(batch, torch.cat(singles))


class Unlearned(nn.Module):
    """A backbone without gradients, and a linear probe on top."""

    def __init__(self, *, cut: bool = True) -> None:
        super().__init__()
        self.cut = cut
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.cut and torch.is_grad_enabled()):
            maps = self.backbone(x)
        return self.head(maps.mean((2, 3)))


def test_a_backbone_that_runs_without_gradients_is_explained() -> None:
    net, x = Unlearned().eval(), torch.rand(2, 3, 8, 8)
    plain = Unlearned(cut=False).eval()
    plain.load_state_dict(net.state_dict())
    got = cnnviz.explain(net, x, "grad-cam", target=0)
    assert got.provenance.layer == "backbone"
    assert torch.equal(got.values, explained(plain, x, target=0))
    assert got.values.abs().max() > 0


def test_a_layer_whose_gradients_are_cut_behind_it_is_refused() -> None:
    with pytest.raises(cnnviz.LayerError, match=r"does not depend on layer 'backbone\.0' in a way.*no_grad\(\)"):
        explained(Unlearned().eval(), torch.rand(2, 3, 8, 8), layer="backbone.0", target=0)


class Called(nn.Module):
    """Calls a convolution as it is told to."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.maps, self.function = nn.Conv2d(3, 4, 3), nn.Identity(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x).mean((2, 3))


def test_a_layer_that_is_called_for_each_sample_is_refused() -> None:
    net = Called(lambda self, x: torch.cat([self.conv(row[None]) for row in x])).eval()
    with pytest.raises(cnnviz.LayerError, match=r"'conv' returns 1 maps for 2 inputs, expected one for each"):
        explained(net, torch.rand(2, 3, 8, 8), layer="conv", target=0)


def test_complex_maps_are_refused() -> None:
    net = Called(lambda self, x: self.maps(torch.fft.fft2(self.conv(x))).abs()).eval()
    with pytest.raises(cnnviz.LayerError, match=r"'maps' returns torch\.complex64, expected real maps"):
        explained(net, torch.rand(2, 3, 8, 8), layer="maps", target=0)


def test_an_in_place_layer_whose_input_is_used_again_counts_all_uses() -> None:
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
            self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            made = self.second(self.relu(x))
            return self.head((made + x).mean((2, 3)))

    net, x = Unit().double().eval(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    got = explained(net, x, layer="relu", target=1, relu=False, upsample=None)
    maps = net.first(x).relu().detach().requires_grad_()
    score = net.head((net.second(maps) + maps).mean((2, 3)))[:, 1]
    (slope,) = torch.autograd.grad(score.sum(), maps)
    torch.testing.assert_close(got, (slope.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).detach())


def test_maps_of_class_scores_are_explained_where_there_are_no_others() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.rand(1, 3, 8, 8)
    got = cnnviz.explain(net, x, "grad-cam", target=2, upsample=None)
    assert got.provenance.layer == "1"
    torch.testing.assert_close(got.values, net[:2](x)[:, 2:3].detach() / 36)
