"""Synthesised textures have their sample's statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz.data import open_image
from cnnviz.synthesis import Style
from cnnviz.testing import SmallNet


@pytest.fixture(scope="module")
def net() -> SmallNet:
    return SmallNet().eval()


@pytest.fixture(scope="module")
def shallow(vgg: cnnviz.Model) -> cnnviz.Model:
    """VGG-16's trained layers up to relu3_1."""
    return replace(vgg, module=vgg.module[:12])


def stripes(height: int = 32, width: int = 32) -> Tensor:
    x = torch.zeros(1, 3, height, width)
    x[..., ::4] = 1
    x[..., 1::4] = 0.5
    return x


def texture(net: Any, x: Any, **options: Any) -> cnnviz.Gallery:
    made = cnnviz.explain(net, x, "texture-gram", **{"steps": 60, **options})
    assert isinstance(made, cnnviz.Gallery)
    assert made.history is not None
    return made


@pytest.mark.parametrize("size", [None, (24, 40)])
def test_gram_matrices_become_the_samples(net: SmallNet, size: tuple[int, int] | None) -> None:
    x = stripes()
    made = texture(net, x, layer=["conv1", "conv2"], size=size, steps=120)
    assert made.images.shape == (1, 3, *(size or (32, 32)))
    assert made.history is not None
    assert made.history[0, -1] < 0.01 * made.history[0, 0]
    wanted, found = (Style.of(net, ("conv1", "conv2"), y).grams for y in (x, made.images))
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.15


def test_trained_features_bring_the_distance_below_a_hundredth(shallow: cnnviz.Model, data: Path) -> None:
    bricks = open_image(data / "images" / "brick.png").resize((96, 96))
    made = texture(shallow, bricks, steps=120)
    assert made.history is not None
    assert made.history[0, -1] <= 0.01 * made.history[0, 0]


def test_a_row_of_textures_by_layer(net: SmallNet) -> None:
    layers = ["conv1", "conv2", "conv3"]
    made = texture(net, stripes(), layer=layers, by_layer=True, steps=5)
    assert len(made.images) == 3
    assert [caption.split(":")[0] for caption in made.captions] == [f"to {name}" for name in layers]
    assert made.sources is not None
    assert made.sources.tolist() == [0, 0, 0]
    assert torch.equal(made.images[2], texture(net, stripes(), layer=layers, steps=5).images[0])


def test_seamless_textures_fit_at_their_sides(net: SmallNet) -> None:
    given: dict[str, Any] = {"layer": ["conv1", "conv2"], "optimiser": "adam", "step_size": 0.03, "steps": 150}
    open_, closed = (texture(net, stripes(), seamless=seamless, **given).images for seamless in (False, True))

    def seam(x: Tensor) -> float:
        """How much worse the shifted texture's statistics are, with the seam in its middle."""
        wanted = Style.of(net, ("conv1", "conv2"), stripes()).grams
        found = Style.of(net, ("conv1", "conv2"), x.roll((16, 16), (2, 3))).grams
        return sum(float((a - b).square().sum() / b.square().sum()) for a, b in zip(found, wanted, strict=True))

    assert seam(closed) < 0.7 * seam(open_)
    with pytest.raises(cnnviz.OptionError, match="shifts the texture at random, which L-BFGS cannot follow"):
        texture(net, stripes(), seamless=True)


def test_the_same_bits_under_a_seed(net: SmallNet) -> None:
    one, again = (cnnviz.explain(net, stripes(), "texture-gram", steps=30, seed=4) for _ in range(2))
    other = cnnviz.explain(net, stripes(), "texture-gram", steps=30, seed=5)
    assert one.equals(again)
    assert not torch.equal(one.tensors()["images"], other.tensors()["images"])


def test_weights_of_layers(net: SmallNet) -> None:
    layers = ["conv1", "conv2"]
    alone = texture(net, stripes(), layer=layers, layer_weights=(1.0, 0.0), steps=5)
    torch.testing.assert_close(alone.images, texture(net, stripes(), layer=["conv1"], steps=5).images)
    for weights in ((1.0,), (0.0, 0.0), (1.0, 1.0, 1.0)):
        with pytest.raises(cnnviz.OptionError, match=r"'layer_weights'.*one for each of conv1, conv2"):
            texture(net, stripes(), layer=layers, layer_weights=weights)


def test_a_sample_smaller_than_the_field_is_told(net: SmallNet) -> None:
    with pytest.raises(cnnviz.LayerError, match=r"layer 'conv3' sees .* pixels, more than the style image of 8 x 8"):
        texture(net, stripes(8, 8), layer="conv3")


def test_a_network_without_maps_is_told() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    with pytest.raises(cnnviz.LayerError, match=r"no layer .* returns maps"):
        texture(flat, stripes(8, 8))


@pytest.mark.parametrize("weight", [float("inf"), float("nan"), 1e308])
def test_weights_without_bounds_are_refused(net: SmallNet, weight: float) -> None:
    with pytest.raises(cnnviz.OptionError, match=r"'layer_weights'.*expected numbers from 0 to 1000000"):
        texture(net, stripes(), layer=["conv1", "conv2"], layer_weights=(weight, 1.0))
