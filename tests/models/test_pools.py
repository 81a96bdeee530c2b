"""Max-pools of networks by a kernel of our own: the same bits, and nothing else that differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import cnnviz
from cnnviz import ops
from cnnviz.models import Chains, Folding, Pools, growths_in, pools, replicate


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Return the shapes of what our kernel pools, which need not be native."""
    shapes: list[torch.Size] = []

    def noted(x: Tensor, *window: Any, ceil_mode: bool) -> Tensor:
        made = ops.max_pool(x, *window, ceil_mode=ceil_mode)
        shapes.append(x.shape)
        return made

    monkeypatch.setattr(pools, "max_pool", noted)
    monkeypatch.setattr(pools, "max_pool_is_native", lambda: True)
    return shapes


def within(net: nn.Module, x: Any) -> Any:
    replica = replicate(net)
    with Pools(replica, frozenset()):
        made = replica(x)
    assert not any("forward" in one.__dict__ for one in replica.modules())
    return made


def run(net: nn.Module, x: Any) -> Any:
    return replicate(net)(x)


def bits(pooling: Callable[[nn.Module, Any], Tensor], net: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what a network makes, gradients of scores, and their gradients."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    made = pooling(net, leaf)
    found = [made.detach()]
    for score in (made.sum(), made.square().sum()):
        (slope,) = torch.autograd.grad(score, leaf, create_graph=True)
        found += [slope.detach(), *torch.autograd.grad(slope.sum(), leaf, retain_graph=True, materialize_grads=True)]
    return found


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1", "densenet121", "resnet18", "alexnet"])
def test_networks_give_the_same_bits(name: str, pooled: list[torch.Size]) -> None:
    torch.manual_seed(0)
    extra = {"init_weights": False} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, **extra).eval()
    x = torch.randn(2, 3, 64, 64)
    assert all(map(torch.equal, bits(within, net, x), bits(run, net, x)))
    assert len(pooled) == sum(isinstance(one, nn.MaxPool2d) for one in net.modules())


OTHERS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
    "tells places": (nn.Sequential(nn.MaxPool2d(3, 2, return_indices=True)), lambda x: x),
    "channels last": (nn.MaxPool2d(3, 2), lambda x: x.contiguous(memory_format=torch.channels_last)),
    "channels last in name": (
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 64, 3), nn.Conv2d(64, 32, 3)),
        lambda x: torch.empty_strided((2, 1, 10, 11), (110, 1, 11, 1)).copy_(x[:, :1]),
    ),
    "one image": (nn.MaxPool2d(3, 2), lambda x: x[0]),
    "none": (nn.MaxPool2d(3, 2), lambda x: x[:0]),
    "half precision": (nn.MaxPool2d(3, 2), lambda x: x.bfloat16()),
    "integers": (nn.MaxPool2d(3, 2), lambda x: (9 * x).long()),
}


@pytest.mark.parametrize("other", OTHERS)
def test_others_are_torchs(other: str, pooled: list[torch.Size]) -> None:
    net, made = OTHERS[other]
    x = made(torch.randn(2, 3, 10, 11))
    results = [one if isinstance(one, tuple) else (one,) for one in (within(net, x), net(x))]
    assert all(map(torch.equal, *results))
    assert results[0][0].stride() == results[1][0].stride()
    assert not pooled


def test_numbers_and_pairs(pooled: list[torch.Size]) -> None:
    x = torch.randn(1, 2, 12, 13)
    for pool in (nn.MaxPool2d(2), nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2)), nn.MaxPool2d(3, stride=1, padding=1)):
        assert all(map(torch.equal, bits(within, pool, x), bits(run, pool, x)))
    assert len(pooled) == 3


def test_what_does_not_fit_is_told_in_torchs_words(pooled: list[torch.Size]) -> None:
    x = torch.randn(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        within(nn.MaxPool2d(5), x)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        within(nn.MaxPool2d(2, padding=2), x)
    assert not pooled


class Own(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(-x)


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        self.pool.return_indices = True
        made, places = self.pool(x)
        return made * places


def test_settings_count_as_they_are_when_it_runs(pooled: list[torch.Size]) -> None:
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(within(Asking(), x), Asking()(x))
    assert not pooled


def test_classes_with_a_forward_of_their_own_are_left(pooled: list[torch.Size]) -> None:
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(within(Own(2), x), Own(2)(x))
    assert not pooled


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # as torch says when it loads derivatives
def test_what_torch_alone_can_is_torchs(pooled: list[torch.Size]) -> None:
    pool, x = nn.MaxPool2d(2), torch.randn(2, 3, 6, 6)
    replica = replicate(nn.Sequential(pool))
    with Pools(replica, frozenset()):
        assert torch.equal(torch.func.vmap(lambda one: replica(one[None])[0])(x), pool(x))
        _, tangent = torch.func.jvp(replica, (x,), (x,))
        assert torch.equal(tangent, pool(x)), "it is as long as x is scaled"
        with torch.inference_mode():
            assert torch.equal(replica(x + 0), pool(x))
        leaf = x.clone().requires_grad_()
        made = checkpoint(replica, leaf, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(made.sum(), leaf)[0], torch.autograd.grad(pool(leaf).sum(), leaf)[0])
    assert not pooled


def test_chains_and_folding_keep_theirs(pooled: list[torch.Size]) -> None:
    chain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3))
    net = nn.Sequential(chain, nn.MaxPool2d(2), nn.Conv2d(16, 4, 3), nn.MaxPool2d(2)).eval()
    x = torch.randn(2, 3, 64, 64)
    replica = replicate(net)
    chains = Chains(replica, growths_in(replica))
    with torch.no_grad():
        with chains, Pools(replica, chains.layers):
            assert torch.equal(replica(x), net(x))
        assert pooled == [(2, 16, 29, 29), (2, 4, 12, 12)]
        with Pools(replica, frozenset()), Folding(replica):
            torch.testing.assert_close(replica(x), net(x))


@pytest.mark.parametrize("technique", ["saliency", "guided-backprop", "deconvnet", "grad-cam", "occlusion"])
def test_techniques_give_the_same_bits(
    technique: str, pooled: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = torchvision.models.alexnet(num_classes=5).eval()
    x = torch.randn(2, 3, 70, 70)
    options = {"method": "dense", "window": 30, "stride": 20} if technique == "occlusion" else {}
    made = cnnviz.explain(net, x, technique, target=1, **options).values
    assert bool(pooled) == (technique in ("saliency", "guided-backprop", "deconvnet")), "else chains have them"
    monkeypatch.setattr(pools, "max_pool_is_native", lambda: False)
    assert torch.equal(made, cnnviz.explain(net, x, technique, target=1, **options).values)
