"""Paintings keep what a picture shows and take how others are painted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import cnnviz
from cnnviz.synthesis import Style, StyleLoss
from cnnviz.testing import SmallNet

STYLE = ("conv1", "conv2")
BASE: dict[str, Any] = {"content_layers": ("conv3",), "style_layers": STYLE, "steps": 40}


@pytest.fixture(scope="module")
def net() -> SmallNet:
    return SmallNet().eval()


def noted(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, float]]]:
    """Return where the style layers of each loss that is made will be."""
    seen: list[list[tuple[str, float]]] = []
    plain = StyleLoss.__init__

    def noting(loss: StyleLoss, model: Any, styles: Any, shares: Any, **given: Any) -> None:
        seen.append(list(shares))
        plain(loss, model, styles, shares, **given)

    monkeypatch.setattr(StyleLoss, "__init__", noting)
    return seen


def picture(seed: int, *size: int) -> Tensor:
    """Large blobs of colour."""
    small = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, size or (32, 32), mode="bicubic").clamp(0, 1)


def rough(seed: int) -> Tensor:
    """Stripes, as no noise has them."""
    colours = torch.rand(3, 1, 4, generator=torch.Generator().manual_seed(seed))
    return colours.repeat_interleave(2, 2).repeat(1, 32, 4)


def paint(net: Any, x: Any, styles: Any, **options: Any) -> cnnviz.Gallery:
    made = cnnviz.explain(net, x, "style-transfer", styles=styles, **{**BASE, **options})
    assert isinstance(made, cnnviz.Gallery)
    assert made.history is not None
    return made


def apart(net: SmallNet, x: Tensor, style: Tensor, content: Tensor) -> tuple[float, float]:
    loss = StyleLoss(
        net, [(1.0, Style.of(net, STYLE, style[None]))], [(name, 1.0) for name in STYLE],
        picture=content, content_layers=[("conv3", 1.0)],
    )  # fmt: skip
    with torch.no_grad():
        near_style, near_content, _ = loss.parts(x)
    return float(near_style), float(near_content)


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
def test_both_distances_fall_from_noise(net: SmallNet, optimiser: str) -> None:
    """Seen after 0, 20, 40, … steps of one run, which is the same run each time."""
    x, style = picture(1), rough(2)
    step = {"optimiser": optimiser, "step_size": 1.0 if optimiser == "lbfgs" else 0.03}
    seen = [
        apart(net, paint(net, x, style, start="noise", steps=steps, **step).images, style, x)
        for steps in (1, 10, 30, 100)
    ]
    styles, contents = zip(*seen, strict=True)
    assert list(styles) == sorted(styles, reverse=True)
    assert list(contents) == sorted(contents, reverse=True)
    assert styles[-1] < 0.3 * styles[0]
    assert contents[-1] < 0.5 * contents[0]


def test_weights_choose_between_content_and_style(net: SmallNet) -> None:
    x, style = picture(1), rough(2)
    painted = [apart(net, paint(net, x, style, style_weight=weight).images, style, x) for weight in (0.01, 1.0, 100.0)]
    assert painted[0][0] > painted[1][0] > painted[2][0]
    assert painted[0][1] < painted[1][1] < painted[2][1]


def test_several_styles_are_mixed_by_weight(net: SmallNet) -> None:
    x, one, other = picture(1), rough(2), picture(3)[0]
    alone = paint(net, x, one)
    torch.testing.assert_close(paint(net, x, [one, other], style_weights=(2.0, 0.0)).images, alone.images)
    mixed = paint(net, x, [one, other])
    assert apart(net, mixed.images, other, x)[0] < apart(net, alone.images, other, x)[0]
    assert apart(net, mixed.images, one, x)[0] < apart(net, paint(net, x, other).images, one, x)[0]


def test_masks_say_where(net: SmallNet) -> None:
    x, one, other = picture(1, 32, 64), rough(2), 0.2 * rough(3)
    left = torch.zeros(1, 32, 64)
    left[..., :32] = 1
    made = paint(net, x, [one, other], masks=[left, 1 - left], style_weight=100.0, steps=80).images
    halves = made[..., 2:30], made[..., 34:62]
    for half, style, wrong in zip(halves, (one, other), (other, one), strict=True):
        assert apart(net, half, style, half)[0] < apart(net, half, wrong, half)[0]


def test_colours_are_kept(net: SmallNet) -> None:
    x = picture(1)
    x[:, 2] = 0.1  # no blue
    blue = torch.stack([0.1 * rough(2)[0], 0.1 * rough(2)[1], rough(2)[2]])

    def chroma(y: Tensor) -> Tensor:
        grey = (y * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        return y - grey

    free, grey, matched = (
        paint(net, x, blue, colours=name, steps=80).images for name in ("style", "luminance", "matched")
    )
    gap = [float((chroma(y) - chroma(x)).abs().mean()) for y in (free, grey, matched)]
    assert gap[1] < 0.4 * gap[0]
    assert gap[2] < 0.6 * gap[0]


def test_matched_colours_have_the_pictures_mean_and_covariance() -> None:
    from cnnviz_techniques.style.colours import matched

    x, style = 0.3 + 0.2 * picture(1), rough(2)[None]
    found = matched(style, x)[0].flatten(1)
    torch.testing.assert_close(found.mean(1), x[0].flatten(1).mean(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.cov(), x[0].flatten(1).cov(), atol=1e-4, rtol=0)
    flat = matched(torch.full_like(style, 0.5), x)[0].flatten(1)
    torch.testing.assert_close(flat, x[0].flatten(1).mean(1, keepdim=True).expand_as(flat), atol=1e-5, rtol=0)


def test_coarse_to_fine(net: SmallNet) -> None:
    made = paint(net, picture(1, 64, 48), rough(2), levels=3, steps=4)
    assert made.images.shape == (1, 3, 64, 48)
    assert made.history is not None
    assert made.history.shape == (1, 12)
    assert paint(net, picture(1, 64, 48), rough(2), size=32, steps=1).images.shape == (1, 3, 32, 24)


def test_scale_of_the_style_changes_the_strokes(net: SmallNet) -> None:
    x, style = picture(1, 64, 64), torch.nn.functional.interpolate(rough(2)[None], (64, 64))[0]

    def detail(y: Tensor) -> float:
        return float(y.diff(dim=3).abs().mean())

    fine, coarse = (
        paint(net, x, style, style_scale=scale, start="noise", style_weight=100.0).images for scale in (0.5, 2.0)
    )
    assert detail(coarse) < detail(fine)


def test_dreams_can_be_mixed_in(net: SmallNet) -> None:
    x, style = picture(1), rough(2)
    plain, dreamt = (paint(net, x, style, dream_weight=weight, dream_layers=("conv3",)).images for weight in (0.0, 3.0))
    with torch.no_grad():
        from cnnviz.synthesis import features

        excitement = [float(features(net, ["conv3"], y)[0].square().mean()) for y in (plain, dreamt)]
    assert excitement[1] > 1.2 * excitement[0]


def test_large_pictures_are_seen_in_pieces(net: SmallNet) -> None:
    x = picture(1, 320, 256)
    whole, pieces = (paint(net, x, rough(2), tile=tile, steps=3).images for tile in (512, 192))
    torch.testing.assert_close(pieces, whole, atol=5e-3, rtol=0)


def test_paths_and_folders_are_styles(net: SmallNet, tmp_path: Path) -> None:
    for seed in (2, 3):
        values = (rough(seed).movedim(0, 2) * 255).round().byte().numpy()
        Image.fromarray(values).save(tmp_path / f"{seed}.png")
    x = picture(1)
    listed = paint(net, x, [tmp_path / "2.png", tmp_path / "3.png"], steps=5)
    for given in (tmp_path, f"{tmp_path}/2.png,{tmp_path}/3.png"):
        assert torch.equal(paint(net, x, given, steps=5).images, listed.images)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"style_weights": (0.0,)}, cnnviz.OptionError, "'style_weights'.*expected 1 numbers with a sum above 0"),
        ({"style_weights": (1.0, 1.0)}, cnnviz.OptionError, "'style_weights'.*one for each style image"),
        ({"style_weight": 0.0, "content_weight": 0.0}, cnnviz.OptionError, "are both 0"),
        ({"style_layer_weights": (0.0, 0.0)}, cnnviz.OptionError, "'style_layer_weights'.*a sum above 0"),
        ({"style_layers": ("conv9",)}, cnnviz.LayerError, "no layer 'conv9'"),
        ({"content_layers": ("head",)}, cnnviz.LayerError, "layer 'head' returns .* before the global pooling"),
        ({"style_layers": ("head",)}, cnnviz.LayerError, "'head'"),
        ({"masks": (torch.ones(1, 8, 8),) * 2}, cnnviz.OptionError, "'masks'.*got 2, expected 1"),
        ({"masks": (torch.zeros(1, 8, 8),)}, cnnviz.InputError, "a mask is black everywhere"),
        ({"styles": torch.rand(3, 4, 4), "style_scale": 0.125}, cnnviz.LayerError, "the style image of 4 x 4"),
        ({"styles": "nowhere.png"}, cnnviz.OptionError, "'styles'.*does not exist"),
        ({"styles": ()}, cnnviz.OptionError, "'styles'"),
        ({"styles": torch.full((3, 8, 8), torch.nan)}, cnnviz.InputError, "'styles'.*values that are not finite"),
        ({"masks": (torch.full((1, 8, 8), torch.inf),)}, cnnviz.InputError, "'masks'.*values that are not finite"),
    ],
)  # fmt: skip
def test_bad_requests_are_told(net: SmallNet, options: dict[str, Any], error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        paint(net, picture(1), **{"styles": rough(2), **options})


def test_the_pictures_own_colours_are_not_mixed_with_others(net: SmallNet) -> None:
    x = 0.4 + 0.2 * picture(1)
    made = paint(net, x, rough(2), colours="luminance", start="noise", steps=1).images
    inside = ((made > 0.01) & (made < 0.99)).all(1, keepdim=True)

    def chroma(y: Tensor) -> Tensor:
        return (y[:, :1] - y[:, 1:]).where(inside, 0)

    assert bool(inside.any())
    torch.testing.assert_close(chroma(made), chroma(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
def test_channels_last_paints_the_same(net: SmallNet, optimiser: str) -> None:
    x, given = picture(1), {"optimiser": optimiser, "step_size": 1.0 if optimiser == "lbfgs" else 0.02, "steps": 3}
    made = paint(net, x.to(memory_format=torch.channels_last), rough(2), **given)
    torch.testing.assert_close(made.images, paint(net, x, rough(2), **given).images, rtol=0, atol=1e-3)


@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 3.0)])
def test_style_layers_are_those_of_the_full_size(
    net: SmallNet, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a style image of 8 pixels conv3 sees too much, and goes with its weight."""
    seen, names = noted(monkeypatch), ("conv1", "conv2", "conv3")
    paint(net, picture(1), rough(2), steps=1, levels=3, style_layers=names, style_layer_weights=weights)
    shares = list(zip(names, weights or (1.0,) * 3, strict=True))
    assert seen == [shares[:2], shares, shares]
