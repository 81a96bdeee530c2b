"""What the network makes of the image when it sees only what an explanation points at."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hookspecs import RegisterMetric, hookimpl
from ..metric import Case, Metric
from ..options import Options


def average_drop(case: Case, options: Options) -> Tensor:  # noqa: ARG001  # every metric takes options
    """Share of the score that is lost when the image is multiplied by the map, 0 where it rises.

    The map's positive part is stretched to [0, 1] first; scores of classes are probabilities, and so are values. NaN
    where the score is not positive, which has no share to lose. Chattopadhay 2018 (Grad-CAM++), section 5.1.
    """
    before, after = _scores(case)
    return torch.where(before > 0, (before - after).relu() / before, torch.nan)


def increase_in_confidence(case: Case, options: Options) -> Tensor:  # noqa: ARG001  # every metric takes options
    """Whether the score rises when the image is multiplied by the map: 1 or 0.

    As `average-drop`. Chattopadhay 2018 (Grad-CAM++), section 5.1.
    """
    before, after = _scores(case)
    return (after > before).to(before.dtype)


def _scores(case: Case) -> tuple[Tensor, Tensor]:
    """Return the scores of the images and of what the maps leave of them, (N,) each."""
    request = case.request
    strength = case.values.sum(1, keepdim=True).relu()
    low, high = strength.amin((2, 3), keepdim=True), strength.amax((2, 3), keepdim=True)
    unit = (strength - low) / (high - low).clamp(min=torch.finfo(strength.dtype).tiny)
    images, count = request.inputs, len(strength)
    masks = torch.cat([torch.ones_like(images[:, 0]), case.as_maps(unit).to(images)])[:, None]
    rows = torch.arange(count, device="cpu").repeat(2)

    def shown(start: int, stop: int) -> Tensor:
        return images[rows[start:stop].to(images.device)] * masks[start:stop]

    scores = request.sweep(shown, len(rows), rows, probability=True).to(case.values.dtype)
    return scores[:count], scores[count:]


@hookimpl
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer both."""
    register(Metric("average-drop", average_drop, better="lower"))
    register(Metric("increase-in-confidence", increase_in_confidence, better="higher"))
