"""Whether an explanation foretells what a change of the input does to the score."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import OptionError
from ..hookspecs import RegisterMetric, hookimpl
from ..metric import Case, Metric
from ..ops import occlude
from ..options import Baseline, Field, Options, Pair

_AT_ONCE = 16  # draws that are held in memory


class InfidelityOptions(Options):
    """Options of `infidelity`."""

    samples: int = Field(100, ge=2, le=100_000, description="random changes of each input")
    perturbation: Literal["squares", "noise"] = Field(
        "squares",
        description="squares: a window is covered, and its part of the map should add up to the drop; noise is taken "
        "from the input, and its product with the map should be the change, as for derivatives",
    )
    window: Pair = Field((32, 32), description="height and width of what squares cover, in pixels")
    baseline: Baseline = Field(
        0.0, description="what covers: a number, one per channel, or an image, in the units of the model's input"
    )
    noise: float = Field(0.2, gt=0, le=100, description="standard deviation of the noise, in the units of the input")
    normalise: bool = Field(True, description="scale each map by the factor that suits it best")


def infidelity(case: Case, options: InfidelityOptions) -> Tensor:
    """Mean square difference between what the map foretells for a change of the input and what the score does.

    In squares of the raw score. Yeh 2019, definition 2.1, and section 2.2 for the scaling.
    """
    request = case.request
    images = request.inputs
    count = len(images)
    original = request.base_scores().double()
    values = case.values if len(case.values[0]) in (1, images.shape[1]) else case.values.sum(1, keepdim=True)
    if values.shape[2:] != images.shape[2:]:
        values = case.as_maps(values)[:, None]
    told, seen = [], []
    for start in range(0, options.samples, _AT_ONCE):
        draws = min(_AT_ONCE, options.samples - start)
        changed, foretold = (_covered if options.perturbation == "squares" else _noisy)(case, options, values, draws)
        rows = torch.arange(count).repeat_interleave(draws)
        scores = request.sweep(lambda i, j, made=changed: made[i:j], len(rows), rows)  # type: ignore[misc]
        told.append(foretold.double())
        seen.append(original[:, None] - scores.double().reshape(count, draws))
    expected, found = torch.cat(told, 1), torch.cat(seen, 1)
    if options.normalise:
        square = expected.square().sum(1)
        expected = expected * ((expected * found).sum(1) / torch.where(square == 0, 1, square))[:, None]
    return (expected - found).square().mean(1).to(images.dtype)


def _covered(case: Case, options: InfidelityOptions, values: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Cover a window of each image: (N * draws, C, H, W), and what its part of the map adds up to, (N, draws)."""
    images = case.request.inputs
    count, (height, width) = len(images), images.shape[2:]
    rows, columns = options.window
    if rows > height or columns > width:
        raise OptionError(
            f"option 'window' of 'infidelity': got {options.window}, expected at most the image's {(height, width)}"
        )
    generator = case.request.generator
    top = torch.randint(height - rows + 1, (draws,), generator=generator)
    left = torch.randint(width - columns + 1, (draws,), generator=generator)
    boxes = torch.stack([top, top + rows, left, left + columns], 1)
    owner = torch.arange(count).repeat_interleave(draws)
    windows = torch.cat([owner[:, None], boxes.repeat(count, 1)], 1)
    ahead = torch.nn.functional.pad(values.double().sum(1).cumsum(1).cumsum(2), (1, 0, 1, 0))  # summed-area table
    bottom, right = top + rows, left + columns
    foretold = ahead[:, bottom, right] - ahead[:, top, right] - ahead[:, bottom, left] + ahead[:, top, left]
    return occlude(images, windows, case.request.baseline(options.baseline)), foretold


def _noisy(case: Case, options: InfidelityOptions, values: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Take noise from each image: (N * draws, C, H, W), and its product with the map, (N, draws)."""
    images = case.request.inputs
    noise = torch.randn(draws, *images.shape[1:], generator=case.request.generator).to(images) * options.noise
    foretold = torch.einsum("nchw,schw->ns", values.expand_as(images).double(), noise.double())
    return (images[:, None] - noise).flatten(0, 1), foretold


@hookimpl
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer it."""
    register(Metric("infidelity", infidelity, InfidelityOptions, better="lower"))
