"""Many small pictures as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image


def grid(
    images: Sequence[Image.Image], *, columns: int | None = None, tile: int | None = None, gap: int = 2
) -> Image.Image:
    """Arrange pictures row by row on white.

    Args:
        images: one or more, of any sizes.
        columns: per row; None makes the whole about as wide as high.
        tile: side in pixels to which the longer side of each is scaled, without smoothing upwards; None keeps sizes.
        gap: pixels between them.
    """
    tiles = [_fit(image, tile) if tile else image for image in images]
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    rows = math.ceil(len(tiles) / columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for place, image in enumerate(tiles):
        row, column = divmod(place, columns)
        canvas.paste(image, (column * (width + gap), row * (height + gap)))
    return canvas


def _fit(image: Image.Image, tile: int) -> Image.Image:
    factor = tile / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
