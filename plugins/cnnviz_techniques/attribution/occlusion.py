"""How much the score drops when a window is covered."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cnnviz import Baseline, Field, ModelError, OptionError, Options, Pair, Request, Technique, hookimpl
from cnnviz.incremental import Changes, Unfollowed, cropped
from cnnviz.ops import occlude

_FEW = 16  # windows
_WORTH_IT = 1.2  # times as many operations


class OcclusionOptions(Options):
    """Options of `occlusion`."""

    window: Pair = Field(32, description="height and width of the window in pixels, at most the image's")
    stride: Pair = Field(8, description="step between windows in pixels")
    baseline: Baseline = Field(
        0.0, description="what covers: a number, one per channel, or an image, in the units of the model's input"
    )
    method: Literal["auto", "dense", "incremental"] = Field(
        "auto",
        description="incremental recomputes only what a window changed, dense every covered image; the map is the "
        "same, and auto takes what computes less",
    )


def occlusion(request: Request, options: OcclusionOptions) -> Tensor:
    """Slide a window over the image and record how much the score drops.

    Signed, (N, C, H, W) -> (N, 1, H, W): at each pixel the mean, over the windows that cover it, of score(original) -
    score(covered); 0 where none does. Zeiler & Fergus 2014, section 4.2.
    """
    images = request.inputs
    count, (height, width) = len(images), images.shape[2:]
    if options.window[0] > height or options.window[1] > width:
        raise OptionError(
            f"option 'window' of 'occlusion': got {options.window}, expected at most the image's {(height, width)}"
        )
    rows = _spans(height, options.window[0], options.stride[0])
    columns = _spans(width, options.window[1], options.stride[1])
    boxes = torch.tensor([(*row, *column) for row in rows for column in columns])
    cover = request.baseline(options.baseline)
    request.base_scores()  # of the images as they were given, which are told beside the map
    drops = _incremental(request, boxes, cover, options.method) if options.method != "dense" else None
    if drops is None:
        drops = request.base_scores().double()[:, None] - _dense(request, boxes, cover).double()
    return _mean_over_windows(drops.reshape(count, len(rows), len(columns)), rows, columns, (height, width)).to(images)


def _dense(request: Request, boxes: Tensor, cover: Tensor) -> Tensor:
    """Return the score of each image with each window covered, (N, windows), by running all of them."""
    images = request.inputs
    owner = torch.arange(len(images)).repeat_interleave(len(boxes))
    windows = torch.cat([owner[:, None], boxes.repeat(len(images), 1)], 1)
    channels_last = _channels_last(images)

    def covered(start: int, stop: int) -> Tensor:
        return occlude(images, windows[start:stop], cover, channels_last=channels_last)

    return request.sweep(covered, len(windows), owner, shared=True).reshape(len(images), len(boxes))


def _incremental(request: Request, boxes: Tensor, cover: Tensor, method: str) -> Tensor | None:
    """Return how much each window takes from the score, (N, windows), by running only what it changed.

    None where auto finds that this cannot be done, or is not worth it.
    """
    count, one = len(request.inputs), request.inputs[:1]
    # The image itself is an empty window, run in the same way: rounding must not show in differences.
    every = torch.cat([boxes, boxes.new_zeros(1, 4)])
    changes = [_covered(image[None], every, cover) for image in request.inputs]
    try:
        # What the network makes of an image is kept, and a few passes go by before it is known what is saved.
        if method == "auto" and (len(boxes) < _FEW or not request.fits(one)):
            return None
        room, scores = request.room(one), []
        for i, image in enumerate(changes):
            worth = _WORTH_IT if method == "auto" and i == 0 else 0.0
            found = image.scores(request, i, at_most=room, share=(i / count, (i + 1) / count), worth=worth)
            if found is None:
                return None
            scores.append(found.double())
    except Unfollowed as error:
        if method == "auto":
            return None
        raise ModelError(f"option 'method': this network cannot be followed, since {error}; take 'auto'") from error
    every_score = torch.stack(scores)
    return every_score[:, -1:] - every_score[:, :-1]


def _covered(image: Tensor, boxes: Tensor, cover: Tensor) -> Changes:
    """Return an image of which boxes are covered, one at a time, by a cover (C, H, W) or (C, 1, 1)."""

    def patches(numbers: Tensor, size: tuple[int, int]) -> Tensor:
        if cover.shape[1:] == (1, 1):
            made = cover[None].expand(len(numbers), -1, *size)
        else:
            made = cropped(cover[None], boxes[numbers, ::2].contiguous(), size)
        return made.contiguous(memory_format=layout)

    # In the caller's layout: a CPU is up to a third faster with channels last, but rounds otherwise.
    layout = torch.channels_last if _channels_last(image) else torch.contiguous_format
    return Changes(image, boxes, patches)


def _channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


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
    member = torch.zeros(len(spans), size)
    for window, (start, stop) in enumerate(spans):
        member[window, start:stop] = 1
    return member


@hookimpl
def cnnviz_techniques(register):
    register(Technique("occlusion", occlusion, OcclusionOptions, family="attribution"))
