"""Many small pictures as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor


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


def settle(points: Tensor, side: int, first: Sequence[int] = ()) -> dict[int, int]:
    """Give points cells of a square grid, each at most one, near where they lie.

    Where there are enough cells, every point gets the nearest one that is free, those that lie best first; otherwise a
    cell gets the point that lies nearest to its middle, and the others get none.

    Args:
        points: (M, 2), the second coordinate upwards.
        side: cells in a row.
        first: points that get their cells before the others, and one in any case.

    Returns:
        The point of each cell that has one; cells are numbered row by row from the top left.
    """
    points = points.detach().double().cpu()
    low, high = points.amin(0), points.amax(0)
    # One scale for both directions, in the middle.
    scaled = (points - (low + high) / 2) / (high - low).max().clamp(min=1e-300) * (side - 1) + (side - 1) / 2
    places = torch.stack([(side - 1) - scaled[:, 1], scaled[:, 0]], 1)  # row and column
    own = places.round().clamp(0, side - 1)
    away = (places - own).square().sum(1)
    away[list(first)] -= 1
    order = away.argsort(stable=True).tolist()
    cells = torch.cartesian_prod(torch.arange(side, device="cpu"), torch.arange(side, device="cpu")).double()
    taken = torch.zeros(len(cells), dtype=torch.bool, device="cpu")
    found: dict[int, int] = {}
    for number, point in enumerate(order):
        cell = int(own[point, 0] * side + own[point, 1])
        if taken[cell]:
            if taken.all() or (len(points) > len(cells) and number >= len(first)):
                continue
            away = (cells - places[point]).square().sum(1).masked_fill(taken, torch.inf)
            cell = int(away.argmin())
        taken[cell] = True
        found[cell] = point
    return found


def _fit(image: Image.Image, tile: int) -> Image.Image:
    factor = tile / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
