"""How much the score drops when a window is covered."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cnnviz import (
    Baseline,
    Field,
    Heatmap,
    ModelError,
    OptionError,
    Options,
    Pair,
    Perturbation,
    Request,
    Technique,
    hookimpl,
)
from cnnviz.incremental import Changes, Unfollowed

from .covers import Cover

_FEW = 16  # windows
_WORTH_IT = 1.2  # times as many operations
_LEAST, _AT_MOST = 0.1, 0.03  # of the tolerance, the share of the largest change below which others are dropped
_APART = 4  # with a tolerance the first windows lie at most a fourth of a window apart


class OcclusionOptions(Options):
    """Options of `occlusion`."""

    window: Pair = Field(32, description="height and width of the window in pixels, at most the image's")
    stride: Pair = Field(8, description="step between windows in pixels")
    baseline: Literal["blur", "noise", "inpaint"] | Baseline | Perturbation = Field(
        0.0,
        description="what covers: a number, one per channel, or an image, in the units of the model's input; the image "
        "itself, blurred by half a window; noise of its mean and deviation; inpaint, from just outside of the window; "
        "in Python also a function, see `Perturbation`",
    )
    method: Literal["auto", "dense", "incremental"] = Field(
        "auto",
        description="incremental recomputes only what a window changed, dense every covered image; the map is the "
        "same, and auto takes what computes less",
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="where the stride is at most an eighth of the window, run every few windows first, and those "
        "between only where neighbours' drops differ by more than this share of the drops' range; the others are "
        "interpolated. And where only what a window changed is recomputed, drop at its rim what changed by less than a "
        "tenth of this share (at most 3 %) of the largest change",
    )


def occlusion(request: Request, options: OcclusionOptions) -> Heatmap:
    """Slide a window over the image and record how much the score drops.

    Signed, (N, C, H, W) -> (N, 1, H, W): at each pixel the mean, over the windows that cover it, of score(original) -
    score(covered); 0 where none does. Zeiler & Fergus 2014, section 4.2. With a tolerance, `draws` is the number of
    windows that were run.
    """
    images = request.inputs
    height, width = images.shape[2:]
    if options.window[0] > height or options.window[1] > width:
        raise OptionError(
            f"option 'window' of 'occlusion': got {options.window}, expected at most the image's {(height, width)}"
        )
    rows = _spans(height, options.window[0], options.stride[0])
    columns = _spans(width, options.window[1], options.stride[1])
    boxes = torch.tensor([(*row, *column) for row in rows for column in columns], device="cpu")
    cover = Cover(request, options.baseline, options.window)
    windows = _Windows(boxes, len(rows), len(columns), options)
    request.base_scores()  # of the images as they were given, which are told beside the map
    drops = _incremental(request, windows, cover, options) if options.method != "dense" else None
    if drops is None:
        drops = _dense(request, windows, cover, "alike" if options.method == "auto" else "same")
    filled = torch.stack([windows.filled(one)[0] for one in drops])
    return Heatmap(
        values=_mean_over_windows(filled, rows, columns, (height, width)).to(images),
        draws=None if options.tolerance is None else (~drops.isnan()).sum(1).cpu(),
    )


class _Windows:
    """The windows of an image, and which of them are run: all, or with a tolerance those that tell something.

    `every` has a last one beside them that covers nothing: the image is run as the others are, or rounding would show.
    """

    def __init__(self, boxes: Tensor, down: int, across: int, options: OcclusionOptions) -> None:
        self.boxes, self.size = boxes, (down, across)
        self.every = torch.cat([boxes, boxes.new_zeros(1, 4)])
        self._tolerance = options.tolerance or 0.0
        self._steps = tuple(
            2 ** int(math.log2(max(1, window / stride / _APART))) if self._tolerance else 1
            for window, stride in zip(options.window, options.stride, strict=True)
        )
        self.all_of_them = max(self._steps) == 1

    @staticmethod
    def drops(scores: Tensor) -> Tensor:
        """Return how much each window takes from the score, (..., windows), of the scores of `every`."""
        return scores[..., -1:].double() - scores[..., :-1].double()

    def wanted(self, scores: Tensor) -> Tensor:
        """Return the numbers of those of `every` to run next, from the scores of all, NaN where one was not run."""
        windows = self.filled(self.drops(scores))[1]
        # The image among so many as later ones: what is run alone may be rounded otherwise.
        return torch.cat([windows.new_tensor([len(self.boxes)]), windows]) if scores[-1].isnan() else windows

    def filled(self, drops: Tensor) -> tuple[Tensor, Tensor]:
        """Return drops, (windows,), NaN where one was not run, without gaps as (rows, columns); and which to run next.

        From coarse to fine: where the corners of a cell differ by more than the tolerance, those between are wanted.
        """
        grid, numbers = drops.reshape(self.size).cpu(), torch.arange(len(drops), device="cpu").reshape(self.size)
        known = drops[~drops.isnan()]
        enough = self._tolerance * float(known.max() - known.min()) if len(known) else 0.0
        steps = self._steps
        axes = [_Axis(count, step) for count, step in zip(self.size, steps, strict=True)]
        wanted = torch.ones(len(axes[0].at), len(axes[1].at), dtype=torch.bool, device="cpu")
        made = torch.zeros_like(wanted, dtype=grid.dtype)
        while True:
            down, across = axes
            run = grid[down.at][:, across.at]
            made = torch.where(run.isnan(), made, run)
            missing = numbers[down.at][:, across.at][wanted & run.isnan()]
            if len(missing) or max(steps) == 1:
                return made, missing
            corners = torch.stack([made[i][:, j] for i in down.ends for j in across.ends])
            steep = corners.amax(0) - corners.amin(0) > enough
            steps = tuple(max(1, step // 2) for step in steps)
            axes = [_Axis(count, step) for count, step in zip(self.size, steps, strict=True)]
            wanted = down.cells(axes[0]) @ steep.double() @ across.cells(axes[1]).T > 0
            made = down.between(axes[0]) @ made @ across.between(axes[1]).T


class _Axis:
    """Every few windows along one axis, and the last: `at` are their numbers, `ends` those of each cell's two in it."""

    def __init__(self, count: int, step: int) -> None:
        self.at = torch.tensor(sorted({*range(0, count, step), count - 1}), device="cpu")
        first = torch.arange(max(1, len(self.at) - 1), device="cpu")
        self.ends = first, (first + 1).clamp(max=len(self.at) - 1)

    def cells(self, finer: _Axis) -> Tensor:
        """Return which cells hold which windows of a finer axis, (finer, cells) of 0 and 1; ends belong to both."""
        left, right = (self.at[end] for end in self.ends)
        return ((left <= finer.at[:, None]) & (finer.at[:, None] <= right)).double()

    def between(self, finer: _Axis) -> Tensor:
        """Return the weights of linear interpolation at the windows of a finer axis, (finer, these)."""
        steps = torch.eye(len(self.at), dtype=torch.double, device="cpu")
        cell = (torch.searchsorted(self.at, finer.at) - 1).clamp(0, len(self.ends[0]) - 1)
        left, right = (end[cell] for end in self.ends)
        share = (finer.at - self.at[left]) / (self.at[right] - self.at[left]).clamp(min=1)
        return steps[left] + share[:, None].double() * (steps[right] - steps[left])


def _dense(request: Request, windows: _Windows, cover: Cover, rounding: Literal["same", "alike"]) -> Tensor:
    """Return how much each window takes from the score, (N, windows), by running whole covered images.

    NaN where it was not run.
    """
    count, every = len(request.inputs), windows.every
    scores = torch.full((count, len(every)), torch.nan, dtype=torch.double, device=request.inputs.device)
    done = 0
    while True:
        wanted = [windows.wanted(one) for one in scores]
        if not any(map(len, wanted)):
            return windows.drops(scores)
        numbers = torch.cat(wanted)
        owner = torch.arange(count, device="cpu").repeat_interleave(
            torch.tensor([len(one) for one in wanted], device="cpu")
        )
        chosen = torch.cat([owner[:, None], every[numbers]], 1)

        def covered(start: int, stop: int, chosen: Tensor = chosen) -> Tensor:
            return cover.whole(chosen[start:stop])

        found = request.sweep(
            covered,
            len(numbers),
            owner,
            shared=windows.all_of_them,  # with a tolerance another target wants other windows
            share=(done / scores.numel(), (done + len(numbers)) / scores.numel()),
            rounding=rounding,
        )
        scores[owner.to(scores.device), numbers.to(scores.device)] = found.double()
        done += len(numbers)


def _incremental(request: Request, windows: _Windows, cover: Cover, options: OcclusionOptions) -> Tensor | None:
    """Return how much each window takes from the score, (N, windows), by running only what it changed.

    NaN where it was not run; None where auto finds that this cannot be done, or is not worth it.
    """
    count, one, every, method = len(request.inputs), request.inputs[:1], windows.every, options.method
    changes = [
        Changes(image[None], every, lambda numbers, _, i=i: cover.patches(i, every[numbers]))
        for i, image in enumerate(request.inputs)
    ]

    try:
        # What the network makes of an image is kept, and looked at for every window.
        if method == "auto" and (len(windows.boxes) < _FEW or not request.fits(one)):
            return None
        room, found = request.room(one), []
        for i, image in enumerate(changes):
            scores = image.scores(
                request,
                i,
                at_most=room,
                share=(i / count, (i + 1) / count),
                worth=_WORTH_IT if method == "auto" and i == 0 else 0.0,
                least=min(_AT_MOST, _LEAST * (options.tolerance or 0.0)),
                wanted=None if windows.all_of_them else windows.wanted,
            )
            if scores is None:
                return None
            found.append(windows.drops(scores))
    except Unfollowed as error:
        if method == "auto":
            return None
        raise ModelError(f"option 'method': this network cannot be followed, since {error}; take 'auto'") from error
    return torch.stack(found)


def _spans(size: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Return start and stop of each window along one axis; the last is clipped at the border, to nothing maybe."""
    steps = math.ceil((size - window) / stride) + 1
    return [(min(step * stride, size), min(step * stride + window, size)) for step in range(steps)]


def _mean_over_windows(
    drops: Tensor, rows: list[tuple[int, int]], columns: list[tuple[int, int]], size: tuple[int, int]
) -> Tensor:
    """Spread each window's drop over its pixels and average: (N, rows, columns) -> (N, 1, H, W)."""
    down, across = _membership(rows, size[0]).to(drops), _membership(columns, size[1]).to(drops)
    total = down.T @ drops @ across
    covering = down.sum(0)[:, None] * across.sum(0)
    return (total / covering.clamp(min=1))[:, None]


def _membership(spans: list[tuple[int, int]], size: int) -> Tensor:
    """Return which window covers which pixel of an axis: (windows, size) of 0 and 1."""
    member = torch.zeros(len(spans), size, device="cpu")
    for window, (start, stop) in enumerate(spans):
        member[window, start:stop] = 1
    return member


@hookimpl
def cnnviz_techniques(register):
    register(Technique("occlusion", occlusion, OcclusionOptions, family="attribution"))
