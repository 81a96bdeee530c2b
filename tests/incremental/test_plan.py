"""The plan says what is recomputed, call by call."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from cnnviz import OptionError
from cnnviz.incremental import plan
from tests.conftest import Run


def test_a_plan_by_hand() -> None:
    """8 pixels in the middle of 32; a 3 x 3 convolution of stride 2 reaches 5 of 16, another 7, the pool all."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    steps = plan(net.eval(), torch.randn(1, 3, 32, 32), (8, 8))
    assert [(step.call, step.size, step.patch) for step in steps] == [
        ("conv2d", (16, 16), (5, 5)),
        ("relu", (16, 16), (5, 5)),
        ("conv2d", (16, 16), (7, 7)),
        ("adaptive_avg_pool2d", (1, 1), None),
        ("flatten", None, None),
        ("linear", None, None),
    ]
    assert [(step.whole, step.done) for step in steps if step.whole] == [
        (4 * 16 * 16 * 27, 4 * 5 * 5 * 27),
        (8 * 16 * 16 * 36, 8 * 7 * 7 * 36),
        (16, 16),
    ]


def test_the_model_is_left_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert [step.call for step in plan(net, torch.randn(1, 3, 16, 16), (4, 4))] == ["conv2d", "batch_norm", "relu"]
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("window", [(17, 4), (4, 17), (0, 4), (-3, 2)])
def test_a_window_that_is_none_is_refused(window: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match=r"window: got .*, expected a height and width of 1 to \(16, 16\)"):
        plan(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 16, 16), window)


class Dense(nn.Module):
    """Lays what a convolution makes beside its input, for a kernel of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.norm, self.mix = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(self.norm(torch.cat([x, self.near(x)], 1)).relu())


def test_products_are_counted_where_a_convolution_brings_together_what_it_sees() -> None:
    steps = plan(Dense().eval(), torch.randn(1, 3, 32, 32), (8, 8))
    assert [(step.call, step.whole, step.done) for step in steps if step.whole] == [
        ("conv2d", 4 * 32 * 32 * 27, 4 * 10 * 10 * 27),
        ("conv2d", 5 * 32 * 32 * 7, 5 * 10 * 10 * 7),
    ]


def test_the_command_shows_it(run: Run) -> None:
    code, out, _ = run("info", "--plan", "resnet18", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["steps"][0]["patch"] == [11, 11]
    assert told["times as many operations for whole images"] > 2
    code, out, _ = run("info", "--plan", "alexnet", "--window", "32")
    assert "conv2d" in out.splitlines()[1]
    code, _, err = run("info", "--plan", "alexnett")
    assert (code, "nearest: 'alexnet'" in err) == (2, True)
