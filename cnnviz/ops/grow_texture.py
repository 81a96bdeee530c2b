"""Pixels of a texture chosen one after the other, each from where the sample looks most like its surroundings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from . import _check, _native
from ._operator import Operator

_NAME: Final = "grow_texture"
_PART: Final = 1 << 14


class Guide(NamedTuple):
    """Maps that are there already and are compared beside the pixels, such as a coarser level of a pyramid.

    Attributes:
        canvas: (G, H, W), of the sample's type and device.
        sample: (G, h, w), the same maps of the sample.
        offsets: (U, 2) int64, rows and columns around a pixel at which they are compared.
        weights: (U,), positive, of the sample's type and device.
    """

    canvas: Tensor
    sample: Tensor
    offsets: Tensor
    weights: Tensor


def grow_texture(
    sample: Tensor,
    sources: Tensor,
    places: Tensor,
    draws: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    guide: Guide | None = None,
    tolerance: float = 0.0,
    wrap: bool = False,
) -> Tensor:
    """Choose the pixels at `places` one after the other, each as a copy of one of the sample's: (H, W) -> (H, W).

    Candidates are the sample's pixels around which all offsets stay inside of it. A candidate's distance is the sum,
    over the offsets at which the canvas is known and over the guide's, of weight times squared difference. Of those
    that are at most (1 + tolerance) times as far as the nearest, in the order of their places, the one numbered
    ⌊draw · how many⌋ is taken. Squares are summed channel by channel, weighted and summed offset by offset as given,
    and rounded to the sample's type after each operation, so that every implementation chooses the same.

    Args:
        sample: (C, h, w); float32 or float64, finite.
        sources: (H, W) int64, the place y · w + x in the sample that each pixel of the canvas copies; -1 for unknown.
        places: (K,) int64, the places y · W + x in the canvas to fill, in their order, known already or not.
        draws: (K,) float64 in [0, 1); zeros take the first of the nearest.
        offsets: (T, 2) int64, rows and columns around a pixel; nearest first is fastest.
        weights: (T,), positive, of the sample's type and device.
        guide: further maps to compare.
        tolerance: at least 0.
        wrap: the canvas goes on at its other side; otherwise all beyond its border is unknown.

    Returns:
        The sources with all places filled. It, the integers and the draws are on the CPU; the integers are fetched.

    Raises:
        ValueError: shapes, types or values do not fit, or the offsets reach further than the sample.

    Efros & Leung 1999, section 2; Wei & Levoy 2000, section 3.
    """
    if not isinstance(sample, Tensor) or sample.dtype not in (torch.float32, torch.float64) or sample.dim() != 3:
        raise ValueError(f"{_NAME}: sample is {_check.told(sample)}, expected a float32 or float64 tensor (C, H, W)")
    sources = _check.integers(_NAME, "sources", sources, ("H", "W"))
    places = _check.places(_NAME, "places", places, sources.numel())
    offsets = _check.integers(_NAME, "offsets", offsets, ("T", 2))
    if guide is None:
        none = sample.new_empty
        guide = Guide(none(0, *sources.shape), none(0, *sample.shape[1:]), offsets[:0], none(0))
    guide = guide._replace(offsets=_check.integers(_NAME, "guide.offsets", guide.offsets, ("U", 2)))
    _check.have_values(_NAME, sample, sources=sources, places=places, offsets=offsets)
    _like("draws", draws, (len(places),), torch.empty(0, dtype=torch.float64, device="cpu"))
    _like("weights", weights, (len(offsets),), sample)
    _like("guide.canvas", guide.canvas, (None, *sources.shape), sample)
    _like("guide.sample", guide.sample, (len(guide.canvas), *sample.shape[1:]), sample)
    _like("guide.weights", guide.weights, (len(guide.offsets),), sample)
    if _check.has_values(sample) and _check.has_values(sources):
        _check_values(sample, sources, draws, offsets, weights, guide)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"{_NAME}: tolerance is {tolerance}, expected a number of at least 0")
    return _forward(sample, sources, places, draws, offsets, weights, *guide, float(tolerance), wrap)


def _like(name: str, value: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
    """Require a tensor of a shape, in which None is any length, and of another's type and device."""
    if (
        not isinstance(value, Tensor)
        or value.dim() != len(shape)
        or any(want not in (None, have) for have, want in zip(value.shape, shape, strict=True))
        or value.dtype != like.dtype
        or value.device != like.device
    ):
        wanted = ", ".join("G" if length is None else str(length) for length in shape)
        raise ValueError(f"{_NAME}: {name} is {_check.told(value)}, expected ({wanted}) {like.dtype} on {like.device}")


def _check_values(
    sample: Tensor, sources: Tensor, draws: Tensor, offsets: Tensor, weights: Tensor, guide: Guide
) -> None:
    pixels = sample.shape[1] * sample.shape[2]
    if (wrong := _native.first_outside(sources, -1, pixels)) >= 0:
        y, x = divmod(wrong, sources.shape[1])
        raise ValueError(f"{_NAME}: sources[{y}, {x}] is {sources[y, x]}, expected -1 to {pixels - 1}")
    kind = torch.finfo(sample.dtype)
    for name, values in (("sample", sample), ("guide.canvas", guide.canvas), ("guide.sample", guide.sample)):
        _within(name, values, kind.min, math.inf, "finite numbers")
    for name, values in (("weights", weights), ("guide.weights", guide.weights)):
        _within(name, values, kind.tiny, math.inf, "positive numbers")
    _within("draws", draws, 0, 1, "numbers in [0, 1)")
    low, high = _reach(offsets, guide.offsets)
    needs = [bottom - top + 1 for top, bottom in zip(low, high, strict=True)]
    if any(side < need for side, need in zip(sample.shape[1:], needs, strict=True)):
        raise ValueError(
            f"{_NAME}: sample is {sample.shape[1]} x {sample.shape[2]}, expected at least {needs[0]} x {needs[1]}, "
            "which the offsets reach over"
        )


def _within(name: str, values: Tensor, low: float, high: float, expected: str) -> None:
    """Require numbers in [low, high)."""
    # In parts for which no second thread is woken: on a busy machine that takes longer than all that is chosen.
    flat = values.flatten()
    for start in range(0, len(flat), _PART):
        part = flat[start : start + _PART]
        right = (part >= low) & (part < high)
        if not bool(right.all()):
            raise ValueError(f"{_NAME}: {name} has {part[~right][0]}, expected {expected}")


def _reach(*offsets: Tensor) -> tuple[list[int], list[int]]:
    """Return the lowest and the highest row and column around a pixel, the pixel itself included."""
    every = torch.cat([*offsets, offsets[0].new_zeros(1, 2)])
    return every.amin(0).tolist(), every.amax(0).tolist()


@torch.library.custom_op("cnnviz::grow_texture", mutates_args=())
def _grow_texture(
    sample: Tensor,
    sources: Tensor,
    places: Tensor,
    draws: Tensor,
    offsets: Tensor,
    weights: Tensor,
    guide: Tensor,
    guide_sample: Tensor,
    guide_offsets: Tensor,
    guide_weights: Tensor,
    tolerance: float,
    wrap: bool,
) -> Tensor:
    low, high = _reach(offsets, guide_offsets)
    window = _Window(sample, offsets, weights, low, high)
    guiding = _Window(guide_sample, guide_offsets, guide_weights, low, high)
    height, width = sources.shape
    colours, features = sample.flatten(1), guide.flatten(1)
    chosen = sources.flatten().tolist()
    first, columns = window.first, window.shape[1]
    for place, draw in zip(places.tolist(), draws.tolist(), strict=True):
        distances = sample.new_zeros(window.shape)
        for part, of_canvas in ((window, True), (guiding, False)):
            for (down, across), weight, view in part.each:
                y, x = place // width + down, place % width + across
                if wrap:
                    y, x = y % height, x % width
                elif not (0 <= y < height and 0 <= x < width):
                    continue
                at = y * width + x
                if of_canvas and chosen[at] < 0:
                    continue
                colour = colours[:, chosen[at]] if of_canvas else features[:, at]
                distances += weight * _square(view - colour[:, None, None])
        near = (distances <= distances.min() * (1 + tolerance)).flatten().nonzero()[:, 0]
        row, column = divmod(int(near[int(draw * len(near))]), columns)
        chosen[place] = first + row * sample.shape[2] + column
    return torch.tensor(chosen, dtype=torch.int64, device="cpu").view(sources.shape)


class _Window:
    """What is compared around a pixel: for each offset its weight and the sample as all candidates see it there."""

    def __init__(
        self, sample: Tensor, offsets: Tensor, weights: Tensor, low: Sequence[int], high: Sequence[int]
    ) -> None:
        height, width = sample.shape[1:]
        top, left = -low[0], -low[1]
        self.first = top * width + left
        self.shape = height - top - high[0], width - left - high[1]
        self.each = [
            ((down, across), weight, sample[:, top + down :, left + across :][:, : self.shape[0], : self.shape[1]])
            for (down, across), weight in zip(offsets.tolist(), weights.unbind(), strict=True)
        ]


def _square(differences: Tensor) -> Tensor:
    """Return the squares summed over channels, one after the other."""
    total = differences.new_zeros(differences.shape[1:])
    for channel in differences:
        total += channel * channel
    return total


@_grow_texture.register_fake
def _(
    sample: Tensor,
    sources: Tensor,
    places: Tensor,
    draws: Tensor,
    offsets: Tensor,
    weights: Tensor,
    guide: Tensor,
    guide_sample: Tensor,
    guide_offsets: Tensor,
    guide_weights: Tensor,
    tolerance: float,
    wrap: bool,
) -> Tensor:
    device = sample.device if sample.is_meta else sources.device
    return torch.empty_like(sources, device=device, memory_format=torch.contiguous_format)


_forward = Operator(_grow_texture)
