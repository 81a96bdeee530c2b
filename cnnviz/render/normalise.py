"""Which values a picture's darkest and brightest colour stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """The range of values that a picture shows; values beyond it take the end colours.

    Attributes:
        low: value of the first colour: -high for a signed map; for an unsigned one 0, or its smallest value where that
            is more than half of the largest, since differences would not be seen.
        high: value of the last colour.
        signed: whether 0 is the middle of a diverging colour map.
        grey: whether the picture shows each of three channels in its own colour, with 0 as grey.
    """

    low: float
    high: float
    signed: bool
    grey: bool = False

    @classmethod
    def of(cls, values: Tensor, *, signed: bool | None = None, quantile: float = 0.995) -> Scale:
        """Return the scale for a map: up to the given quantile of its magnitudes, so that a few peaks do not hide it.

        Args:
            values: any shape.
            signed: None decides by whether any value is negative.
            quantile: share of magnitudes that stay within the scale, in (0, 1].
        """
        flat = numbers(values).reshape(-1)
        signed = bool((flat < 0).any()) if signed is None else signed
        magnitudes = flat.abs()
        # kthvalue, since torch.quantile refuses more than 16 million values.
        place = max(1, math.ceil(quantile * len(magnitudes)))
        high = float(magnitudes.kthvalue(place).values) or float(magnitudes.max()) or 1.0
        least = float(flat.min())
        return cls(-high if signed else least if 2 * least > high > least else 0.0, high, signed)

    def unit(self, values: Tensor) -> Tensor:
        """Map values to [0, 1]: `low` to 0, `high` to 1, clipped."""
        return ((numbers(values) - self.low) / (self.high - self.low)).clamp(0, 1)

    def strength(self, values: Tensor) -> Tensor:
        """Map values to [0, 1] by how far they are from 0, or from where an unsigned scale begins."""
        return self.unit(values) if not self.signed else (numbers(values).abs() / self.high).clamp(0, 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return places in [0, 1] with their labels, for a colour bar."""
        if self.signed:
            return [(0.0, f"{self.low:.3g}"), (0.5, "0"), (1.0, f"{self.high:.3g}")]
        return [(0.0, f"{self.low:.3g}"), (1.0, f"{self.high:.3g}")]


def numbers(values: Tensor) -> Tensor:
    """Return values as they are drawn: in single precision, or in double where they are, which reaches farther."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))
