"""What layers remember: less, the deeper they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import cnnviz
from cnnviz.data import demo_picture


def test_shallow_layers_remember_nearly_all_and_deep_ones_less() -> None:
    model = cnnviz.load_model()
    layers = ["features.1.conv.0", "features.6", "features.18"]
    x = functional.interpolate(model.prepare([demo_picture()]), (112, 112), mode="bilinear", antialias=True)
    made = cnnviz.explain(model, x, "feature-inversion", layer=layers, steps=150)
    assert isinstance(made, cnnviz.Gallery)
    assert made.history is not None
    errors = made.history[:, -1].tolist()
    assert errors[0] <= 0.05
    assert errors == sorted(errors)
    assert made.sources is not None
    assert made.sources.tolist() == [0, 0, 0]
    assert made.pictures is not None
    apart = (made.images - made.pictures).abs().mean((1, 2, 3)).tolist()
    assert apart == sorted(apart)
    assert apart[0] < 0.4 * apart[-1]


def test_an_invertible_layer_gives_the_picture_back() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 8, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None] * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None])
    x = 0.1 + 0.8 * torch.rand(2, 3, 10, 12)
    made = cnnviz.explain(net, x, "feature-inversion", layer="0", norm=0.0, total_variation=0.0, steps=400)
    assert isinstance(made, cnnviz.Gallery)
    torch.testing.assert_close(made.images, x, atol=0.01, rtol=0)
    other = cnnviz.explain(
        net, x, "feature-inversion", layer="0", norm=0.0, total_variation=0.0, steps=40, optimiser="lbfgs", step_size=1
    )
    assert isinstance(other, cnnviz.Gallery)
    torch.testing.assert_close(other.images, x, atol=0.01, rtol=0)


def test_a_layer_without_maps_is_told(tmp_path: Path) -> None:
    with pytest.raises(cnnviz.LayerError, match="name a layer before the global pooling"):
        cnnviz.explain(cnnviz.load_model(), [demo_picture()], "feature-inversion", layer="classifier.1", steps=1)


def test_units_that_nobody_knows_are_stretched() -> None:
    """As pictures of such samples are: from black, the lowest number of a sample, to white."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 8, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None] * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None])
    plain = 0.1 + 0.8 * torch.rand(2, 3, 10, 12)
    x = torch.cat([plain[:1], 4 * plain[1:] - 2])
    given = {"layer": "0", "norm": 0.0, "total_variation": 0.0, "steps": 400}
    made = cnnviz.explain(net, x, "feature-inversion", **given)
    assert isinstance(made, cnnviz.Gallery)
    low, high = plain[1].min(), plain[1].max()
    wanted = torch.stack([plain[0], (plain[1] - low) / (high - low)])
    torch.testing.assert_close(made.images, wanted, atol=0.01, rtol=0)
    alone = cnnviz.explain(net, x[1:], "feature-inversion", **given)
    assert isinstance(alone, cnnviz.Gallery)
    torch.testing.assert_close(alone.images[0], made.images[1], atol=1e-3, rtol=0)


def test_a_layer_that_sees_nothing_is_told() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1)
    with pytest.raises(cnnviz.InputError, match=r"layer '1' is all zero on a picture; name another layer"):
        cnnviz.explain(net, torch.rand(1, 3, 16, 16), "feature-inversion", layer="1", steps=1)
