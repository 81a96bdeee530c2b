"""Where and of what type an application makes its own tensors by default changes nothing.

For most that is a GPU, here a device without numbers; or double precision, or half.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import cnnviz
from tests import quick


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    ).eval()


TYPES = torch.float64, torch.bfloat16
IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
VARIED: dict[str, dict[str, Any]] = {
    **{name: {} for name in cnnviz.techniques()},
    "occlusion, covered by noise, dense": {"baseline": "noise", "method": "dense"},
    "occlusion, in-painted, incremental": {"baseline": "inpaint", "method": "incremental"},
    "occlusion, with a tolerance": {"tolerance": 0.3, "stride": 2},
    "saliency, smoothed": {"samples": 3},
    "rise, with a tolerance": {"tolerance": 0.5},
    "grad-cam, of a direction": {"target": cnnviz.direction("4", [1.0, -1.0, 0.5, 0.0, 0.0, 2.0]), "layer": "2"},
    "grad-cam, of three classes": {"target": cnnviz.top(3)},
}


@contextmanager
def of_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {"device": lambda: torch.device("meta"), **{str(t): lambda t=t: of_type(t) for t in TYPES}}


@pytest.fixture(params=DEFAULTS)
def elsewhere(request: pytest.FixtureRequest) -> AbstractContextManager[Any]:
    return DEFAULTS[request.param]()


@pytest.mark.parametrize("case", VARIED)
def test_techniques(case: str, elsewhere: AbstractContextManager[Any]) -> None:
    name = case.partition(",")[0]
    net, (inputs, target) = quick.network(name, network()), quick.arguments(name, IMAGES)
    given = {"target": target, **quick.OPTIONS.get(name, {}), **VARIED[case]}
    expected = cnnviz.explain(net, inputs, name, **given)
    with elsewhere:
        made = cnnviz.explain(net, inputs, name, **given)
    assert all(
        torch.equal(value, vars(expected)[key]) for key, value in vars(made).items() if isinstance(value, torch.Tensor)
    )
    assert made.__class__ is expected.__class__


@pytest.mark.parametrize("name", cnnviz.metrics.available())
def test_metrics(name: str, elsewhere: AbstractContextManager[Any]) -> None:
    net, boxes = network(), [torch.tensor([[2.0, 3.0, 12.0, 14.0]])] * 2
    given = {"boxes": boxes} if cnnviz.metrics.available()[name].boxes else {}
    expected = cnnviz.metrics.measure(net, IMAGES, "saliency", name, **given)
    with elsewhere:
        made = cnnviz.metrics.measure(net, IMAGES, "saliency", name, **given)
    assert torch.equal(made.values, expected.values)
