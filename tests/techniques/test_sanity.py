"""Maps depend on what the network learnt (Adebayo 2018), and calls leave nothing behind."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz.data import demo_picture
from tests import quick

SMOOTHED: dict[str, dict[str, Any]] = {
    "grad-cam": {},
    "saliency": {},
    "occlusion": {"window": 48, "stride": 24},
    "guided-backprop": {},
}


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each place of a map of magnitudes, averaged over 8 x 8 pixels."""
    coarse = nn.functional.avg_pool2d(values.abs().sum(1, keepdim=True), 8).flatten()
    return coarse.argsort().argsort().double()


def likeness(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation."""
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


@pytest.fixture(scope="module")
def likenesses() -> dict[str, float]:
    """How much each map of the trained network is like those of networks with random weights, on average."""
    model, cat = cnnviz.load_model(), demo_picture()
    x = model.prepare([cat])
    trained = {name: cnnviz.explain(model.module, x, name, target=285, **o).values for name, o in SMOOTHED.items()}
    found: dict[str, list[float]] = {name: [] for name in SMOOTHED}
    for seed in range(4):
        torch.manual_seed(seed)
        net = cnnviz.load_model("mobilenet_v2", weights=None).module
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics of its own, or every unit would fade away
                module.momentum = 1.0
        with torch.no_grad():
            net.train()(torch.cat([x, x.flip(3)]))
        net.eval()
        for name, options in SMOOTHED.items():
            made = cnnviz.explain(net, x, name, target=285, **options).values
            found[name].append(likeness(trained[name], made))
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("technique", ["grad-cam", "saliency", "occlusion"])
def test_random_weights_destroy_the_map(technique: str, likenesses: dict[str, float]) -> None:
    assert abs(likenesses[technique]) < 0.3


def test_guided_backprop_hardly_notices(likenesses: dict[str, float]) -> None:
    """As its documentation says: edges of the image come through whatever the weights are."""
    others = [abs(likenesses[name]) for name in ("grad-cam", "saliency", "occlusion")]
    assert likenesses["guided-backprop"] > 0.25
    assert likenesses["guided-backprop"] > 2 * max(others)


QUICK: dict[str, dict[str, Any]] = quick.OPTIONS | {
    "integrated-gradients": {"steps": 1},
    "occlusion": {"window": 4, "stride": 4},
    "rise": {"masks": 2},
    "texture-patch": {"size": 4, "window": 3},
}


def resident() -> int:
    """Return the bytes that the process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize("technique", list(cnnviz.techniques()))
def test_thousands_of_calls_leave_nothing_behind(technique: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    net = quick.network(technique, net)
    x, target = quick.arguments(technique, torch.rand(1, 3, 8, 8))

    def call(times: int) -> tuple[int, int]:
        for _ in range(times):
            cnnviz.explain(net, x, technique, target=target, **QUICK.get(technique, {}))
        gc.collect()
        return resident(), len(gc.get_objects())

    call(500)
    (memory, objects), (after, more) = call(100), call(2000)
    assert more - objects < 200
    assert after - memory < 4 << 20
