"""Sweeps give a CPU its inputs channels last, which is faster, wherever the model does not care."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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
            GIVEN.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
        return self.head(self.flat(self.body(x).relu()))

    def flat(self, maps: Tensor) -> Tensor:
        return torch.flatten(maps, 1)


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


def occluded(net: nn.Module, x: Tensor) -> Tensor:
    GIVEN.clear()
    return cnnviz.explain(net, x, "occlusion", target=[0, 2], window=2, stride=2).values


def by_hand(net: nn.Module, x: Tensor) -> Tensor:
    """The drop under each of 3 x 3 windows that tile the image."""
    drops = torch.zeros(2, 1, 6, 6)
    with torch.no_grad():
        before = net(x)[[0, 1], [0, 2]]
        for top in range(0, 6, 2):
            for left in range(0, 6, 2):
                seen = x.clone()
                seen[:, :, top : top + 2, left : left + 2] = 0
                drop = before - net(seen)[[0, 1], [0, 2]]
                drops[:, 0, top : top + 2, left : left + 2] = drop[:, None, None]
    return drops


@pytest.mark.parametrize(("kind", "last"), [(Watched, True), (Views, False), (Strides, False)])
def test_the_layout_never_changes_the_map(kind: type[Watched], last: bool, x: Tensor) -> None:
    torch.manual_seed(1)
    net = kind().eval()
    expected = by_hand(net, x)
    torch.testing.assert_close(occluded(net, x), expected)
    assert GIVEN[-1] == last
    occluded(net, x)
    assert set(GIVEN[1:]) == {last}, "it is tried out once; the first batch are the inputs as they came"


def test_double_precision_stays_as_it_is(x: Tensor) -> None:
    """No faster kernels are there for it."""
    net = Watched().double().eval()
    occluded(net, x.double())
    assert not any(GIVEN)
