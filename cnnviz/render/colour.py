"""Perceptually even colour maps: inferno for unsigned values, Crameri's vik, centred at 0, for signed ones."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy
import numpy.typing
from PIL import Image
from torch import Tensor

from .normalise import Scale

SEQUENTIAL: Final = "bids:inferno"
DIVERGING: Final = "crameri:vik"

Pixels = numpy.typing.NDArray[numpy.uint8]


@cache
def _table(name: str) -> Pixels:
    import cmap  # a third of a second, which only those who render should pay

    lut = cmap.Colormap(name).lut(256)[:, :3]
    return (numpy.asarray(lut) * 255).round().astype(numpy.uint8)


def palette(scale: Scale) -> str:
    """Return the name of the colour map that a scale is shown in."""
    return "gray" if scale.grey else DIVERGING if scale.signed else SEQUENTIAL


def colour(values: Tensor, scale: Scale) -> Pixels:
    """Return the colours of a map: (h, w) values to (h, w, 3) uint8."""
    places = (scale.unit(values) * 255).round().byte().cpu().numpy()
    picked: Pixels = _table(palette(scale))[places]
    return picked


def colour_bar(scale: Scale, width: int, height: int) -> Image.Image:
    """Return the scale as a horizontal strip of colours."""
    ramp = numpy.linspace(0, 255, width).round().astype(numpy.uint8)
    strip = _table(palette(scale))[ramp]
    return Image.fromarray(numpy.repeat(strip[None], height, axis=0))
