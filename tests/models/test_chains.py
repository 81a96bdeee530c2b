"""Chains of convolutions in oneDNN's layout: the same bits, and nothing else that differs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import cnnviz
from cnnviz.errors import InputError
from cnnviz.models import Chains, Folding, growths_in, replicate


@pytest.fixture
def convolved(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each convolution that ran whether its maps were in oneDNN's layout."""
    seen: list[bool] = []
    plain = functional.conv2d

    def conv2d(x: Tensor, *args: Any) -> Tensor:
        seen.append(x.is_mkldnn)
        return plain(x, *args)

    monkeypatch.setattr(functional, "conv2d", conv2d)
    return seen


def chained(net: nn.Module, x: Any) -> Any:
    replica = replicate(net)
    with torch.no_grad(), Chains(replica, growths_in(replica)):
        return replica(x)


def as_it_is(net: nn.Module, x: Any) -> Any:
    with torch.no_grad():
        return replicate(net)(x)


def two(first: nn.Module, *between: nn.Module, channels: int = 16) -> nn.Sequential:
    return nn.Sequential(first, *between, nn.Conv2d(channels, 24, 3, padding=1), nn.ReLU())


CHAINS = {
    "as in VGG": two(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)),
    "nothing between": two(nn.Conv2d(3, 16, 3)),
    "odd channels": two(nn.Conv2d(3, 17, 3, padding=1), nn.ReLU(), channels=17),
    "strides": two(nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "dilation": two(nn.Conv2d(3, 16, 3, dilation=2), nn.ReLU()),
    "one row": two(nn.Conv2d(3, 16, (1, 5)), nn.MaxPool2d((1, 2))),
    "large kernel": two(nn.Conv2d(3, 16, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 1)),
    "no bias": two(nn.Conv2d(3, 16, 3, bias=False), nn.ReLU()),
    "groups": nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=3), nn.ReLU()),
    "channels by themselves": nn.Sequential(nn.Conv2d(3, 24, 3), nn.Conv2d(24, 48, 3, groups=24), nn.ReLU()),
    "begins with a ReLU": nn.Sequential(nn.ReLU(), *two(nn.Conv2d(3, 16, 3))),
    "within another": nn.Sequential(nn.Sequential(*two(nn.Conv2d(3, 16, 3))), nn.Flatten()),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", CHAINS)
def test_bits_are_the_same(name: str, count: int, convolved: list[bool]) -> None:
    net, x = CHAINS[name].eval(), torch.randn(count, 3, 193, 197)
    made = chained(net, x.clone())
    assert convolved == [True, True]
    assert type(made) is Tensor
    assert not made.is_mkldnn
    wanted = as_it_is(net, x.clone())
    assert made.stride() == wanted.stride()
    assert torch.equal(made, wanted)


def test_layers_that_may_round_otherwise_run_as_they_are(convolved: list[bool]) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(16, 16, 3), nn.Softplus()),
        *(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding_mode="reflect", padding=1), nn.BatchNorm2d(16)),
        *(nn.Conv2d(16, 16, 3), nn.ReLU6(), nn.MaxPool2d(2, dilation=2), nn.Conv2d(16, 16, 3)),
    )
    x = torch.randn(2, 3, 97, 101)
    assert torch.equal(chained(net, x), as_it_is(net, x))
    assert not any(convolved), "none stands in a chain with another"


def test_few_numbers_run_as_they_are(convolved: list[bool]) -> None:
    net, x = CHAINS["as in VGG"].eval(), torch.randn(1, 3, 72, 72)  # of 16 channels there are 36 x 36 in the second
    assert torch.equal(chained(net, x), as_it_is(net, x))
    assert convolved == [False, True, False, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_is_not_lost(value: float) -> None:
    net, x = CHAINS["as in VGG"].eval(), torch.randn(1, 3, 97, 101)
    x[0, 1, 50, 50] = value
    made, wanted = chained(net, x), as_it_is(net, x)
    assert torch.equal(made.isnan(), wanted.isnan())
    assert torch.equal(made.nan_to_num(), wanted.nan_to_num())


def three() -> nn.Sequential:
    return nn.Sequential(*two(nn.Conv2d(3, 16, 3), nn.ReLU()), nn.Conv2d(24, 8, 3), nn.ReLU()).eval()


def overflow(net: nn.Sequential) -> None:
    """Let the second convolution make infinities, which the third subtracts from each other."""
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(1e22)


def test_numbers_that_weights_make_too_large_are_not_lost() -> None:
    net, x = three(), torch.randn(1, 3, 97, 101)
    overflow(net)
    made, wanted = chained(net, x), as_it_is(net, x)
    assert wanted.isnan().any()
    assert torch.equal(made.nan_to_num(-7), wanted.nan_to_num(-7))


def test_an_explainer_minds_weights_that_have_become_large() -> None:
    net, x = three(), torch.randn(1, 3, 97, 101)
    explainer = cnnviz.Explainer(nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "grad-cam")
    explainer(x, 0)
    overflow(net)
    with pytest.raises(InputError, match="score of sample 0 is nan"):
        explainer(x, 0)


def test_with_onednn_switched_off_layers_run_as_they_are(
    convolved: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = CHAINS["as in VGG"].eval(), torch.randn(1, 3, 97, 101)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert torch.equal(chained(net, x), as_it_is(net, x))
    assert not any(convolved)


def test_under_autocast_layers_run_as_they_are(convolved: list[bool]) -> None:
    net, x = CHAINS["as in VGG"].eval(), torch.randn(1, 3, 97, 101)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(chained(net, x), as_it_is(net, x))
    assert not any(convolved)


@pytest.mark.parametrize("kind", ["channels last", "double", "one image", "grey, channels last"])
def test_other_inputs_run_as_they_are(kind: str, convolved: list[bool]) -> None:
    net, x = CHAINS["as in VGG"].eval(), torch.randn(1, 3, 97, 101)
    match kind:
        case "channels last":
            x = x.to(memory_format=torch.channels_last)
        case "double":
            net, x = two(nn.Conv2d(3, 16, 3), nn.ReLU()).double(), x.double()
        case "one image":
            x = x[0]
        case _:
            net, x = two(nn.Conv2d(1, 16, 3), nn.ReLU()), x[:, :1].clone(memory_format=torch.channels_last)
    made, wanted = chained(net, x), as_it_is(net, x)
    assert torch.equal(made, wanted)
    assert made.stride() == wanted.stride()
    assert not any(convolved)


def test_gradients_are_as_without_it(convolved: list[bool]) -> None:
    net, x = CHAINS["as in VGG"].eval(), torch.randn(1, 3, 97, 101, requires_grad=True)
    replica = replicate(net)
    with Chains(replica, growths_in(replica)):
        (slope,) = torch.autograd.grad(replica(x).sum(), x)
    (wanted,) = torch.autograd.grad(replica(x).sum(), x)
    assert torch.equal(slope, wanted)
    assert not any(convolved)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3", "4"])
def test_a_layer_that_is_looked_at_shows_the_same(layer: str) -> None:
    net, x = CHAINS["as in VGG"].eval(), torch.randn(2, 3, 97, 101)
    replica, seen = replicate(net), []
    for context in (Chains(replica, growths_in(replica)), nullcontext()):
        with torch.no_grad(), context, cnnviz.capture(replica, layer) as one:
            made = replica(x)
        seen.append((one.output, made))
    (inside, made), (outside, wanted) = seen
    assert not inside.is_mkldnn
    assert torch.equal(inside, outside)
    assert torch.equal(made, wanted)


def test_hooks_for_all_modules_see_all_layers() -> None:
    net, x, seen = CHAINS["as in VGG"].eval(), torch.randn(1, 3, 97, 101), []
    handle = nn.modules.module.register_module_forward_hook(lambda *call: seen.append(call[2].is_mkldnn))
    try:
        chained(net, x)
    finally:
        handle.remove()
    assert seen == [False] * 6


def test_a_network_that_fails_is_left_as_it_was() -> None:
    replica = replicate(nn.Sequential(*two(nn.Conv2d(3, 16, 3)), nn.Linear(7, 7)))
    before = [dict(one.__dict__) for one in replica.modules()]
    with pytest.raises(RuntimeError), Chains(replica, growths_in(replica)):
        replica(torch.randn(1, 3, 97, 101))
    assert [dict(one.__dict__) for one in replica.modules()] == before


class _Rows(nn.Module):
    """Lays maps out channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


def test_convolutions_that_wait_for_a_batch_norm_may_stand_in_chains() -> None:
    net, x = nn.Sequential(_Rows(), *CHAINS["as in VGG"]).eval(), torch.randn(1, 3, 97, 101)
    replica = replicate(net)
    with torch.no_grad(), Folding(replica):
        wanted = replica(x)
        with Chains(replica, growths_in(replica)):
            assert torch.equal(replica(x), wanted)


class _Doubled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        return 2 * super().forward(input)


def test_other_kinds_of_convolutions_run_as_they_are(convolved: list[bool]) -> None:
    computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3))
    net, x = two(_Doubled(3, 16, 3), nn.ReLU(), computed, nn.ReLU()).eval(), torch.randn(1, 3, 97, 101)
    assert torch.equal(chained(net, x), as_it_is(net, x))
    assert convolved[0] is False
