"""Places where others are silently wrong or fail without a word."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import cnnviz
from cnnviz.testing import ConformanceError, check_technique


@pytest.mark.parametrize("of_two", [torch.max, torch.maximum, torch.fmax])
def test_the_maximum_with_zeros_is_a_relu_however_it_is_spelled(of_two: Callable[..., torch.Tensor]) -> None:
    x = torch.tensor([-1.0, 2, 3, -4, 7, 8], requires_grad=True)
    arriving = torch.tensor([1.0, -1, 2, 3, -4, 5])
    with cnnviz.relu_rule("deconvnet"):
        y = of_two(functional.relu(x) - 3, torch.zeros(()))
    assert torch.autograd.grad(y, x, arriving)[0].tolist() == [1, 0, 2, 3, 0, 5]


def test_the_maximum_over_a_dimension_is_none() -> None:
    x = torch.tensor([[1.0, -2.0]], requires_grad=True)
    with cnnviz.relu_rule("guided"):
        y = torch.max(functional.relu(x), 1)[0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[1, 0]]


def test_normalised_weights_are_up_to_date() -> None:
    with pytest.warns(FutureWarning):  # torch's own about the old style, which many models still use
        convolution = nn.utils.weight_norm(nn.Conv2d(3, 2, 2))
    net = nn.Sequential(convolution)
    before = cnnviz.explain(net, None, "filters")
    with torch.no_grad():
        convolution.weight_g.mul_(5)
    after = cnnviz.explain(net, None, "filters")
    assert isinstance(before, cnnviz.Gallery)
    assert isinstance(after, cnnviz.Gallery)
    assert before.values is not None
    assert after.values is not None
    torch.testing.assert_close(after.values, before.values * 5)


def test_a_checkpointed_network_gives_what_it_gives_without_checkpoints() -> None:
    small = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "num_classes": 5}
    net = torchvision.models.DenseNet(**small, memory_efficient=True).eval()
    plain = torchvision.models.DenseNet(**small).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.rand(2, 3, 32, 32)
    for name in ("guided-backprop", "deconvnet", "saliency"):
        assert torch.equal(cnnviz.explain(net, x, name).values, cnnviz.explain(plain, x, name).values)


def test_a_score_that_forgot_its_input_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(2, 3, 8, 8)
    for name in ("saliency", "guided-backprop"):
        with pytest.raises(cnnviz.TargetError, match="does not depend on the input"):
            cnnviz.explain(net, x, name, target=lambda output: output[:, 0].detach())


def test_channels_of_a_linear_layer_can_be_explained() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    heat = cnnviz.explain(net, torch.rand(2, 3, 2, 2), "saliency", target=cnnviz.channel("1", 3), sign="signed")
    assert isinstance(heat, cnnviz.Heatmap)
    weight = net[1].weight[3].reshape(3, 2, 2).amax(0, keepdim=True)
    torch.testing.assert_close(heat.values, weight.detach().expand(2, 1, 2, 2))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"baseline": float("nan")}, "'baseline' of 'occlusion': got nan"),
        ({"baseline": True}, "'baseline' of 'occlusion': got True"),
        ({"window": True}, "'window' of 'occlusion': got True"),
    ],
)
def test_values_that_are_no_numbers_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(cnnviz.OptionError, match=told):
        cnnviz.Explainer(nn.Conv2d(3, 2, 1), "occlusion", **options)


def test_filters_of_broken_weights_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 2))
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(cnnviz.InputError, match="not finite"):
        cnnviz.explain(net, None, "filters")


class Dicey(nn.Module):
    """Draws random numbers, and has control flow that needs values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x + torch.randn_like(x))
        return (y.relu() if float(x.detach().mean()) > 0 else y).mean((2, 3))


def test_threads_on_a_model_that_draws_random_numbers_get_what_each_gets_alone() -> None:
    explainer = cnnviz.Explainer(Dicey(), "saliency")
    batches = [torch.rand(1, 3, 8, 8) for _ in range(8)] * 4
    before = torch.get_rng_state()
    alone = [explainer(batch, 1, seed=5) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: explainer(batch, 1, seed=5), batches))
    assert all(a.equals(b) for a, b in zip(alone, together, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_and_predicting_leave_the_random_state_alone() -> None:
    dicey = cnnviz.Model(Dicey())
    before = torch.get_rng_state()
    cnnviz.load_model()
    dicey.predict(torch.rand(1, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_collects_what_it_sees_does_not_grow() -> None:
    class Collecting(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.seen: list[torch.Tensor] = []
            self.count = {"calls": 0}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            self.seen.append(y)
            self.count["calls"] += 1
            return y * self.count["calls"]

    net, x = Collecting(), torch.rand(1, 3, 8, 8)
    explainer = cnnviz.Explainer(net, "saliency")
    assert explainer(x, 1).equals(explainer(x, 1))
    assert net.seen == []
    assert net.count == {"calls": 0}


def test_weights_for_a_module_that_has_some_are_refused() -> None:
    with pytest.raises(cnnviz.ModelError, match="load_state_dict"):
        cnnviz.load_model(Dicey(), weights="trained.safetensors")


def test_a_map_with_as_many_channels_as_classes_is_no_head_while_weights_come_after() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 5),
    )
    found = cnnviz.explain(net, torch.rand(1, 3, 12, 12), "grad-cam")
    assert found.provenance is not None
    assert found.provenance.layer == "3"


def test_a_graph_is_not_kept_alive_by_a_result() -> None:
    def careless(request: cnnviz.Request, options: cnnviz.Options) -> cnnviz.Heatmap:
        """Return a map that still asks for gradients."""
        x = request.inputs.requires_grad_()
        return cnnviz.Heatmap(values=x * request.score(x).sum())

    made = cnnviz.explain(Dicey(), torch.rand(2, 3, 8, 8), cnnviz.Technique("careless", careless))
    assert isinstance(made, cnnviz.Heatmap)
    assert not made.values.requires_grad


def test_options_that_cannot_be_described_are_refused_when_they_are_declared() -> None:
    class Odd(cnnviz.Options):
        upsample: bool = cnnviz.Field(True, description="taken by the framework")

    with pytest.raises(cnnviz.OptionError, match="carried out by the framework"):
        cnnviz.Technique("odd", lambda request, options: request.inputs, Odd)


@pytest.mark.parametrize("how", ["numpy", "python"])
def test_conformance_watches_other_generators_too(how: str) -> None:
    import random

    import numpy

    def draws(request: cnnviz.Request, options: cnnviz.Options) -> torch.Tensor:
        """Draw from a global generator."""
        numpy.random.seed(0) if how == "numpy" else random.seed(0)  # noqa: NPY002  # the very fault
        return request.inputs * 1

    random.seed(99)
    numpy.random.seed(99)  # noqa: NPY002
    with pytest.raises(ConformanceError, match="it changed the model or the process: global random state"):
        check_technique(cnnviz.Technique("draws", draws))


class Holder:
    """No module, but has one."""

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner


@pytest.mark.parametrize("wrap", [lambda inner: [inner], Holder, lambda inner: {"inner": Holder(inner)}])
def test_modules_that_are_not_registered_are_explained_in_eval_mode_too(wrap: Callable[[nn.Module], Any]) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = wrap(inner)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held = self.held["inner"] if isinstance(self.held, dict) else self.held
            found: torch.Tensor = (held[0] if isinstance(held, list) else held.inner)(x)
            return found

    x = torch.rand(2, 3, 8, 8)
    made = cnnviz.explain(Outer(), x, "saliency", target=1)
    assert isinstance(made, cnnviz.Heatmap)
    assert made.scores is not None
    assert inner.training
    torch.testing.assert_close(made.scores, inner.eval()(x)[:, 1].detach())


def test_a_forward_that_is_replaced_later_is_noticed() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(1, 3, 8, 8)
    explainer = cnnviz.Explainer(net, "saliency")
    explainer(x)
    net.forward = lambda given: given.flatten(1)  # type: ignore[method-assign]
    with pytest.raises(cnnviz.ModelError, match="was replaced on the instance"):
        explainer(x)
