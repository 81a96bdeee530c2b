"""The model is borrowed: unchanged after success, after failure, and under threads, for every technique."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import cnnviz
from cnnviz.testing.snapshot import changed, snapshot
from tests import quick

pytestmark = pytest.mark.filterwarnings("ignore:the model is in training mode")
TECHNIQUES = list(cnnviz.techniques())
FASTER: dict[str, dict[str, Any]] = quick.OPTIONS | {"occlusion": {"window": 24, "stride": 24}, "rise": {}}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Return a real network in training mode, half frozen, with gradients and hooks of its owner's."""
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(growth_rate=8, block_config=(2, 3, 3), num_init_features=16, num_classes=20)
    model.train()
    model.features.denseblock1.eval()
    for parameter in model.features.conv0.parameters():
        parameter.requires_grad_(False)
    for parameter in model.classifier.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def explained(network: nn.Module, name: str, x: torch.Tensor) -> cnnviz.Explanation:
    inputs, target = quick.arguments(name, x)
    return cnnviz.explain(network, inputs, name, target=target, **FASTER.get(name, {}))


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("name", TECHNIQUES)
def test_nothing_changes_on_success(name: str, network: nn.Module, images: torch.Tensor) -> None:
    calls: list[int] = []
    network = quick.network(name, network)
    last = [module for module in network.modules() if not list(module.children())][-1]
    handle = last.register_forward_hook(lambda *_: calls.append(1))
    try:
        before = snapshot(network)
        result = explained(network, name, images)
        assert_unchanged(network, before)
        assert not calls, "the owner's hooks must not run"
        assert result.provenance is not None
        assert result.provenance.hooks_left_out == 1
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if name not in (*quick.RUN_NO_MODEL, *quick.NETWORKS)])
def test_nothing_changes_when_the_model_fails_in_the_middle(
    name: str, network: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PlannedError(Exception):
        pass

    explainer = cnnviz.Explainer(network, name, **FASTER.get(name, {}))
    given = quick.arguments(name, images)
    first = explainer(*given)  # the survey of the model is made and remembered
    before = snapshot(network)

    def fail(*_: Any) -> None:
        raise PlannedError

    # A class attribute, so that neither the network's own state nor the replicas' differ.
    with monkeypatch.context() as patch:
        where = (
            torchvision.models.densenet._DenseBlock
            if name == "activations"
            else torchvision.models.densenet._Transition
        )
        patch.setattr(where, "forward", fail, raising=False)
        with pytest.raises((PlannedError, cnnviz.InputError)):  # the latter while layers are looked for
            explainer(*given)
    assert_unchanged(network, before)
    assert explainer(*given).equals(first), "the next call works"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_eight_threads_get_what_each_gets_alone(name: str, network: nn.Module) -> None:
    count = 2 if name == "neighbours" else 1  # one image has none
    batches = [torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    network = quick.network(name, network)
    explainer = cnnviz.Explainer(network, name, **FASTER.get(name, {}))
    alone = [explainer(*quick.arguments(name, batch)) for batch in batches]
    before = snapshot(network)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: explainer(*quick.arguments(name, batch)), batches))
    assert_unchanged(network, before)
    for one, other in zip(alone, together, strict=True):
        assert one.equals(other)


def test_threads_with_different_techniques_on_one_model(network: nn.Module, images: torch.Tensor) -> None:
    names = ["guided-backprop", "saliency", "grad-cam", "deconvnet"] * 3
    alone = {name: cnnviz.explain(network, images, name) for name in set(names)}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda name: cnnviz.explain(network, images, name), names))
    for name, result in zip(names, together, strict=True):
        assert result.equals(alone[name]), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_callers_without_gradients_get_the_same(
    name: str, mode: Callable[[], Any], network: nn.Module, images: torch.Tensor
) -> None:
    network = quick.network(name, network)
    expected = explained(network, name, images)
    with mode():
        made_inside = images.clone()
        found = explained(network, name, made_inside)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert found.equals(expected)
