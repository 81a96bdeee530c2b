from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from cnnviz import ops
from cnnviz.data import demo_picture
from cnnviz.render import to_tensor

WINDOW, RADIUS, CANVAS, GROWN, TOLERANCE = 11, 5, 64, 24, 0.1
CASES = {
    f"sample of 3 x {side} x {side}, window 11, {pixels} pixels": (side, pixels)
    for side, pixels in [(32, 32), (64, 32), (128, 16), (256, 4)]
}


@pytest.mark.parametrize("case", CASES)
def test_one_pixel_after_the_other(case: str, race: Any, device: str) -> None:
    if device == "cuda":
        pytest.skip("one pixel after the other is nothing for a GPU: there is no kernel")
    side, pixels = CASES[case]
    sample = to_tensor(demo_picture().resize((side, side))).contiguous()
    rows = torch.arange(-RADIUS, RADIUS + 1)
    offsets = torch.cartesian_prod(rows, rows)
    offsets = offsets[offsets.square().sum(1).argsort(stable=True)][1:]
    weights = torch.exp(-offsets.square().sum(1) / (2 * (WINDOW / 6.4) ** 2))
    draws = torch.rand(CANVAS * CANVAS, dtype=torch.float64)

    def grow(sources: Tensor, start: int, stop: int) -> Tensor:
        places = torch.arange(start, stop)
        return ops.grow_texture(sample, sources, places, draws[start:stop], offsets, weights, tolerance=TOLERANCE)

    begin = GROWN * CANVAS + 16
    canvas = grow(torch.full((CANVAS, CANVAS), -1), 0, begin)

    gauss = numpy.zeros((WINDOW, WINDOW), numpy.float32)
    gauss[tuple((offsets + RADIUS).T.numpy())] = weights
    windows = numpy.lib.stride_tricks.sliding_window_view(sample.numpy(), (WINDOW, WINDOW), axis=(1, 2))

    def obvious() -> Tensor:
        sources = numpy.pad(canvas.numpy(), RADIUS, constant_values=-1)
        colours = sample.flatten(1).numpy()[:, sources]
        for place in range(begin, begin + pixels):
            y, x = divmod(place, CANVAS)
            around = slice(y, y + WINDOW), slice(x, x + WINDOW)
            mask = gauss * (sources[around] >= 0)
            distances = ((windows - colours[:, None, None, *around]) ** 2 * mask).sum((0, 3, 4))
            near = numpy.argwhere(distances <= distances.min() * (1 + TOLERANCE))
            top, left = near[int(draws[place] * len(near))] + RADIUS
            sources[y + RADIUS, x + RADIUS] = top * side + left
            colours[:, y + RADIUS, x + RADIUS] = sample[:, top, left]
        return torch.from_numpy(sources[RADIUS:-RADIUS, RADIUS:-RADIUS])

    def ours() -> Tensor:
        return grow(canvas, begin, begin + pixels)

    assert torch.equal(ours(), obvious())
    race(ours, {"NumPy: a weighted square of all windows, a pixel": obvious})
