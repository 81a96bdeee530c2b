"""Places where others are silently wrong or fail without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import cnnviz


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
    net = torchvision.models.DenseNet(**small, memory_efficient=True)
    plain = torchvision.models.DenseNet(**small)
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
