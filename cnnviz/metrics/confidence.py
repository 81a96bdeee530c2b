"""What the network makes of the image when it sees only what an explanation points at."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hookspecs import RegisterMetric, hookimpl
from ..metric import Case, Metric
from ..options import Options


def average_drop(case: Case, options: Options) -> Tensor:  # noqa: ARG001  # every metric takes options
    """Share of the score that is lost when the image is multiplied by the map, 0 where it rises.

    The map's positive part is stretched to [0, 1] first; scores of classes are probabilities, and so are values.
    Chattopadhay 2018 (Grad-CAM++), section 5.1.
    """
    before, after = _scores(case)
    return (before - after).relu() / before.abs().clamp(min=torch.finfo(before.dtype).tiny)


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
    shown = request.inputs * case.as_maps(unit)[:, None]
    both, count = torch.cat([request.inputs, shown]), len(shown)
    rows = torch.arange(count).repeat(2)
    scores = request.sweep(lambda start, stop: both[start:stop], len(both), rows, probability=True)
    return scores[:count], scores[count:]


@hookimpl
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer both."""
    register(Metric("average-drop", average_drop, better="lower"))
    register(Metric("increase-in-confidence", increase_in_confidence, better="higher"))
