"""Randomised input sampling for explanation."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnviz import Field, Heatmap, Options, Pair, Request, Technique, hookimpl

_CHUNK = 16 << 20  # bytes of masks in single precision that are there at once
_FEWEST = 200  # masks before a standard error is believed


class RiseOptions(Options):
    """Options of `rise`."""

    masks: int = Field(4000, ge=2, le=10_000_000, description="how many random masks, with a tolerance at most")
    cells: Pair = Field(7, description="cells of a mask's coarse grid, down and across")
    keep: float = Field(0.5, gt=0, lt=1, description="probability with which a cell lets the image show")
    tolerance: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="stop when the map's largest standard error is below this share of its range, after at least 200 "
        "masks; scores are centred then, which leaves the map's expectation as it is and takes most of the noise away",
    )


def rise(request: Request, options: RiseOptions) -> Heatmap:
    """Average random masks, each weighted by the probability that the network gives to the image seen through it.

    (N, C, H, W) -> (N, 1, H, W), divided by the expected mask; `errors` holds the standard error of each value and
    `draws` the number of masks used. Classes are scored by their softmax, other targets as they are. Petsiuk 2018,
    equation 6 and section 3.2.
    """
    x = request.inputs
    masks = _Masks(request, options)
    sums = [_Sums(x) for _ in range(len(x))]
    waiting, used = list(range(len(x))), 0
    request.base_scores(probability=True)
    while waiting and used < options.masks:
        drawn = masks.draw(min(masks.chunk, options.masks - used))
        share = used / options.masks, (used + len(drawn)) / options.masks
        used += len(drawn)
        owner = torch.tensor(waiting, device="cpu").repeat(len(drawn))

        def shown(
            start: int, stop: int, drawn: Tensor = drawn, owner: Tensor = owner, each: int = len(waiting)
        ) -> Tensor:
            return x[owner[start:stop].to(x.device)] * drawn[torch.arange(start, stop, device=x.device) // each]

        # With a tolerance some targets stop before others.
        common = options.tolerance is None
        scores = request.sweep(shown, len(owner), owner, probability=True, shared=common, share=share, rounding="any")
        scores = scores.reshape(len(drawn), len(waiting))
        flat = drawn.flatten(1).double()
        square = flat.square()
        for place, sample in enumerate(waiting):
            sums[sample].add(flat, square, scores[:, place])
        if options.tolerance is not None:
            waiting = [sample for sample in waiting if not sums[sample].settled(options)]
    made = [one.estimate(options) for one in sums]
    return Heatmap(
        values=torch.stack([value for value, _ in made])[:, None].to(x),
        errors=torch.stack([error for _, error in made])[:, None].to(x),
        draws=torch.tensor([one.count for one in sums], device="cpu"),
    )


class _Masks:
    """Coarse grids of zeros and ones, enlarged bilinearly and shifted at random, all samples alike."""

    def __init__(self, request: Request, options: RiseOptions) -> None:
        self.like, self.generator, self.options = request.inputs, request.generator, options
        self.size = tuple(request.inputs.shape[2:])
        self.chunk = max(1, _CHUNK // (4 * self.size[0] * self.size[1]))
        # Row t of each table holds what the cells weigh at pixel t of the enlarged grid.
        self.steps = [-(-side // cells) for side, cells in zip(self.size, options.cells, strict=True)]
        self.tables = [
            _enlarging(cells, (cells + 1) * step) for cells, step in zip(options.cells, self.steps, strict=True)
        ]

    def draw(self, count: int) -> Tensor:
        """Return the next masks, (count, 1, H, W) between 0 and 1."""
        grids = (
            torch.rand(count, *self.options.cells, generator=self.generator, dtype=torch.float32, device="cpu")
            < self.options.keep
        ).double()
        down, across = (
            table[
                torch.randint(step, (count, 1), generator=self.generator, device="cpu")
                + torch.arange(side, device="cpu")
            ]
            for table, step, side in zip(self.tables, self.steps, self.size, strict=True)
        )
        made = down @ grids @ across.mT
        return made[:, None].to(self.like)


def _enlarging(cells: int, size: int) -> Tensor:
    """Return the weights of bilinear interpolation along one axis, (size, cells)."""
    unit = torch.eye(cells, dtype=torch.float64, device="cpu")[:, None]
    return torch.nn.functional.interpolate(unit, size, mode="linear", align_corners=False)[:, 0].T


class _Sums:
    """What one sample's scores and masks m add up to; d are scores less a reference, or their size would hide them."""

    def __init__(self, x: Tensor) -> None:
        self.count = 0
        self.reference: Tensor | None = None
        self.scores = 0.0
        # Rows: Σ d m, Σ m; Σ d² m², Σ d m², Σ m².
        self.first = x.new_zeros(2, x.shape[2] * x.shape[3], dtype=torch.float64)
        self.second = x.new_zeros(3, x.shape[2] * x.shape[3], dtype=torch.float64)
        self.size = tuple(x.shape[2:])

    def add(self, masks: Tensor, squares: Tensor, scores: Tensor) -> None:
        """Take in masks and their squares, (B, H * W) each, and their scores (B,)."""
        scores = scores.double()
        if self.reference is None:
            self.reference = scores.mean()
        scores = scores - self.reference
        self.count += len(scores)
        self.scores += float(scores.sum())
        ones = torch.ones_like(scores)
        self.first += torch.stack([scores, ones]) @ masks
        self.second += torch.stack([scores.square(), scores, ones]) @ squares

    def estimate(self, options: RiseOptions) -> tuple[Tensor, Tensor]:
        """Return the map and its standard error, (H, W) each."""
        count, keep = self.count, options.keep
        reference, centred = float(self.reference or 0.0), options.tolerance is not None
        mean = self.scores / count if centred else -reference  # what d are centred at
        weighted = (self.first[0] - mean * self.first[1]) / keep / (count - 1 if centred else count)
        square = self.second[0] - 2 * mean * self.second[1] + mean**2 * self.second[2]
        spread = (square / keep**2 / count - weighted.square()).clamp(min=0)
        return (reference + mean + weighted).reshape(self.size), (spread / (count - 1)).sqrt().reshape(self.size)

    def settled(self, options: RiseOptions) -> bool:
        """Whether the standard error is as small as was asked for; few masks do not tell, nor do equal scores."""
        if self.count < _FEWEST:
            return False
        values, errors = self.estimate(options)
        assert options.tolerance is not None
        extent = values.max() - values.min()
        return bool(errors.max() <= options.tolerance * extent) and bool(extent > 0)


@hookimpl
def cnnviz_techniques(register):
    register(Technique("rise", rise, RiseOptions, family="attribution", on_request=True))
