from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import cnnviz
from cnnviz.testing import SmallNet
from tests.reference import chain
from tests.reference.relu_rules import ruled_gradient
from tests.techniques.measure import assert_same_map, distance
from tests.techniques.networks import images, network

RULES = {"guided-backprop": "guided", "deconvnet": "deconvnet"}
both = pytest.mark.parametrize("technique", RULES)

COMES_BACK = [1.0, -1.0, 2.0, 3.0, -4.0, 5.0]
ENTERS = [-1.0, 2.0, 3.0, -4.0, 7.0, 8.0]


class Rectifier(nn.Module):
    """Calls a function, and nothing else."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def row(*values: float) -> Tensor:
    return torch.tensor([[[values]]], dtype=torch.float64)


def weighed(output: Tensor) -> Tensor:
    """A score whose gradient at the output is COMES_BACK."""
    return (output * output.new_tensor(COMES_BACK)).sum((1, 2, 3))


def explained(net: nn.Module, x: Tensor, technique: str, target: Any = weighed) -> Tensor:
    return cnnviz.explain(net, x, technique, target=target).values


def in_place_unseen(x: Tensor) -> Tensor:
    """Write to x, and leave what is returned aside."""
    F.relu(x, inplace=True)
    return x


def into_another_tensor(x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    torch.clamp(x, min=0, out=made)
    return made


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place by position": lambda x: F.relu(x, True),
    "F.relu in place, its result unused": in_place_unseen,
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": Tensor.relu,
    "Tensor.relu_": Tensor.relu_,
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "clamp(0)": lambda x: x.clamp(0),
    "clamp_(min=0)": lambda x: x.clamp_(min=0),
    "torch.clamp": lambda x: torch.clamp(x, 0.0),
    "clamp(zeros)": lambda x: x.clamp(min=torch.zeros_like(x)),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "clamp_min_": lambda x: x.clamp_min_(0),
    "clip": lambda x: x.clip(min=0),
    "clip_": lambda x: x.clip_(min=0),
    "maximum(x, 0)": lambda x: torch.maximum(x, torch.zeros(())),
    "maximum(0, x)": lambda x: torch.maximum(torch.zeros_like(x), x),
    "Tensor.maximum": lambda x: x.maximum(torch.zeros_like(x)),
    "nn.Threshold": nn.Threshold(0, 0),
    "nn.Threshold in place": nn.Threshold(0, 0, inplace=True),
    "clamp(out=…)": into_another_tensor,
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 100),
    "nn.Hardtanh in place": nn.Hardtanh(0.0, 100.0, inplace=True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_relu_follows(spelling: str) -> None:
    net = Rectifier(SPELLINGS[spelling])
    torch.testing.assert_close(explained(net, row(*ENTERS), "deconvnet"), row(1, 0, 2, 3, 0, 5))
    torch.testing.assert_close(explained(net, row(*ENTERS), "guided-backprop"), row(0, 0, 2, 0, 0, 5))


CEILINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 in place": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.relu6 in place": lambda x: F.relu6(x, inplace=True),
    "clamp(0, 6)": lambda x: x.clamp(0, 6),
    "clamp_(min, max)": lambda x: x.clamp_(min=0, max=6),
    "nn.Hardtanh": nn.Hardtanh(0, 6),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
}


@pytest.mark.parametrize("spelling", CEILINGS)
def test_a_ceiling_stops_the_forward_mask_alone(spelling: str) -> None:
    net = Rectifier(CEILINGS[spelling])
    torch.testing.assert_close(explained(net, row(*ENTERS), "deconvnet"), row(1, 0, 2, 3, 0, 5))
    torch.testing.assert_close(explained(net, row(*ENTERS), "guided-backprop"), row(0, 0, 2, 0, 0, 0))


@pytest.mark.parametrize("spelling", {**SPELLINGS, **CEILINGS})
def test_scores_are_those_of_the_network_itself(spelling: str) -> None:
    function = {**SPELLINGS, **CEILINGS}[spelling]
    with torch.no_grad():
        expected = weighed(function(row(*ENTERS)))
    got = cnnviz.explain(Rectifier(function), row(*ENTERS), "guided-backprop", target=weighed)
    assert torch.equal(got.scores, expected)


def test_nothing_guided_passes_an_input_of_zero() -> None:
    x = row(0, 0, 0, 0, 0, 0)
    torch.testing.assert_close(explained(nn.ReLU(), x, "guided-backprop"), x)
    torch.testing.assert_close(explained(nn.ReLU(), x, "deconvnet"), row(1, 0, 2, 3, 0, 5))


def normal_density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


SMOOTH: dict[str, tuple[nn.Module, Callable[[float], float]]] = {
    "LeakyReLU": (nn.LeakyReLU(0.1), lambda x: 1.0 if x > 0 else 0.1),
    "LeakyReLU in place": (nn.LeakyReLU(0.1, inplace=True), lambda x: 1.0 if x > 0 else 0.1),
    "PReLU": (nn.PReLU(init=0.25).double(), lambda x: 1.0 if x > 0 else 0.25),
    "ELU": (nn.ELU(), lambda x: 1.0 if x > 0 else math.exp(x)),
    "Softplus": (nn.Softplus(), sigmoid),
    "SiLU": (nn.SiLU(), lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
    "GELU": (nn.GELU(), lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))) + x * normal_density(x)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_rectifiers_follow_with_their_own_slope(name: str) -> None:
    net, slope = SMOOTH[name]
    guided = row(*(max(back, 0.0) * slope(x) for back, x in zip(COMES_BACK, ENTERS, strict=True)))
    torch.testing.assert_close(explained(Rectifier(net), row(*ENTERS), "guided-backprop"), guided)
    torch.testing.assert_close(explained(Rectifier(net), row(*ENTERS), "deconvnet"), row(1, 0, 2, 3, 0, 5))


@both
def test_gates_pass_gradients_of_both_signs(technique: str) -> None:
    def gated(x: Tensor) -> Tensor:
        return F.relu(1 - torch.sigmoid(x))  # what comes back to the gate is negative

    expected = row(*(-max(back, 0) * sigmoid(x) * (1 - sigmoid(x)) for back, x in zip(COMES_BACK, ENTERS, strict=True)))
    torch.testing.assert_close(explained(Rectifier(gated), row(*ENTERS), technique), expected)


def test_max_pooling_passes_through_its_switches() -> None:
    net = nn.Sequential(nn.ReLU(), nn.MaxPool2d((1, 2)))
    target = lambda output: (output * output.new_tensor([2.0, -3.0, 5.0])).sum((1, 2, 3))
    x = row(1, 4, 6, 2, -7, -8)
    assert torch.equal(explained(net, x, "deconvnet", target), row(0, 2, 0, 0, 5, 0))
    assert torch.equal(explained(net, x, "guided-backprop", target), row(0, 2, 0, 0, 0, 0))


def test_rules_apply_at_each_relu_of_the_way_back() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 2, 1, bias=False)).double()
    net[1].weight.data[:] = -1.0
    net[3].weight.data = torch.tensor([3.0, -2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    x = row(1, -1)
    # From channel 1 comes -2, which the upper ReLU stops; were it to pass, -1 would turn its sign for the lower one.
    for c, expected in ((0, row(0, 0)), (1, row(0, 0))):
        assert torch.equal(explained(net, x, "deconvnet", cnnviz.neuron("3", c, 0, 0)), expected)
    net[1].weight.data[:] = 1.0
    assert torch.equal(explained(net, x, "deconvnet", cnnviz.neuron("3", 0, 0, 1)), row(0, 3))
    assert torch.equal(explained(net, x, "guided-backprop", cnnviz.neuron("3", 0, 0, 1)), row(0, 0))
    assert torch.equal(explained(net, x, "guided-backprop", cnnviz.neuron("3", 0, 0, 0)), row(3, 0))


@settings(max_examples=30)
@given(
    technique=st.sampled_from(sorted(RULES)),
    height=st.integers(4, 8),
    width=st.integers(4, 8),
    unit=st.integers(0, 2),
    seed=st.integers(0, 10_000),
)
def test_chains_equal_a_backward_pass_by_hand(technique: str, height: int, width: int, unit: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 1),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(3 * (height // 2) * (width // 2), 4),
        nn.ReLU(),
        nn.Linear(4, 3),
    ]
    net = nn.Sequential(*layers).double()
    for parameter in net.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.randn(1, 2, height, width, generator=generator, dtype=torch.float64)
    got = explained(net, x, technique, unit)[0]
    expected = torch.from_numpy(chain.gradient(layers, x[0].numpy(), unit, RULES[technique]))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


TARGETS: dict[str, tuple[Callable[[str], Any], Callable[[Tensor], Tensor]]] = {
    "neuron": (lambda layer: cnnviz.neuron(layer, 5, 1, 2), lambda maps: maps[:, 5, 1, 2]),
    "mean": (lambda layer: cnnviz.channel(layer, 7), lambda maps: maps[:, 7].mean((1, 2))),
    "maximum": (lambda layer: cnnviz.channel(layer, 7, reduce="max"), lambda maps: maps[:, 7].amax((1, 2))),
}


@both
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(("name", "layer"), [("vgg16", 21), ("vgg16", 22), ("mobilenet_v2", 6)])
def test_inner_targets_equal_the_twin_of_the_layers_up_to_there(
    technique: str, name: str, layer: int, kind: str
) -> None:
    net, x = network(name, torch.float64), images(torch.float64)
    target, score = TARGETS[kind]
    expected = ruled_gradient(net.features[: layer + 1], x, score, RULES[technique])
    assert_same_map(explained(net, x, technique, target(f"features.{layer}")), expected)


@both
def test_a_target_before_the_first_rectifier_is_refused(technique: str) -> None:
    with pytest.raises(cnnviz.ModelError, match="saliency"):
        explained(network("vgg16", torch.float64), images(torch.float64), technique, cnnviz.channel("features.0", 3))


@both
def test_neurons_equal_captum(technique: str) -> None:
    kind = captum.attr.NeuronGuidedBackprop if technique == "guided-backprop" else captum.attr.NeuronDeconvolution
    net, x = network("resnet18", torch.float64), images(torch.float64)
    with warnings.catch_warnings():
        # captum says at each call that it sets hooks, and takes them away again
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU activations")
        expected = kind(net, net.layer3).attribute(x.clone().requires_grad_(), neuron_selector=(5, 1, 2)).detach()
    assert_same_map(explained(net, x, technique, cnnviz.neuron("layer3", 5, 1, 2)), expected)


@both
def test_a_network_without_rectifier_is_refused(technique: str) -> None:
    with pytest.raises(cnnviz.ModelError, match="saliency"):
        explained(Rectifier(torch.tanh), row(*ENTERS), technique)


@both
def test_maps_keep_the_channels_and_the_sign(technique: str) -> None:
    got = explained(network("resnet18", torch.float32), images(torch.float32), technique, 3)
    assert got.shape == images(torch.float32).shape
    assert got.min() < 0 < got.max()


@both
def test_options_are_refused(technique: str) -> None:
    with pytest.raises(cnnviz.OptionError, match=f"'sign' of '{technique}'"):
        cnnviz.explain(nn.ReLU(), row(1, 2), technique, sign="abs")


@both
def test_batch_equals_singles(technique: str) -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64, count=3, size=(40, 32))
    batch = explained(net, x, technique, [1, 5, 9])
    singles = [explained(net, x[i : i + 1], technique, target) for i, target in enumerate([1, 5, 9])]
    assert_same_map(batch, torch.cat(singles))


@both
def test_the_rule_ends_with_the_call(technique: str) -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    ruled = explained(net, x, technique, 3)
    plain = cnnviz.explain(net, x, "saliency", target=3, channels="none", sign="signed").values
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf)[:, 3].sum(), leaf)
    assert_same_map(plain, expected)
    assert distance(ruled, plain) > 0.1


@pytest.mark.parametrize(
    "target",
    [
        lambda output: -F.softplus(-output[:, 1]),
        lambda output: 50 - F.relu(50 - output[:, 1]),
        lambda output: F.leaky_relu(output[:, 1], 2.0),
    ],
)
@both
def test_rectifiers_of_the_target_pass_gradients_as_ever(technique: str, target: Callable[[Tensor], Tensor]) -> None:
    net, x = SmallNet().eval().double(), torch.rand(1, 3, 16, 16, dtype=torch.float64)
    output = net(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(target(output).sum(), output)
    assert slope[0, 1] > 0
    expected = slope[0, 1] * explained(net, x, technique, target=1)
    assert expected.abs().max() > 0
    torch.testing.assert_close(explained(net, x, technique, target=target), expected, rtol=1e-9, atol=0)


@both
def test_a_rectifier_of_the_target_is_none_of_the_network(technique: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(cnnviz.ModelError, match="met no ReLU"):
        explained(net, torch.rand(1, 3, 8, 8), technique, target=lambda output: F.relu(output[:, 1] + 100))
