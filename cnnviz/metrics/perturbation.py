"""How fast the score falls when the pixels that an explanation points at go, and rises when they come."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ..hookspecs import RegisterMetric, hookimpl
from ..metric import Case, Measurement, Metric
from ..options import Baseline, Field, Options


class DeletionOptions(Options):
    """Options of `deletion`."""

    steps: int = Field(28, ge=1, le=10_000, description="steps from none of the pixels to all of them")
    baseline: Literal["blur"] | Baseline = Field(
        0.0,
        description="what stands where pixels are missing: the blurred input, a number, one per channel, or an image, "
        "in the units of the model's input",
    )
    sigma: float = Field(
        5.0, gt=0, le=100, description="standard deviation of the blur in pixels; it is cut off at one of them"
    )


class InsertionOptions(DeletionOptions):
    """Options of `insertion`."""

    baseline: Literal["blur"] | Baseline = Field(
        "blur", description=str(DeletionOptions.model_fields["baseline"].description)
    )


def deletion(case: Case, options: DeletionOptions) -> Measurement:
    """Area under the score's curve while pixels are taken away, those that the map points at first.

    Scores of classes are probabilities, so that values lie in [0, 1]. Petsiuk 2018, section 4.1.
    """
    return _curves(case, options, inserting=False)


def insertion(case: Case, options: InsertionOptions) -> Measurement:
    """Area under the score's curve while pixels are put into a blurred image, those that the map points at first.

    Scores of classes are probabilities, so that values lie in [0, 1]. Petsiuk 2018, section 4.1.
    """
    return _curves(case, options, inserting=True)


def _curves(case: Case, options: DeletionOptions, *, inserting: bool) -> Measurement:
    images, maps = case.request.inputs, case.maps
    count, (height, width) = len(images), maps.shape[1:]
    ranks = maps.flatten(1).argsort(stable=True, dim=1, descending=True).argsort(1)
    counts = (
        torch.linspace(0, height * width, options.steps + 1, dtype=torch.float64, device="cpu")
        .round()
        .long()
        .to(images.device)
    )
    empty = _empty(case, options)
    owner = torch.arange(count, device=images.device).repeat_interleave(len(counts))
    moved = counts.repeat(count)

    def shown(start: int, stop: int) -> Tensor:
        of = owner[start:stop]
        changed = (ranks[of] < moved[start:stop, None]).reshape(-1, 1, height, width)
        return torch.where(changed == inserting, images[of], empty[of])

    found = case.request.sweep(shown, len(owner), owner, probability=True, rounding="any")
    scores = found.to(case.values.dtype).reshape(count, -1)
    share = counts.cpu().double() / (height * width)
    areas = torch.trapezoid(scores, share.to(scores), dim=1)
    done = "inserted" if inserting else "deleted"
    return Measurement(areas, scores, share, (f"share of pixels {done}", "score of the target"))


def _empty(case: Case, options: DeletionOptions) -> Tensor:
    """Return what each image looks like without any of its pixels, (N, C, H, W)."""
    images = case.request.inputs
    if options.baseline != "blur":
        return case.request.baseline(options.baseline)[None].expand_as(images)
    reach = math.ceil(options.sigma)
    places = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    bell = (-0.5 * (places / options.sigma).square()).exp()
    channels, kernel = images.shape[1], (bell / bell.sum()).expand(images.shape[1], 1, -1)
    down = conv2d(images, kernel[:, :, :, None], padding=(reach, 0), groups=channels)
    return conv2d(down, kernel[:, :, None], padding=(0, reach), groups=channels)


@hookimpl
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer both."""
    register(Metric("deletion", deletion, DeletionOptions, better="lower"))
    register(Metric("insertion", insertion, InsertionOptions, better="higher"))
