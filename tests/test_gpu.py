"""On a GPU techniques and metrics do what they do on a CPU and keep their contract, and style networks are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import cnnviz
from cnnviz.metrics import available, measure
from cnnviz.synthesis import train_style
from cnnviz.testing import SmallNet, check_metric, check_technique
from cnnviz.testing.suite import random_images
from tests import quick

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ATTRIBUTION = [name for name, technique in cnnviz.techniques().usable().items() if technique.family == "attribution"]


@pytest.mark.parametrize("name", list(cnnviz.techniques()))
def test_technique_conforms(name: str) -> None:
    net = quick.network(name, SmallNet()).cuda()
    assert "threads" in check_technique(name, model=net, inputs=random_images().cuda(), **quick.OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", ATTRIBUTION)
def test_maps_are_those_of_a_cpu(name: str) -> None:
    net, x = SmallNet().double().eval(), random_images().double()
    options = quick.OPTIONS.get(name, {})
    here = cnnviz.explain(net, x, name, target=1, **options).tensors()["values"]
    there = cnnviz.explain(net.cuda(), x.cuda(), name, target=1, **options).tensors()["values"]
    assert float((there.cpu() - here).abs().max()) <= 1e-9 * float(here.abs().max())


@pytest.mark.parametrize("name", list(available()))
def test_metric_conforms(name: str) -> None:
    net, x = SmallNet().cuda(), random_images().cuda()
    assert "threads" in check_metric(name, model=net, inputs=x, **quick.METRICS.get(name, {}))


@pytest.mark.parametrize("name", list(available()))
def test_measures_are_those_of_a_cpu(name: str) -> None:
    net, x = SmallNet().double().eval(), random_images().double()
    given = {"target": 1, "boxes": [[[1.0, 2.0, 9.0, 11.0]]] * len(x), **quick.METRICS.get(name, {})}
    here = measure(net, x, "saliency", name, **given).values
    there = measure(net.cuda(), x.cuda(), "saliency", name, **given).values
    torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_style_network_is_trained_in_half_precision_and_paints(tmp_path: Path) -> None:
    for number in range(3):
        cnnviz.render.to_pil(random_images()[number % 2]).resize((48, 40)).save(tmp_path / f"{number}.png")
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()).cuda()
    made = train_style(
        features, tmp_path, tmp_path.with_name("out"), styles=torch.rand(3, 48, 48), size=32, style_size=48, width=4,
        blocks=1, steps=40, step_size=5e-3,
    )  # fmt: skip
    rows = (made.folder / "log.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert losses[-1] < losses[0]
    assert made.network.about["precision"] in ("bfloat16", "float16")
    painted = cnnviz.explain(made.network, torch.rand(1, 3, 40, 50).cuda(), "fast-style").tensors()["images"]
    assert painted.shape == (1, 3, 40, 50)
