"""Painting by a trained network: what comes out is the network's, mixed and coloured as asked, and errors tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz import InputError, ModelError, OptionError
from cnnviz.data import demo_picture
from cnnviz.synthesis import StyleNetwork
from tests.models.test_style_network import network, picture

LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def painted(net: Any, x: Any, **options: Any) -> Tensor:
    return cnnviz.explain(net, x, "fast-style", **options).tensors()["images"]


@pytest.fixture
def net() -> StyleNetwork:
    return network(dtype=torch.float32)


def test_it_is_what_the_network_returns(net: StyleNetwork) -> None:
    x = picture(24, 33, 2, torch.float32)
    made = cnnviz.explain(net, x, "fast-style")
    torch.testing.assert_close(made.tensors()["images"], net(x))
    assert made.captions == ("style 0", "style 0")
    assert torch.equal(made.pictures, x)
    mixed = cnnviz.explain(net, x, "fast-style", style_weights=(1, 3))
    torch.testing.assert_close(mixed.tensors()["images"], net(x, torch.tensor([0.25, 0.75])))
    assert mixed.captions == ("style 0 25%, style 1 75%",) * 2
    assert painted(net, x, style_weights=(0, 2)).equal(painted(net, x, style_weights=(0, 1)))


def test_own_colours_are_kept(net: StyleNetwork) -> None:
    x = picture(24, 24, dtype=torch.float32)
    made = painted(net, x, colours="luminance")
    grey = (x * LUMA).sum(1, keepdim=True).expand_as(x)
    brightness = (net(grey) * LUMA).sum(1, keepdim=True)
    torch.testing.assert_close(made, (brightness + x - grey).clamp(0, 1))


def test_a_photograph_keeps_its_shape_unless_a_size_is_given(net: StyleNetwork, tmp_path: Path) -> None:
    model = cnnviz.load_model(str(net.save(tmp_path / "waves.safetensors")))
    assert painted(model, demo_picture()).shape == (1, 3, 300, 451)
    made = cnnviz.explain(model, demo_picture(), "fast-style", size=90)
    assert made.tensors()["images"].shape == (1, 3, 60, 90)
    assert made.provenance.model == "waves"


def test_half_precision_networks_paint(net: StyleNetwork) -> None:
    x = picture(24, 24, dtype=torch.float32)
    made = painted(net.bfloat16(), x.bfloat16())
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, painted(network(dtype=torch.float32), x), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("net", "options", "size", "error", "told"),
    [
        (nn.Conv2d(3, 3, 3).eval(), {}, 24, ModelError, "got Conv2d, expected a network that cnnviz train-style wrote"),
        (network(dtype=torch.float32), {"style_weights": (1, 1, 1)}, 24, OptionError, "expected 2 numbers .* style 1"),
        (network(dtype=torch.float32), {"style_weights": (0, 0)}, 24, OptionError, "got 0.0, 0.0, expected 2 numbers"),
        (
            network(dtype=torch.float32),
            {"style_weights": (1e39, 2)},
            24,
            OptionError,
            "'style_weights' of 'fast-style'",
        ),
        (network(dtype=torch.float32), {}, 7, InputError, r"got \(1, 3, 7, 7\) float32, expected .* 8 x 8"),
    ],
)
def test_what_makes_no_sense_is_told(
    net: nn.Module, options: dict[str, Any], size: int, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        painted(net, picture(size, size, dtype=torch.float32), **options)
