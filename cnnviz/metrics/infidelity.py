"""Whether an explanation foretells what a change of the input does to the score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

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
    window: Pair | None = Field(
        None, description="height and width of what squares cover, in pixels; a seventh of the image's by default"
    )
    baseline: Baseline = Field(
        0.0, description="what covers: a number, one per channel, or an image, in the units of the model's input"
    )
    noise: float = Field(0.2, gt=0, le=100, description="standard deviation of the noise, in the units of the input")
    normalise: bool = Field(True, description="scale each map by the factor that suits it best")


def infidelity(case: Case, options: InfidelityOptions) -> Tensor:
    """Mean square difference between what the map foretells for a change of the input and what the score does.

    In squares of the raw score. Yeh 2019, definition 2.1; scaled as captum's `normalize` does.
    """
    request = case.request
    count = len(request.inputs)
    original = request.base_scores().double()
    draw = (_windows if options.perturbation == "squares" else _noise)(case, options)
    foretold, seen = [], []
    for start in range(0, options.samples, _AT_ONCE):
        stop = min(start + _AT_ONCE, options.samples)
        expected, changed = draw(stop - start)
        rows = torch.arange(count, device="cpu").repeat_interleave(stop - start)
        share = start / options.samples, stop / options.samples
        scores = request.sweep(changed, len(rows), rows, share=share).double()
        foretold.append(expected)
        seen.append(original[:, None] - scores.reshape(count, stop - start))
    told, found = torch.cat(foretold, 1), torch.cat(seen, 1)
    if options.normalise:
        square = told.square().sum(1)
        told = told * ((told * found).sum(1) / torch.where(square == 0, 1, square))[:, None]
    return (told - found).square().mean(1).to(case.values.dtype)


_Draw: TypeAlias = Callable[[int], tuple[Tensor, Callable[[int, int], Tensor]]]
"""From a number of draws to what the maps foretell, (N, draws), and a function that makes the changed images.

The draws of one image stand together.
"""


def _windows(case: Case, options: InfidelityOptions) -> _Draw:
    """Draw windows to cover; a map foretells the sum of its values in them."""
    images, generator = case.request.inputs, case.request.generator
    count, (height, width) = len(images), images.shape[2:]
    rows, columns = options.window or (max(1, round(height / 7)), max(1, round(width / 7)))
    if rows > height or columns > width:
        raise OptionError(
            f"option 'window' of 'infidelity': got {options.window}, expected at most the image's {(height, width)}"
        )
    table = pad(case.maps.double().cumsum(1).cumsum(2), (1, 0, 1, 0))  # the sum of what lies above and to the left
    cover = case.request.baseline(options.baseline)

    def draw(draws: int) -> tuple[Tensor, Callable[[int, int], Tensor]]:
        top = torch.randint(height - rows + 1, (draws,), generator=generator, device="cpu")
        left = torch.randint(width - columns + 1, (draws,), generator=generator, device="cpu")
        bottom, right = top + rows, left + columns
        foretold = table[:, bottom, right] - table[:, top, right] - table[:, bottom, left] + table[:, top, left]
        owner = torch.arange(count, device="cpu").repeat_interleave(draws)
        boxes = torch.stack([top, bottom, left, right], 1).repeat(count, 1)
        windows = torch.cat([owner[:, None], boxes], 1)
        return foretold, lambda start, stop: occlude(images, windows[start:stop], cover)

    return draw


def _noise(case: Case, options: InfidelityOptions) -> _Draw:
    """Draw noise to take away; a map foretells its product with it."""
    images, generator = case.request.inputs, case.request.generator
    values = case.values if case.values.shape[1:] == images.shape[1:] else case.maps[:, None]
    flat = values.flatten(1).double()

    def draw(draws: int) -> tuple[Tensor, Callable[[int, int], Tensor]]:
        noise = torch.randn(draws, *images.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
        noise = noise.to(images) * options.noise
        # One map for all channels counts for each of them.
        summed = noise if values.shape[1] == noise.shape[1] else noise.sum(1, keepdim=True)
        place = torch.arange(len(images) * draws, device=images.device)

        def changed(start: int, stop: int) -> Tensor:
            return images[place[start:stop] // draws] - noise[place[start:stop] % draws]

        return flat @ summed.flatten(1).double().T, changed

    return draw


@hookimpl
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer it."""
    register(Metric("infidelity", infidelity, InfidelityOptions, better="lower"))
