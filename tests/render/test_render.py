"""From numbers to pictures."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image

from cnnviz import render
from cnnviz.render import Scale


def lightness(rgb: numpy.ndarray) -> numpy.ndarray:
    """Return CIE L* of sRGB colours in [0, 255]."""
    linear = rgb.astype(numpy.float64) / 255
    linear = numpy.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    y = linear @ numpy.array([0.2126, 0.7152, 0.0722])
    return numpy.where(y > 0.008856, 116 * numpy.cbrt(y) - 16, 903.3 * y)


def test_unsigned_colours_grow_evenly_lighter() -> None:
    ramp = torch.linspace(0, 1, 256)[None]
    light = lightness(render.colour(ramp, Scale(0.0, 1.0, signed=False))[0])
    steps = numpy.diff(light[::16])
    assert (steps > 0).all()
    assert steps.max() / steps.min() < 2.5


def test_signed_colours_are_centred_at_zero_and_even_on_both_sides() -> None:
    scale = Scale(-2.0, 2.0, signed=True)
    ramp = torch.linspace(-2, 2, 257)[None]
    colours = render.colour(ramp, scale)[0].astype(int)
    light = lightness(colours)
    assert light.argmax() in range(125, 132), "0 is the lightest"
    assert (numpy.diff(light[:120:10]) > 0).all()
    assert (numpy.diff(light[136::10]) < 0).all()
    assert abs(light[64] - light[192]) < 12, "equal magnitudes are about equally light"
    blue, red = colours[10], colours[-11]
    assert blue[2] > blue[0]
    assert red[0] > red[2]


def test_scale_is_symmetric_for_signed_maps_and_starts_at_zero_for_others() -> None:
    signed = Scale.of(torch.tensor([[-1.0, 3.0]]), quantile=1.0)
    assert (signed.low, signed.high, signed.signed) == (-3.0, 3.0, True)
    plain = Scale.of(torch.tensor([[1.0, 3.0]]), quantile=1.0)
    assert (plain.low, plain.high, plain.signed) == (0.0, 3.0, False)
    assert [label for _, label in signed.ticks()] == ["-3", "0", "3"]
    assert [label for _, label in plain.ticks()] == ["0", "3"]


def test_scale_is_not_hidden_by_a_few_peaks() -> None:
    values = torch.ones(100, 100)
    values[0, 0] = 1e6
    assert Scale.of(values).high == 1.0


def test_a_map_of_zeros_has_a_scale_and_a_picture() -> None:
    scale = Scale.of(torch.zeros(4, 4))
    assert scale.high > 0
    assert render.colour(torch.zeros(4, 4), scale).shape == (4, 4, 3)


def test_overlay_shows_the_photograph_where_the_map_is_weak_and_the_colour_where_it_is_strong() -> None:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    values = torch.zeros(32, 32)
    values[:, 16:] = 1
    scale = Scale(0.0, 1.0, signed=False)
    shown = numpy.asarray(render.overlay(picture, values, scale)).astype(float)
    photo = numpy.asarray(render.to_pil(picture)).astype(float)
    correlation = numpy.corrcoef(lightness(shown[:, :16]).ravel(), lightness(photo[:, :16]).ravel())[0, 1]
    assert correlation > 0.95
    strongest = render.colour(torch.ones(1, 1), scale)[0, 0]
    assert numpy.abs(shown[:, 16:].mean((0, 1)) - strongest).max() < 45
    assert shown[:, 16:].std() > 3, "the photograph is still there"


def test_overlay_resizes_a_small_map() -> None:
    assert render.overlay(torch.rand(3, 30, 20), torch.rand(3, 2), Scale(0.0, 1.0, signed=False)).size == (20, 30)


def test_resizing_up_interpolates_and_down_averages() -> None:
    assert render.resize_map(torch.tensor([[0.0, 1.0]]), (1, 4))[0].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert render.resize_map(torch.tensor([[0.0, 1.0, 2.0, 5.0]]), (1, 2))[0].tolist() == [0.5, 3.5]


def test_compose_writes_caption_and_scale() -> None:
    panel = Image.new("RGB", (224, 224), "black")
    bare = render.compose([panel])
    told = render.compose([panel], caption="Egyptian cat, score 18.9", scale=Scale(0.0, 1.0, signed=False))
    assert told.height > bare.height + 40
    top = numpy.asarray(told.convert("L"))[:28]
    assert (top < 128).sum() > 100, "the caption is there"
    bottom = numpy.asarray(told.convert("L"))[-28:]
    assert (bottom < 128).sum() > 10, "the scale's labels are there"


@pytest.mark.parametrize("size", [(200, 1), (16_000, 1), (1, 300), (3, 5)])
def test_thin_panels_are_enlarged_by_their_longer_side(size: tuple[int, int]) -> None:
    made = render.compose([Image.new("RGB", size, "black")] * 2)
    assert made.width <= max(2 * 224, 2 * size[0]) + 30 * 2
    assert made.height <= max(300, size[1] + 20)


def caption_of(text: str) -> numpy.ndarray:
    """Return how dark each pixel of a caption is, above a white picture."""
    made = render.compose([Image.new("RGB", (224, 224), "white")], caption=text).convert("L")
    return 255 - numpy.asarray(made).astype(int)


@pytest.mark.parametrize("word", ["word ", "m", "/photographs/holiday-"])
def test_a_long_caption_is_wrapped_not_cut(word: str) -> None:
    """Also one word that is wider than the picture."""
    one, many = caption_of(word), caption_of(word * 60)
    assert many.shape[1] == one.shape[1]
    assert many.shape[0] > one.shape[0] + 40
    assert many.sum() == pytest.approx(60 * one.sum(), rel=0.03), "every letter is there"
    assert many[:, :5].sum() == many[:, -5:].sum() == 0, "nor does one touch the border"


@pytest.mark.parametrize("letter", "éñßü×–жΩ→")
def test_letters_of_many_scripts_are_drawn(letter: str) -> None:
    missing = caption_of("\U0010fffe")
    assert missing.sum() > 0
    assert not numpy.array_equal(caption_of(letter), missing)


def test_pillow_draws_where_there_is_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnviz.render import figure

    monkeypatch.setattr(figure, "find_spec", lambda _: None)
    figure._font.cache_clear()
    try:
        assert caption_of("word").sum() > 0
    finally:
        figure._font.cache_clear()


def test_a_map_in_double_precision_may_be_smaller_than_single_precision_reaches() -> None:
    values = torch.tensor([[0.0, 1e-60], [3e-60, 4e-60]], dtype=torch.float64)
    scale = Scale.of(values, quantile=1.0)
    assert (scale.low, scale.high) == (0.0, 4e-60)
    shares = torch.tensor([[0.0, 0.25], [0.75, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(scale.unit(values), shares)
    assert numpy.array_equal(render.colour(values, scale), render.colour(values * 1e60, Scale(0.0, 4.0, signed=False)))
    assert render.resize_map(values, (1, 1)).item() == pytest.approx(2e-60, abs=0)
    shown = render.overlay(torch.rand(3, 4, 4), values, scale)
    assert numpy.asarray(shown).std() > 30
    signed = Scale.of(-values, quantile=1.0)
    assert (signed.low, signed.high, signed.signed) == (-4e-60, 4e-60, True)
    torch.testing.assert_close(signed.strength(values), shares)


def test_grid_places_tiles_row_by_row() -> None:
    tiles = [Image.new("RGB", (2, 2), colour) for colour in ("red", "lime", "blue")]
    made = render.grid(tiles, columns=2, gap=1)
    assert made.size == (5, 5)
    assert made.getpixel((0, 0)) == (255, 0, 0)
    assert made.getpixel((3, 0)) == (0, 255, 0)
    assert made.getpixel((0, 3)) == (0, 0, 255)
    assert made.getpixel((4, 4)) == (255, 255, 255)
