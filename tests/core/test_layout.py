"""Sweeps that may give a CPU its inputs channels last, which is faster, where the model does not care."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import cnnviz

GIVEN: list[bool] = []
"""Whether each batch that a network saw was channels last."""


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            GIVEN.append(x.stride(1) == 1)
        return self.head(self.flat(self.body(x).relu()))

    def flat(self, maps: Tensor) -> Tensor:
        return torch.flatten(maps, 1)


class Wide(Watched):
    """Sums over 256 channels of 3 x 3 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 4, 3, padding=1))


class Grouped(Wide):
    """Sums over as many, by a kernel that is none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.body[2] = nn.Conv2d(256, 4, 3, padding=1, groups=2)


class Grey(Watched):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)


class Alone(Watched):
    """Views maps in a way that works channels last for a single image alone."""

    def flat(self, maps: Tensor) -> Tensor:
        count, channels, *size = maps.shape
        return functional.avg_pool2d(maps.view(1, count * channels, *size), 3, 1, 1).view(count, -1)


class Views(Watched):
    """Fails on maps that are channels last."""

    def flat(self, maps: Tensor) -> Tensor:
        return maps.view(len(maps), -1)


class Strides(Watched):
    """Takes other numbers for the maps where they lie in another order."""

    def flat(self, maps: Tensor) -> Tensor:
        return maps.as_strided((len(maps), 144), (144, 1))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 6, 6)


def swept(net: nn.Module, x: Tensor, memory: str = "1GiB", **given: str) -> Tensor:
    """Score each input at half its brightness."""
    GIVEN.clear()

    def halves(request: cnnviz.Request, options: cnnviz.Options) -> Tensor:
        """Show the score everywhere."""
        half = request.inputs / 2
        scores = request.sweep(lambda start, stop: half[start:stop], 2, range(2), **given)
        return scores[:, None, None, None].expand(2, 1, 6, 6)

    made = cnnviz.explain(net, x, cnnviz.Technique("halves", halves), target=[0, 2], memory=memory)
    return made.values[:, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "last"), [(Watched, True), (Grey, True), (Views, False), (Strides, False), (Alone, False)]
)
def test_the_layout_never_changes_the_scores(kind: type[Watched], last: bool, x: Tensor) -> None:
    torch.manual_seed(1)
    net = kind().eval()
    x = x[:, : 1 if kind is Grey else 3]
    with torch.no_grad():
        expected = net(x / 2)[[0, 1], [0, 2]]
    torch.testing.assert_close(swept(net, x, rounding="any"), expected)
    assert GIVEN.count(True) == (2 if last else 1), "one to try it out, and the sweep's own"
    swept(net, x, rounding="any")
    assert [last, False] == GIVEN, "it is tried out once; the inputs themselves are scored as they are"


def test_a_target_may_fail_in_the_other_layout(x: Tensor) -> None:
    """The network alone does not: it is run as it is after that."""
    net = nn.Conv2d(3, 4, 3).eval()
    made = [
        cnnviz.explain(net, x, "rise", target=target, masks=8, seed=0).values
        for target in (lambda maps: maps.view(len(maps), -1).mean(1), lambda maps: maps.mean((1, 2, 3)))
    ]
    torch.testing.assert_close(*made)


class One(Watched):
    """Takes one image at a time."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 1
        return super().forward(x)


def test_networks_of_one_image_are_run_as_they_are(x: Tensor) -> None:
    torch.manual_seed(1)
    net = One().eval()
    made = cnnviz.explain(net, x[:1], "feature-inversion", layer="body", steps=2, seed=0)
    assert isinstance(made, cnnviz.Gallery)
    assert made.images.shape == (1, 3, 6, 6)


def test_nothing_is_laid_out_unless_it_is_asked_for(x: Tensor) -> None:
    swept(Watched().eval(), x)
    assert not any(GIVEN)


def test_double_precision_stays_as_it_is(x: Tensor) -> None:
    """No faster kernels are there for it."""
    swept(Watched().double().eval(), x.double(), rounding="any")
    assert not any(GIVEN)


@pytest.mark.parametrize(("kind", "last"), [(Wide, cnnviz.ops.conv_crops_is_native()), (Grouped, False)])
def test_wide_kernels_are_our_own_or_stay_as_they_are(kind: type[Watched], last: bool, x: Tensor) -> None:
    """Channels last PyTorch sums in one go, and errs several times as far as with channels first."""
    swept(kind().eval(), x, rounding="any")
    assert any(GIVEN) == last


def test_where_it_is_to_round_alike_wide_kernels_stay_as_they_are(x: Tensor) -> None:
    swept(Wide().eval(), x, rounding="alike")
    assert not any(GIVEN)
    swept(Watched().eval(), x, rounding="alike")
    assert any(GIVEN)


@pytest.mark.skipif(not cnnviz.ops.conv_crops_is_native(), reason="there are no kernels of our own")
def test_weights_that_take_most_of_the_memory_are_not_packed(x: Tensor) -> None:
    net = Wide().eval()  # 0.6 MB as our kernel takes them
    swept(net, x, rounding="any", memory="2MiB")
    assert any(GIVEN)
    swept(net, x, rounding="any", memory="1MiB")
    assert not any(GIVEN)


def test_wide_kernels_may_err_in_half_precision(x: Tensor) -> None:
    """What is summed in single precision is exact beside what it is stored in."""
    swept(Grouped().eval().bfloat16(), x.bfloat16(), rounding="any")
    assert any(GIVEN)


@pytest.mark.parametrize("kind", [Views, Strides])
def test_what_holds_of_a_part_of_the_network_is_not_taken_to_hold_of_all(kind: type[Watched], x: Tensor) -> None:
    net, masks = kind().eval(), {"masks": 8}
    alone = cnnviz.explain(net, x, "rise", target=0, **masks)
    again = kind().eval()
    again.load_state_dict(net.state_dict())
    cnnviz.explain(again, x, "rise", target=cnnviz.channel("body", 0), **masks)
    assert cnnviz.explain(again, x, "rise", target=0, **masks).values.equal(alone.values)
