"""The patches that excite a channel most, beside an obvious twin, and their projections beside `explain`'s."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz import LayerError, OptionError, render
from tests.conftest import Run

TILE, GAP, BETWEEN = 96, 2, 12


@pytest.fixture
def net() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 144, 3),
    )
    nn.init.ones_(net[3].bias)  # no unit is dead, so that the order of images is certain
    return net.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 3, 24, 24)


def strongest(net: nn.Module, x: Tensor, channel: int) -> list[tuple[float, int, int, int]]:
    """Each image's strongest unit of a channel behind the last ReLU, strongest image first."""
    found = []
    for number, image in enumerate(x):
        maps = net[:5](image[None]).detach()[0, channel]
        value, row, column = max((float(maps[r, c]), -r, -c) for r in range(12) for c in range(12))
        found.append((value, number, -row, -column))
    return sorted(found, reverse=True)


def test_units_are_the_strongest_of_the_strongest_images(net: nn.Module, x: Tensor) -> None:
    more = 30  # more than a mebibyte holds
    x = torch.cat([x, torch.randn(more, 3, 24, 24)])
    made = cnnviz.explain(net, x, "top-patches", layer="4", channels=(3, 0), top=4, memory="1MiB")
    assert made.rows.tolist() == [3, 0]
    assert max(made.provenance.batch_sizes) < more
    for row, channel in zip(made.values, (3, 0), strict=True):
        expected = torch.tensor(strongest(net, x, channel)[:4])
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)
    assert made.captions[0].startswith("channel 3 of 4: ")


def test_patches_are_what_the_unit_sees(net: nn.Module) -> None:
    """The field behind convolution, pooling, convolution is 8 x 8 at twice the unit's place, less 3."""
    x = torch.rand(12, 3, 24, 24)
    model = cnnviz.load_model(net, preprocess=cnnviz.Preprocess())
    made = cnnviz.explain(model, x, "top-patches", layer="4", channels=(2,), top=9)
    padded = nn.functional.pad(x, (8, 8, 8, 8), value=0.5)
    for place, (_, image, row, column) in enumerate(strongest(net, x, 2)[:9]):
        top, left = 2 * row - 3 + 8, 2 * column - 3 + 8
        patch = padded[image, :, top : top + 8, left : left + 8]
        large = patch.repeat_interleave(TILE // 8, 1).repeat_interleave(TILE // 8, 2)
        down, across = (place // 3) * (TILE + GAP), (place % 3) * (TILE + GAP)
        found = made.images[0, :, down : down + TILE, across : across + TILE]
        assert (found - large).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("rule", "technique"), [("deconvnet", "deconvnet"), ("guided", "guided-backprop")])
def test_projections_are_those_of_the_neurons(net: nn.Module, x: Tensor, rule: str, technique: str) -> None:
    made = cnnviz.explain(net, x, "top-patches", layer="4", channels=(1,), top=1, projection=rule)
    _, image, row, column = (int(value) for value in made.values[0, 0])
    target = cnnviz.neuron("4", 1, row, column)
    slope = cnnviz.explain(net, x[image : image + 1], technique, target=target).values[0]
    padded = nn.functional.pad(slope, (8, 8, 8, 8))
    patch = padded[:, 2 * row + 5 : 2 * row + 13, 2 * column + 5 : 2 * column + 13]
    unit = render.Scale.of(patch).unit(patch)
    large = unit.repeat_interleave(TILE // 8, 1).repeat_interleave(TILE // 8, 2)
    found = made.images[0, :, :, TILE + BETWEEN :]
    assert (found - large).abs().max() <= 0.5 / 255 + 1e-4


def test_units_that_see_everything_show_the_whole_image() -> None:
    model = cnnviz.load_model()  # behind 53 convolutions the field is larger than the image
    x = torch.randn(2, 3, 64, 64)
    made = cnnviz.explain(model, x, "top-patches", layer="features.18", channels=(5,), top=1)
    image = int(made.values[0, 0, 1])
    whole = render.to_pil(made.pictures[image]).resize((TILE, TILE), 0)
    assert torch.equal(made.images[0], render.to_tensor(whole))


def test_bad_input_is_told(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(OptionError, match="'channels': got 5, but layer '4' has channels 0 to 4"):
        cnnviz.explain(net, x, "top-patches", layer="4", channels=(0, 5))
    with pytest.raises(OptionError, match="'channels'"):
        cnnviz.explain(net, x, "top-patches", layer="4", channels=(-1,))
    with pytest.raises(LayerError, match="layer '6' returns no maps"):
        cnnviz.explain(net, x, "top-patches", layer="6")


def test_command_takes_channels_and_a_projection(run: Run, tmp_path: Path) -> None:
    from cnnviz.data import demo_picture

    demo_picture().save(tmp_path / "cat.png")
    code, told, errors = run(
        *("explain", "top-patches", "cat.png", "--layer", "features.3", "--channels", "2,4", "--projection", "guided"),
    )
    assert code == 0, errors
    assert told.splitlines() == [f"{tmp_path}/cnnviz-out/top-patches/figure-00{i}.png" for i in (0, 1)]
