"""Batch norms that write over what convolutions made: the same bits, and nobody finds something else there."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import cnnviz
from cnnviz import request
from cnnviz.models import Chains, InPlace, OverwrittenError, capture, distinct, growths_in, in_place, replicate


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Let maps of every size be written over; return the shapes of those that were."""
    shapes: list[torch.Size] = []
    plain = in_place._written_over

    def noted(x: Tensor, *args: Any) -> Tensor:
        shapes.append(x.shape)
        return plain(x, *args)

    monkeypatch.setattr(in_place, "_written_over", noted)
    monkeypatch.setattr(in_place, "LARGE", 0)
    monkeypatch.setattr(request, "LARGE", 0)
    return shapes


def normalised(net: nn.Module) -> nn.Module:
    """Return a network in eval mode, whose batch norms have statistics."""
    generator = torch.Generator().manual_seed(0)
    for one in net.modules():
        if isinstance(one, nn.BatchNorm2d):
            for tensor in (one.running_mean, one.running_var, one.weight, one.bias):
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5
    return net.eval()


def written_over(net: nn.Module, x: Any) -> Any:
    """Run a replica within, and look whether somebody kept what is gone."""
    replica = replicate(net)
    within = InPlace(distinct(replica), frozenset(), [])
    assert within.fits()
    with within:
        made = replica(x)
        within.check()
    assert not any("forward" in one.__dict__ for one in replica.modules())
    return made


class Block(nn.Module):
    """A convolution and a batch norm, and what a test does with what they make."""

    def __init__(self, use: Callable[[Tensor, Block], Any]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(x, self)


def usual(x: Tensor, block: Block) -> Tensor:
    return block.norm(block.convolution(x)).relu()


def pictures(count: int = 2, side: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "regnet_y_400mf"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_networks_give_the_same_bits(name: str, layout: torch.memory_format, written: list[torch.Size]) -> None:
    net = normalised(torchvision.models.get_model(name))
    x = pictures(side=64).contiguous(memory_format=layout)
    with torch.no_grad():
        assert torch.equal(written_over(net, x), net(x))
    # Of DenseNet's batch norms every second takes what several layers made, and so do the transitions' and the last.
    norms = [one for one, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    joined = [one for one in norms if name == "densenet121" and not one.endswith(("norm0", "norm2"))]
    assert len(written) == len(norms) - len(joined)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_are_the_same_bits(dtype: torch.dtype, affine: bool, written: list[torch.Size]) -> None:
    net = normalised(nn.Sequential(Block(usual), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))).to(dtype)
    if not affine:
        net[0].norm = normalised(nn.BatchNorm2d(4, affine=False, dtype=dtype))
    net.requires_grad_(False)

    def slopes(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = pictures(dtype=dtype).requires_grad_()
        (first,) = torch.autograd.grad(run(x)[:, 1].square().sum(), x, create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), x)]

    assert all(map(torch.equal, slopes(lambda x: written_over(net, x)), slopes(net)))
    assert len(written) == 1


@pytest.mark.parametrize("technique", ["saliency", "guided-backprop", "deconvnet", "grad-cam", "integrated-gradients"])
def test_techniques_give_the_same_bits(
    technique: str, written: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = normalised(torchvision.models.resnet18(num_classes=7))
    x = pictures(side=64)
    made = cnnviz.explain(net, x, technique, target=1).values
    assert len(written) >= 15, "those of the layer that grad-cam starts from, and behind it, ask for a gradient of maps"
    monkeypatch.setattr(InPlace, "fits", lambda _: False)
    assert torch.equal(made, cnnviz.explain(net, x, technique, target=1).values)


def test_less_is_kept_for_a_backward_pass() -> None:
    net = normalised(Block(usual)).requires_grad_(False)

    def kept(run: Callable[[Tensor], Tensor]) -> int:
        made = run(pictures().requires_grad_())
        saved: dict[int, int] = {}
        left = [made.grad_fn]
        while left:
            node = left.pop()
            if node is None:
                continue
            left += [before for before, _ in node.next_functions]
            for name in dir(node):
                value = getattr(node, name) if name.startswith("_saved") or name == "saved_tensors" else None
                for tensor in value if isinstance(value, tuple) else (value,):
                    if isinstance(tensor, Tensor):
                        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return sum(saved.values())

    assert kept(net) - kept(lambda x: written_over(net, x)) >= torch.empty(2, 4, 14, 14).nbytes


def looks_again(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    return block.norm(made) + made


def looks_by_a_view(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    rows = made.flatten(2)
    return block.norm(made).flatten(2) + rows


def shares_it_first(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    other = made.detach()
    return block.norm(made) + other


def returns_it(x: Tensor, block: Block) -> dict[str, Tensor]:
    made = block.convolution(x)
    return {"norm": block.norm(made), "convolution": made}


def keeps_it(x: Tensor, block: Block) -> Tensor:
    block.last = block.convolution(x)
    return block.norm(block.last)


def asks_for_its_shape(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    normed = block.norm(made)
    return normed.reshape(made.shape)


def refers_to_it(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    block.__dict__["seen"] = weakref.ref(made)
    return block.norm(made) + made


def hands_it_to_numpy(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    numbers = made.detach().numpy()
    return block.norm(made) + torch.from_numpy(numbers)


def writes_to_the_input(x: Tensor, block: Block) -> Tensor:
    return looks_again(x.mul_(2), block)


def norms_twice(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    return block.norm(made) + block.norm(made)


def swallows(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    normed = block.norm(made)
    try:
        return normed + made
    except Exception:  # noqa: BLE001  # as a stranger's network may
        return normed


GONE = [looks_again, returns_it, keeps_it, asks_for_its_shape, writes_to_the_input, norms_twice, swallows]
SHARED = [looks_by_a_view, shares_it_first, refers_to_it, hands_it_to_numpy]


@pytest.mark.parametrize("use", GONE)
def test_who_looks_at_what_is_gone_is_told(use: Callable[[Tensor, Block], Any], written: list[torch.Size]) -> None:
    with torch.no_grad(), pytest.raises(OverwrittenError):
        written_over(normalised(Block(use)), pictures())
    assert len(written) == 1


@pytest.mark.parametrize("use", SHARED)
def test_memory_that_others_share_is_left(use: Callable[[Tensor, Block], Any], written: list[torch.Size]) -> None:
    net = normalised(Block(use))
    with torch.no_grad():
        assert torch.equal(written_over(net, pictures()), net(pictures()))
    assert not written


@pytest.mark.parametrize("use", [*GONE, *SHARED])
def test_such_networks_are_explained_as_they_are(
    use: Callable[[Tensor, Block], Any], written: list[torch.Size]
) -> None:
    net = normalised(Block(use))

    def score(output: Any) -> Tensor:
        found = output["convolution"] if isinstance(output, dict) else output
        return found.square().flatten(1).sum(1)

    x = pictures().requires_grad_()
    (slope,) = torch.autograd.grad(score(net(x.clone())).sum(), x)
    explainer = cnnviz.Explainer(net, "saliency")
    for tried in (use in GONE, False):
        written.clear()
        made = explainer(pictures(), score).values
        assert torch.equal(made, slope.abs().amax(1, keepdim=True))
        assert bool(written) == tried


def test_a_layer_behind_which_nothing_is_run_keeps_nothing_alive(written: list[torch.Size]) -> None:
    net = normalised(nn.Sequential(Block(usual), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU()))
    explainer = cnnviz.Explainer(net, "saliency")
    for _ in range(2):
        written.clear()
        explainer(pictures(), cnnviz.channel("2", 1))
        assert len(written) == 2


@pytest.mark.parametrize("side", ["output", "input"])
def test_captured_convolutions_are_copies(side: Any, written: list[torch.Size]) -> None:
    net, x = normalised(Block(usual)), pictures()
    replica = replicate(net)
    within = InPlace(distinct(replica), frozenset(), [])
    layer = "convolution" if side == "output" else "norm"
    with torch.no_grad(), capture(replica, layer, side=side) as seen:
        assert within.fits()
        with within:
            replica(x)
            within.check()
    assert torch.equal(seen.values[layer], net.convolution(x))
    assert len(written) == 1


def test_hooks_of_others_and_forwards_of_others_are_left_alone() -> None:
    replica = replicate(normalised(Block(usual)))
    within = InPlace(distinct(replica), frozenset(), [])
    handle = replica.register_forward_hook(lambda *_: None)
    assert not within.fits()
    handle.remove()
    with within:
        assert not InPlace(distinct(replica), frozenset(), []).fits()
    assert within.fits()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not within.fits()
    handle.remove()
    assert within.fits()


def trains(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    return block.norm.train()(made)


def changes_the_weight(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    block.norm.weight = nn.Parameter(torch.full((4,), 3.0, dtype=x.dtype), requires_grad=False)
    return block.norm(made)


def works_between(x: Tensor, block: Block) -> Tensor:
    return block.norm(block.convolution(x).relu())


def another_convolution_between(x: Tensor, block: Block) -> Tensor:
    made = block.convolution(x)
    return block.norm(made) if block.convolution(x).sum() > 1e9 else block.norm(made) * 2


def infers(x: Tensor, block: Block) -> Tensor:
    with torch.inference_mode():
        made = usual(x, block)
    return made.clone()


def casts(x: Tensor, block: Block) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return usual(x, block)


def maps(x: Tensor, block: Block) -> Tensor:
    return torch.func.vmap(lambda one: usual(one[None], block)[0])(x)


def halts_gradients(x: Tensor, block: Block) -> Tensor:
    with torch.no_grad():
        return usual(x, block)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "use",
    [trains, changes_the_weight, works_between, another_convolution_between, infers, casts, maps, halts_gradients],
)
def test_whatever_else_a_network_does_is_as_without_it(use: Callable[[Tensor, Block], Tensor], grad: bool) -> None:
    net = normalised(Block(use)).requires_grad_(False)
    results = [run(pictures().requires_grad_(grad)) for run in (lambda x: written_over(net, x), replicate(net))]
    assert torch.equal(*results)
    assert results[0].requires_grad == results[1].requires_grad


def test_what_checkpointing_saves_is_left(written: list[torch.Size]) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(Block(usual), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 7 * 7, 5))

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.net, x, use_reentrant=False)

    net = normalised(Checkpointed())
    made = cnnviz.explain(net, pictures(), "saliency", target=1).values
    assert not written
    assert torch.equal(made, cnnviz.explain(net.net, pictures(), "saliency", target=1).values)
    assert written


@pytest.mark.parametrize("empty", [False, True])
def test_other_shapes_are_refused_as_ever(empty: bool) -> None:
    net = normalised(Block(usual))
    net.norm = normalised(nn.BatchNorm2d(4 if empty else 5))
    with torch.no_grad():
        if empty:
            assert written_over(net, pictures()[:0]).shape == (0, 4, 14, 14)
        else:
            with pytest.raises(RuntimeError, match="running_mean should contain 4 elements not 5"):
                written_over(net, pictures())


def test_weights_that_ask_for_a_gradient_get_one(written: list[torch.Size]) -> None:
    net = normalised(Block(usual))
    with InPlace(distinct(net), frozenset(), []):
        net(pictures()).sum().backward()
    assert net.norm.weight.grad is not None
    assert not written


def test_failures_leave_modules_as_they_were() -> None:
    replica = replicate(normalised(Block(usual)))
    before = [dict(one.__dict__) for one in replica.modules()]
    with torch.no_grad(), pytest.raises(RuntimeError), InPlace(distinct(replica), frozenset(), []):
        replica(torch.ones(1, 4, 16, 16))
    assert [dict(one.__dict__) for one in replica.modules()] == before


def test_convolutions_of_chains_are_left_to_them(written: list[torch.Size]) -> None:
    chain = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3), nn.ReLU()]
    net = normalised(nn.Sequential(nn.Sequential(*chain), Block(usual), nn.ReLU()))
    x = pictures(side=80)
    replica = replicate(net)
    chains = Chains(replica, growths_in(replica))
    assert chains.layers == frozenset(replica[0])
    within = InPlace(distinct(replica), chains.layers, [])
    with torch.no_grad(), chains, within:
        assert torch.equal(replica(x), net(x))
    assert len(written) == 1
