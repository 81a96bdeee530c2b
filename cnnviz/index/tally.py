"""What is kept of a layer's channels over any number of images: strongest units, and how often each value occurs.

Tallies of parts of a data set add up to the tally of the whole, in whatever order the parts were made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_MANTISSA: Final = 6  # bits of it that tell bins apart: a bin's middle is within 1/128 of every value in it
_LOWEST, _HIGHEST = -16, 16  # exponents; smaller values count as 0, larger ones as the largest
_SHIFT: Final = 23 - _MANTISSA
_STEPS: Final = (_HIGHEST - _LOWEST) << _MANTISSA  # bins of positive values
_BASE: Final = (127 + _LOWEST) << _MANTISSA
BINS: Final = 2 * _STEPS + 1
_SLACK: Final = 1 - 2**-50  # 0.07 · 100 is rounded to more than 7


@dataclass(frozen=True)
class Strongest:
    """The units that each channel was most active in, one of an image, strongest first; of equals the first image's.

    Attributes:
        values: (k, C).
        places: (k, C, 3), image, row and column; image -1 where there are fewer than k.
    """

    values: Tensor
    places: Tensor

    @classmethod
    def none(cls, top: int, channels: int) -> Strongest:
        """Return a tally of nothing."""
        return cls(
            torch.full((top, channels), -torch.inf, dtype=torch.float32, device="cpu"),
            torch.full((top, channels, 3), -1, device="cpu"),
        )

    @classmethod
    def of(cls, maps: Tensor, first: int) -> Strongest:
        """Return the strongest unit of each map, (N, C, h, w), of images that are numbered from `first`."""
        found = maps.flatten(2).max(2)
        image = torch.arange(first, first + len(maps), device=maps.device)[:, None].expand_as(found.indices)
        width = maps.shape[3]
        places = torch.stack([image, found.indices // width, found.indices % width], 2)
        return cls(found.values.float().cpu(), places.cpu())

    def shifted(self, by: int) -> Strongest:
        """Return the same with other numbers of the images."""
        places = self.places.clone()
        places[..., 0] += torch.where(places[..., 0] >= 0, by, 0)
        return Strongest(self.values, places)

    def best(self, top: int) -> Strongest:
        """Return the `top` strongest of each channel."""
        order = self.values.sort(dim=0, descending=True, stable=True).indices[:top]
        return Strongest(self.values.gather(0, order), self.places.gather(0, order[..., None].expand(-1, -1, 3)))

    @staticmethod
    def merged(tallies: Sequence[Strongest], top: int) -> Strongest:
        """Return the strongest of several tallies, given in the order of their images."""
        values, places = torch.cat([one.values for one in tallies]), torch.cat([one.places for one in tallies])
        return Strongest(values, places).best(top)


@dataclass(frozen=True)
class Histogram:
    """How often each channel took values in each of `BINS` bins, as wide as 1/64 of what they hold.

    Attributes:
        counts: (C, BINS), from the most negative bin to the largest; the middle one is 0.
    """

    counts: Tensor

    @classmethod
    def none(cls, channels: int) -> Histogram:
        """Return a histogram of nothing."""
        return cls(torch.zeros(channels, BINS, dtype=torch.long, device="cpu"))

    def add(self, maps: Tensor) -> None:
        """Count the values of maps, (N, C, h, w)."""
        bins = _bins(maps).transpose(0, 1).flatten(1).to(self.counts.device, torch.long)
        self.counts.scatter_add_(1, bins, torch.ones_like(bins))

    def quantile(self, q: float) -> Tensor:
        """Return the smallest value, (C,), that a share `q` of all values are no larger than.

        Within 1 % of it where its magnitude is between 2⁻¹⁶ and 2¹⁶; smaller ones are 0, larger ones 2¹⁶.
        """
        ranks = torch.tensor([_rank(count, q) for count in self.counts.sum(1).tolist()], device="cpu")
        return _middles()[(self.counts.cumsum(1) < ranks[:, None]).sum(1)]

    def packed(self) -> tuple[Tensor, Tensor]:
        """Return which bins hold anything, as places in the flattened counts, and how much."""
        flat = self.counts.flatten()
        places = flat.nonzero()[:, 0]
        counts = flat[places]
        return places.int(), counts.int() if int(counts.max()) < 2**31 else counts

    def add_packed(self, places: Tensor, counts: Tensor) -> None:
        """Add what `packed` returned."""
        self.counts.view(-1).index_add_(0, places.long(), counts.long())


def exact_quantile(values: Tensor, q: float) -> Tensor:
    """Return the smallest value, (C,), that a share `q` of the values (C, n) are no larger than."""
    return values.kthvalue(_rank(values.shape[1], q), dim=1).values


def _rank(count: int, q: float) -> int:
    """Return which of so many values, from 1 on, a share `q` of them are no larger than."""
    return max(1, math.ceil(count * q * _SLACK))


def _bins(values: Tensor) -> Tensor:
    """Return the number of the bin that holds each value."""
    bits = values.float().contiguous().view(torch.int32)
    size = (((bits & 0x7FFFFFFF) >> _SHIFT) - (_BASE - 1)).clamp_(0, _STEPS)
    return torch.where(bits < 0, _STEPS - size, _STEPS + size)


def _middles() -> Tensor:
    """Return the value that each bin stands for, (BINS,)."""
    edges = ((torch.arange(_STEPS + 1, dtype=torch.int32, device="cpu") + _BASE) << _SHIFT).view(torch.float32)
    positive = (edges[:-1] + edges[1:]) / 2
    return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])
