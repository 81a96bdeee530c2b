"""Which units of a layer a patch of its input reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A window operation: (height, width) of kernel, stride, padding and dilation."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)

    def reached(self, places: Tensor, size: Pair, output: Pair) -> tuple[Tensor, Pair]:
        """Return where the outputs begin that patches reach, (K, 2), and how many there are, for all the same.

        Args:
            places: (K, 2), where the patches begin.
            size: theirs.
            output: size of the operation's whole result.
        """
        starts, sizes = [], []
        for axis in (0, 1):
            k, s, p, d = (value[axis] for value in (self.kernel, self.stride, self.padding, self.dilation))
            first = places[:, axis] + p
            low = (-((-(first - (k - 1) * d)) // s)).clamp(min=0)  # rounded up
            high = ((first + size[axis] - 1) // s + 1).clamp(max=output[axis])
            # One size for all; a patch that no output sees, or that lies at the border, gets more than it needs.
            count = min(max(1, int((high - low).max())), output[axis])
            starts.append(low.clamp(max=output[axis] - count))
            sizes.append(count)
        return torch.stack(starts, 1), (sizes[0], sizes[1])

    def seen(self, places: Tensor, size: Pair) -> tuple[Tensor, Pair]:
        """Return which part of the input outputs at these places see: where it begins, (K, 2), and its size."""
        begin = places * torch.tensor(self.stride) - torch.tensor(self.padding)
        axes = zip(size, self.kernel, self.stride, self.dilation, strict=True)
        height, width = ((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in axes)
        return begin, (height, width)


def pair(value: Any) -> Pair:
    """Return (height, width) of what torch takes as one number or two."""
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def united(places: list[Tensor], sizes: list[Pair], whole: Pair) -> tuple[Tensor, Pair]:
    """Return the smallest boxes, all of one size, that hold boxes at these places: where they begin, and their size."""
    begin = torch.stack(places).amin(0)
    ends = torch.stack([place + torch.tensor(size) for place, size in zip(places, sizes, strict=True)]).amax(0)
    height, width = (ends - begin).amax(0).tolist()
    return torch.minimum(begin, torch.tensor(whole) - torch.tensor((height, width))), (height, width)
