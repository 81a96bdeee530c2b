"""Integrated gradients."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy
from torch import Tensor

from cnnviz import Baseline, Field, Options, Request, Technique, hookimpl

_AT_ONCE = 500  # points; finding those of n takes n³


class IntegratedGradientsOptions(Options):
    """Options of `integrated-gradients`."""

    steps: int = Field(50, ge=1, le=10_000, description="points on the way from the baseline to the input")
    baseline: Baseline = Field(
        0.0, description="where the way begins: a number, one per channel, or an image, in the units of the input"
    )
    quadrature: Literal["gauss-legendre", "midpoint"] = Field(
        "gauss-legendre",
        description="where on the way the points lie, and their weights; more than 500 are those of equal pieces of it",
    )


def integrated_gradients(request: Request, options: IntegratedGradientsOptions) -> Tensor:
    """Average the gradient on the straight way from a baseline to the input, times their difference.

    Signed, (N, C, H, W) -> (N, C, H, W); a sample's values add up to score(input) - score(baseline), the better the
    more steps. Sundararajan 2017, equation 1.
    """
    if options.quadrature == "midpoint":
        places, weights = [(i + 0.5) / options.steps for i in range(options.steps)], [1 / options.steps] * options.steps
    else:
        places, weights = _gauss_legendre(options.steps)
    start = request.baseline(options.baseline)
    way = request.inputs - start
    return way * request.gradient(lambda i: start + places[i] * way, weights)


@lru_cache(maxsize=16)
def _gauss_legendre(steps: int) -> tuple[list[float], list[float]]:
    """Return places in [0, 1] and their weights; many are those of several pieces of the way."""
    pieces = -(-steps // _AT_ONCE)
    ends = [steps * i // pieces for i in range(pieces + 1)]
    places, weights = [], []
    for first, stop in pairwise(ends):
        nodes, shares = numpy.polynomial.legendre.leggauss(stop - first)
        begin, width = first / steps, (stop - first) / steps
        places += (begin + width * (nodes + 1) / 2).tolist()
        weights += (width * shares / 2).tolist()
    return places, weights


@hookimpl
def cnnviz_techniques(register):
    register(Technique("integrated-gradients", integrated_gradients, IntegratedGradientsOptions, family="attribution"))
