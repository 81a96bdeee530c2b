"""Which units of a layer a patch of its input reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from ..ops._native import host

Pair: TypeAlias = tuple[int, int]

_ALL: Final = 0.93


@dataclass(frozen=True)
class Reach:
    """The outputs of a window operation that see a part of some spans.

    Attributes:
        spans: of each, (K, 2, 2).
        places: where boxes of one size begin that hold them, (K, 2).
        size: (height, width) of the boxes.
        corners: where what the boxes see of the input begins, (K, 2).
    """

    spans: Tensor
    places: Tensor
    size: Pair
    corners: Tensor


@dataclass(frozen=True)
class Window:
    """A window operation: (height, width) of kernel, stride, padding and dilation."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)

    def output(self, size: Pair) -> Pair:
        """Return the size of what it makes of a map of such a size."""
        axes = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return height, width

    def reached(self, spans: Tensor, output: Pair) -> Tensor:
        """Return which outputs see a part of these spans of the input, (K, 2, 2), of a result of this size."""
        kernel, stride, padding, dilation = (
            torch.tensor(value, device="cpu") for value in (self.kernel, self.stride, self.padding, self.dilation)
        )
        first, stop = (spans + padding[:, None]).unbind(2)
        begin = -((-(first - (kernel - 1) * dilation)) // stride)  # rounded up
        end = (stop - 1) // stride + 1
        ends = torch.tensor(output, device="cpu")
        return torch.stack([torch.minimum(begin.clamp(min=0), ends), torch.minimum(end.clamp(min=0), ends)], 2)

    def seen(self, size: Pair) -> Pair:
        """Return how much of the input so many outputs see."""
        axes = zip(size, self.kernel, self.stride, self.dilation, strict=True)
        height, width = ((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in axes)
        return height, width

    def reach(self, spans: Tensor, output: Pair) -> Reach:
        """Return what becomes of these spans of the input, (K, 2, 2), in a result of this size."""
        native = host()
        if native is None:
            reached = self.reached(spans, output)
            places, size = boxed(reached, output)
            return Reach(
                reached,
                places,
                size,
                places * torch.tensor(self.stride, device="cpu") - torch.tensor(self.padding, device="cpu"),
            )
        spans, count = spans.contiguous(), len(spans)
        made = torch.empty(8 * count, dtype=torch.long, device="cpu")
        numbers = [*self.kernel, *self.stride, *self.padding, *self.dilation, *output]
        size = native.reached(spans.data_ptr(), count, numbers, _ALL, made.data_ptr())
        places, corners = made[4 * count :].view(2, count, 2)
        return Reach(made[: 4 * count].view(count, 2, 2), places, tuple(size), corners)


def spans_of(places: Tensor, size: Pair) -> Tensor:
    """Return the spans of boxes of one size: (K, 2) to (K, 2, 2), with first row or column and last but one each."""
    return torch.stack([places, places + torch.tensor(size, device="cpu")], 2)


def boxed(spans: Tensor, whole: Pair) -> tuple[Tensor, Pair]:
    """Return boxes of one size within the whole that hold the spans: where they begin, (K, 2), and the size.

    Where that is nearly all, it is the whole, which needs no context around it.
    """
    height, width = (spans[:, :, 1] - spans[:, :, 0]).amax(0).clamp(min=1).tolist()
    if nearly_all(height * width, whole[0] * whole[1]):
        return torch.zeros_like(spans[:, :, 0]), whole
    return torch.minimum(
        spans[:, :, 0], torch.tensor(whole, device="cpu") - torch.tensor((height, width), device="cpu")
    ), (height, width)


def nearly_all(pixels: Any, whole: Any) -> Any:
    """Whether so many pixels of a map are as good as the whole of it; of numbers or of tensors."""
    return pixels >= _ALL * whole


def united(spans: list[Tensor], whole: Pair) -> tuple[Tensor, Tensor, Pair]:
    """Return the smallest spans that hold those of each, and boxes that hold these; empty ones count for nothing.

    Args:
        spans: (K, 2, 2) each.
        whole: (height, width) of what they are of.

    Returns:
        The spans; where the boxes begin, (K, 2), and their size.
    """
    native, count = host(), len(spans[0])
    if native is not None:
        held = [one.contiguous() for one in spans]
        made = torch.empty(6 * count, dtype=torch.long, device="cpu")
        size = native.united([one.data_ptr() for one in held], count, whole, _ALL, made.data_ptr())
        return made[: 4 * count].view(count, 2, 2), made[4 * count :].view(count, 2), tuple(size)
    first, stop = torch.stack(spans).unbind(-1)  # (n, K, 2)
    empty = (stop <= first).any(2, keepdim=True)
    none = empty.all(0)
    found = [
        first.masked_fill(empty, torch.iinfo(first.dtype).max).amin(0),
        stop.masked_fill(empty, torch.iinfo(stop.dtype).min).amax(0),
    ]
    joined = torch.where(none[..., None], spans[0], torch.stack(found, -1))
    return joined, *boxed(joined, whole)
