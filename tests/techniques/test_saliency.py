from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import cnnviz
from cnnviz.testing import SmallNet
from tests.reference import chain
from tests.reference.saliency import gradient, reduced, smooth_gradient
from tests.techniques.measure import assert_same_map
from tests.techniques.networks import images, network

SLOPES = [[1.0, -2.0, 3.0], [-4.0, 0.5, 2.0]]  # of two channels at three pixels


@pytest.fixture
def linear() -> nn.Module:
    """One score whose gradient is SLOPES wherever it is taken."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 1, bias=False)).double()
    net[1].weight.data = torch.tensor(SLOPES, dtype=torch.float64).reshape(1, 6)
    return net


class HalfSquare(nn.Module):
    """The gradient of its one score at the input is the input itself."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().flatten(1).sum(1, keepdim=True)


class Opposites(nn.Module):
    """Two classes, of which one is the negative of the other."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1) @ torch.arange(1.0, 1.0 + x[0].numel(), dtype=x.dtype)
        return torch.stack([total, -total], dim=1)


def pixels(*rows: list[float]) -> Tensor:
    """Return one image, a channel for each row, one pixel high."""
    return torch.tensor([[[row] for row in rows]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("channels", "sign", "expected"),
    [
        ("max", "abs", [4, 2, 3]),
        ("max", "square", [16, 4, 9]),
        ("max", "signed", [1, 0.5, 3]),
        ("mean", "abs", [2.5, 1.25, 2.5]),
        ("mean", "square", [8.5, 2.125, 6.5]),
        ("mean", "signed", [-1.5, -0.75, 2.5]),
        ("norm", "abs", [math.sqrt(17), math.sqrt(4.25), math.sqrt(13)]),
        ("norm", "square", [math.sqrt(257), math.sqrt(16.0625), math.sqrt(97)]),
        ("norm", "signed", [math.sqrt(17), math.sqrt(4.25), math.sqrt(13)]),
    ],
)
def test_sign_is_taken_before_channels(linear: nn.Module, channels: str, sign: str, expected: list[float]) -> None:
    got = cnnviz.explain(linear, pixels([0, 0, 0], [0, 0, 0]), "saliency", channels=channels, sign=sign)
    torch.testing.assert_close(got.values, pixels(expected))


@pytest.mark.parametrize(
    ("sign", "expected"),
    [("abs", [[1, 2, 3], [4, 0.5, 2]]), ("square", [[1, 4, 9], [16, 0.25, 4]]), ("signed", SLOPES)],
)
def test_all_channels_are_kept_on_demand(linear: nn.Module, sign: str, expected: list[list[float]]) -> None:
    got = cnnviz.explain(linear, pixels([0, 0, 0], [0, 0, 0]), "saliency", channels="none", sign=sign)
    torch.testing.assert_close(got.values, pixels(*expected))


def test_largest_magnitude_without_noise_is_the_default(linear: nn.Module) -> None:
    got = cnnviz.explain(linear, pixels([1, 2, 3], [4, 5, 6]), "saliency")
    assert got.provenance.options == {"channels": "max", "sign": "abs", "samples": 1, "noise": 0.0}
    torch.testing.assert_close(got.values, pixels([4, 2, 3]))


@pytest.mark.parametrize("sign", ["abs", "square", "signed"])
@pytest.mark.parametrize("channels", ["max", "mean", "norm", "none"])
def test_options_equal_twin(channels: str, sign: str) -> None:
    net, x = network("squeezenet1_1", torch.float64), images(torch.float64, size=(36, 48))
    got = cnnviz.explain(net, x, "saliency", target=4, channels=channels, sign=sign)
    assert_same_map(got.values, reduced(gradient(net, x, lambda output: output[:, 4]), sign=sign, channels=channels))


@settings(max_examples=15)
@given(
    height=st.integers(4, 7),
    width=st.integers(4, 7),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    unit=st.integers(0, 2),
    seed=st.integers(0, 10_000),
)
def test_gradient_equals_a_backward_pass_by_hand(
    height: int, width: int, stride: int, padding: int, unit: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Conv2d(2, 3, 2, stride, padding), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU6(), nn.Flatten()]
    size = nn.Sequential(*layers)(torch.zeros(1, 2, height, width)).shape[1]
    net = nn.Sequential(*layers, nn.Linear(size, 3)).double()
    for parameter in net.parameters():
        parameter.data.normal_(generator=generator)
    x = 3 * torch.randn(1, 2, height, width, generator=generator, dtype=torch.float64)
    got = cnnviz.explain(net, x, "saliency", target=unit, channels="none", sign="signed").values[0]
    expected = torch.from_numpy(chain.gradient(net, x[0].numpy(), unit, "plain"))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_smoothgrad_averages_gradients_of_noisy_copies() -> None:
    x = torch.cat([pixels([0, 1, 2, 5]), pixels([1, 1, -1, 0])])  # value ranges of 5 and of 2
    generator = torch.Generator().manual_seed(11)
    drawn = [torch.randn(1, 1, 4, generator=generator).double() for _ in range(3)]
    mean = (drawn[0] + drawn[1] + drawn[2]) / 3
    expected = x + 0.2 * torch.tensor([5.0, 2.0])[:, None, None, None] * mean
    got = cnnviz.explain(HalfSquare(), x, "saliency", sign="signed", samples=3, noise=0.2, seed=11)
    torch.testing.assert_close(got.values, expected)
    magnitude = cnnviz.explain(HalfSquare(), x, "saliency", samples=3, noise=0.2, seed=11)
    torch.testing.assert_close(magnitude.values, expected.abs(), msg="the mean's magnitude, not the magnitudes' mean")


@pytest.mark.parametrize("sign", ["abs", "square"])
def test_smoothgrad_equals_twin(sign: str) -> None:
    net, x = network("squeezenet1_1", torch.float64), images(torch.float64, size=(36, 48))
    got = cnnviz.explain(net, x, "saliency", target=4, sign=sign, samples=4, noise=0.15, seed=3)
    slope = smooth_gradient(net, x, lambda output: output[:, 4], samples=4, noise=0.15, seed=3)
    assert_same_map(got.values, reduced(slope, sign=sign, channels="max"))


def test_smoothgrad_depends_on_seed_alone() -> None:
    x = pixels([0, 1, 2, 5])
    first, again, other = (
        cnnviz.explain(HalfSquare(), x, "saliency", samples=2, noise=0.2, seed=seed).values for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_samples_without_noise_are_the_plain_gradient() -> None:
    x = pixels([0, 1, 2, 5])
    assert torch.equal(cnnviz.explain(HalfSquare(), x, "saliency", samples=4).values, x)


def test_top_class_is_that_of_the_image_without_noise() -> None:
    x = pixels([0.01, 0.0, 0.02])  # noise as large as this turns the sign of the scores
    got = cnnviz.explain(Opposites(), x, "saliency", sign="signed", samples=20, noise=5.0)
    torch.testing.assert_close(got.values, pixels([1, 2, 3]))
    assert got.target.tolist() == [0]


def test_scores_are_those_of_the_image_without_noise() -> None:
    x = pixels([0, 1, 2, 5])
    got = cnnviz.explain(HalfSquare(), x, "saliency", samples=5, noise=0.5)
    assert got.scores.tolist() == [15.0]


def test_each_sample_has_its_own_target(linear: nn.Module) -> None:
    net = Opposites()
    x = pixels([1, 2, 3]).expand(2, 1, 1, 3)
    got = cnnviz.explain(net, x, "saliency", target=[1, 0], sign="signed")
    torch.testing.assert_close(got.values, torch.cat([pixels([-1, -2, -3]), pixels([1, 2, 3])]))


@pytest.mark.parametrize("options", [{}, {"samples": 3, "noise": 0.2, "seed": 5}])
def test_batch_equals_singles(options: dict[str, float]) -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64, count=3, size=(40, 32))
    batch = cnnviz.explain(net, x, "saliency", target=[1, 5, 9], **options)
    singles = [cnnviz.explain(net, x[i : i + 1], "saliency", target=t, **options) for i, t in enumerate([1, 5, 9])]
    assert_same_map(batch.values, torch.cat([single.values for single in singles]))
    torch.testing.assert_close(batch.scores, torch.cat([single.scores for single in singles]))


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"channels": "sum"}, r"'channels'.*'sum'.*'max', 'mean', 'norm', 'none'"),
        ({"sign": "plus"}, r"'sign'.*'plus'.*'abs', 'square', 'signed'"),
        ({"samples": 0}, r"'samples'.*got 0.*1 to 10000"),
        ({"samples": 1.5}, r"'samples'.*got 1.5"),
        ({"noise": -0.1}, r"'noise'.*got -0.1.*0 to 10"),
        ({"noise": math.nan}, r"'noise'.*got nan"),
        ({"chanels": "max"}, r"'chanels'.*'channels'"),
    ],
)
def test_a_wrong_option_is_named_with_its_bounds(option: dict[str, object], told: str) -> None:
    with pytest.raises(cnnviz.OptionError, match=told):
        cnnviz.explain(HalfSquare(), pixels([1, 2]), "saliency", **option)


@pytest.mark.parametrize("technique", ["saliency", "guided-backprop", "integrated-gradients"])
def test_a_score_that_gradients_do_not_lead_to_from_the_input_is_refused(technique: str) -> None:
    probe = nn.Linear(5, 1)
    net = SmallNet().eval()
    with pytest.raises(cnnviz.TargetError, match=r"does not depend on the input.*detach\(\).*quantized weights"):
        cnnviz.explain(net, torch.rand(1, 3, 16, 16), technique, target=lambda output: probe(output.detach())[:, 0])
