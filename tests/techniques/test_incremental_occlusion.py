"""The incremental way gives the map that the dense way gives, to rounding, and saves what it says."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import cnnviz
from cnnviz.data import demo_picture
from tests.techniques.networks import SIZE, images, network
from tests.trained import resnet50_of_keras


def both(model: Any, x: Any, **given: Any) -> tuple[Tensor, Tensor]:
    made = [cnnviz.explain(model, x, "occlusion", method=method, **given) for method in ("incremental", "dense")]
    return made[0].values, made[1].values


@pytest.mark.parametrize(
    ("name", "window", "stride"),
    [
        ("resnet18", 12, 12),
        ("resnet18", (9, 16), (7, 11)),
        ("resnet18", SIZE, 8),
        ("vgg16", 16, 24),
        ("squeezenet1_1", 12, 16),
        ("mobilenet_v2", (20, 8), 16),
        ("densenet121", 16, 24),
    ],
)
def test_maps_are_equal_in_double_precision(name: str, window: Any, stride: Any) -> None:
    incremental, dense = both(
        network(name, torch.float64), images(torch.float64), window=window, stride=stride, target=[3, 7], baseline=0.3
    )
    assert float((incremental - dense).abs().max()) <= 1e-9 * float(dense.abs().max())


def test_maps_of_a_photograph_are_equal_to_rounding() -> None:
    """By trained weights, single precision: within twice the dense map's own distance from the one in double."""
    model, cat = cnnviz.load_model(), demo_picture()
    x = model.prepare([cat])
    incremental, dense = both(model, x, window=48, stride=32, target=285)
    precise = cnnviz.explain(
        model.module.double(), x.double(), "occlusion", window=48, stride=32, target=285, method="dense"
    )
    own = float((dense - precise.values).abs().max())
    assert float((incremental - dense).abs().max()) <= 2 * own
    assert float((incremental - precise.values).abs().max()) <= 2 * own


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2", "densenet121"])
def test_maps_are_equal_to_rounding_in_single_precision(name: str) -> None:
    """Within twice the dense maps' own distance from those in double precision, of the worst of eight images."""
    given = {"window": 16, "stride": 16, "target": [3, 7] * 4}
    x = images(torch.float32, count=8)
    incremental, dense = both(network(name, torch.float32), x, **given)
    precise = cnnviz.explain(network(name, torch.float64), x.double(), "occlusion", method="dense", **given).values
    own = float((dense - precise).abs().max())
    assert float((incremental - precise).abs().max()) <= 2 * own
    assert float((incremental - dense).abs().max()) <= 2 * own


@pytest.mark.parametrize("method", ["auto", "incremental"])
def test_several_targets_of_several_images(method: str) -> None:
    x = images(torch.float64, count=5)
    given = {"window": 12, "stride": 16, "target": cnnviz.top(2)}
    made, dense = (
        cnnviz.explain(network("resnet18", torch.float64), x, "occlusion", method=way, **given).values
        for way in (method, "dense")
    )
    for row, expected in zip(made, dense, strict=True):
        assert float((row - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


class Changing(nn.Module):
    """Begins by writing to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.7)
        return self.conv(x).relu().mean((2, 3))


@pytest.mark.parametrize(("window", "stride"), [(8, (8, 16)), (8, (8, 48)), (8, (50, 8))])
def test_windows_beyond_the_border_leave_the_image_as_it_is(window: int, stride: Any) -> None:
    net, x = Changing().double(), torch.randn(1, 3, 48, 48, dtype=torch.float64)
    incremental, dense = both(net, x, window=window, stride=stride, target=1)
    assert float((incremental - dense).abs().max()) <= 1e-9 * float(dense.abs().max())


def test_memory_is_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    x = images(torch.float32, count=1, size=(96, 96))
    net = network("mobilenet_v2", torch.float32)
    for memory, most in (("1GiB", 64), ("24MiB", 6)):
        seen.clear()
        cnnviz.explain(net, x, "occlusion", window=16, stride=4, target=3, memory=memory, method="incremental")
        assert max(seen) <= most
    assert max(seen) < 20


FIFTY_THOUSAND = """
import resource, sys, torch, cnnviz
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 4, 7, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(8, 3),
).eval()
x = torch.randn(1, 1, 224, 224)

def run(stride):
    made = cnnviz.explain(net, x, "occlusion", window=1, stride=stride, target=1, memory="64MiB", method=sys.argv[1])
    return made.values, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

_, before = run(8)
values, after = run(1)
assert values.shape == (1, 1, 224, 224)
print(after - before)
"""


@pytest.mark.parametrize("method", ["dense", "incremental"])
def test_fifty_thousand_windows_stay_within_the_budget(method: str) -> None:
    """The growth of what the process holds, in KiB, over a run of 784 windows; 224 x 224 of them are 50,176."""
    run = subprocess.run([sys.executable, "-c", FIFTY_THOUSAND, method], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64 * 1024


@settings(max_examples=8)
@given(st.data())
def test_any_window_stride_border_and_baseline(data: st.DataObject) -> None:
    sides = data.draw(st.tuples(st.integers(33, 48), st.integers(33, 48)), "sides")
    window = tuple(data.draw(st.integers(1, side), "window") for side in sides)
    stride = data.draw(st.tuples(st.integers(5, 60), st.integers(5, 60)), "stride")
    baseline = data.draw(
        st.sampled_from([0.0, (0.1, -2.0, 0.5), torch.randn(3, *sides, dtype=torch.float64)]), "baseline"
    )
    x = images(torch.float64, size=(48, 48))[:, :, : sides[0], : sides[1]]
    incremental, dense = both(
        network("resnet18", torch.float64), x, window=window, stride=stride, target=cnnviz.top(2), baseline=baseline
    )
    assert float((incremental - dense).abs().max()) <= 1e-9 * float(dense.abs().max())


@pytest.mark.parametrize(
    "target",
    [cnnviz.channel("layer2", 5), cnnviz.neuron("layer3.0.conv1", 4, 2, 3), lambda output: output.square().sum(1)],
)
def test_any_target(target: Any) -> None:
    incremental, dense = both(
        network("resnet18", torch.float64), images(torch.float64), window=16, stride=12, target=target
    )
    assert float((incremental - dense).abs().max()) <= 1e-9 * float(dense.abs().max())


def test_each_call_and_each_image_of_a_batch_has_the_same_bits() -> None:
    """Which windows go together depends on the image's size alone, not on what was found out before."""
    net, x = network("resnet18", torch.float32), images(torch.float32, count=2)
    made = [
        cnnviz.explain(net, inputs, "occlusion", method="incremental", window=12, stride=16, target=3).values
        for inputs in (x, x, x[:1], x[1:])
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], torch.cat(made[2:]))


def test_threads_get_what_each_gets_alone() -> None:
    explainer = cnnviz.Explainer(
        network("resnet18", torch.float32), "occlusion", window=16, stride=8, method="incremental"
    )
    inputs = [images(torch.float32)[:1] + number for number in range(4)]
    alone = [explainer(x, 3).values for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: explainer(x, 3).values, inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


class Forgetful(nn.Module):
    """Writes to a view of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, :2].mul_(2)
        return x.mean((2, 3))


def test_what_cannot_be_followed_is_said_or_done_the_dense_way() -> None:
    net, x = Forgetful().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(cnnviz.ModelError, match=r"cannot be followed, since a view .* take 'auto'"):
        cnnviz.explain(net, x, "occlusion", method="incremental", target=0, window=8)
    auto, dense = (
        cnnviz.explain(net, x, "occlusion", method=method, target=0, window=8) for method in ("auto", "dense")
    )
    assert torch.equal(auto.values, dense.values)


def test_what_comes_behind_the_target_is_not_asked() -> None:
    """It may be what patches cannot be taken through, or all that would make them not worth it."""
    net, x = Forgetful().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    for target in (cnnviz.channel("conv", 0), [cnnviz.channel("conv", 1)]):
        made, dense = both(net, x, target=target, window=8)
        assert float((made - dense).abs().max()) <= 1e-9 * float(dense.abs().max())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many patches go through a network at a time, from now on."""
    from cnnviz.incremental import Changes

    seen: list[int] = []
    kept = Changes.patched
    monkeypatch.setattr(
        Changes, "patched", lambda self, numbers, base: seen.append(len(numbers)) or kept(self, numbers, base)
    )
    return seen


def test_auto_takes_what_computes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    x = images(torch.float32, count=1, size=(128, 128))
    cnnviz.explain(network("vgg16", torch.float32), x, "occlusion", window=16, stride=16, target=3)
    assert sum(seen) > 64, "patches of a network that sees little at a time"
    seen.clear()
    cnnviz.explain(network("vgg16", torch.float32), x, "occlusion", window=116, stride=4, target=3)
    assert not seen, "windows that are nearly the image are not followed"
    x = images(torch.float32, count=1, size=(64, 64))
    for target, followed in ((3, False), (cnnviz.channel("features.1", 3), True), (3, False)):
        cnnviz.explain(network("efficientnet_b0", torch.float32), x, "occlusion", window=8, target=target)
        assert bool(seen) == followed, "what comes behind the target does not count"
        seen.clear()
    cnnviz.explain(network("vgg16", torch.float32), x, "occlusion", window=16, stride=16, target=3, memory="8MiB")
    assert not seen, "what the network makes of the image would not fit the budget"


def test_real_resnet(data: Path) -> None:
    """Trained weights with strides in other places, and another epsilon."""
    net, units = resnet50_of_keras(data)
    model = cnnviz.load_model(net, preprocess=units)
    incremental, dense = both(model, data / "images" / "chelsea.png", window=64, stride=56)
    assert float((incremental - dense).abs().max()) <= 1e-4 * float(dense.abs().max())
    best = incremental[0, 0].argmax()
    assert 30 < int(best % 224) < 190, "on the cat's face"
