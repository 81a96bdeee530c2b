"""How much an explanation changes when its input hardly does."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hookspecs import RegisterMetric, hookimpl
from ..metric import Case, Metric
from ..options import Field, Options


class MaxSensitivityOptions(Options):
    """Options of `max-sensitivity`."""

    samples: int = Field(10, ge=1, le=100_000, description="random neighbours of each input that are explained")
    radius: float = Field(
        0.02, gt=0, le=100, description="how far each number of a neighbour may differ, in the units of the input"
    )


def max_sensitivity(case: Case, options: MaxSensitivityOptions) -> Tensor:
    """Largest change of the explanation among random neighbours of the input, relative to the explanation.

    NaN for an explanation of zeros. Frobenius norms; uniform noise in each number; the target stays. Yeh 2019,
    definition of max-sensitivity, divided by the explanation's norm as captum does.
    """
    images = case.request.inputs
    size = case.values.flatten(1).norm(dim=1)
    largest = torch.zeros_like(size)
    for i in range(options.samples):
        noise = torch.rand(images.shape[1:], generator=case.request.generator, dtype=torch.float32, device="cpu")
        noise = noise * 2 - 1
        share = i / options.samples, (i + 1) / options.samples
        changed = case.explain(images + noise.to(images) * options.radius, share=share)
        largest = torch.maximum(largest, (changed - case.values).flatten(1).norm(dim=1))
    return torch.where(size > 0, largest / size, torch.nan)


@hookimpl
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer it."""
    register(Metric("max-sensitivity", max_sensitivity, MaxSensitivityOptions, better="lower", explains=True))
