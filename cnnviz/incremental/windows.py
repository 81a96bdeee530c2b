"""Scores of an image of which one box at a time was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from .patched import Base, Patched, Unfollowed
from .work import Operations

_TOGETHER: Final = 32  # patches that go through the network at once
_COUNTED: Final = 4  # that operations are counted on
_PERIOD: Final = 32  # pixels after which a network of total stride 32 sees a patch in the same way


class Sweeps(Protocol):
    """What scores inputs: a `cnnviz.Request`."""

    def sweep(
        self,
        make: Callable[[int, int], Tensor],
        count: int,
        rows: list[int],
        *,
        shared: bool,
        share: tuple[float, float],
        sizes: list[int] | None,
    ) -> Tensor:
        """See `cnnviz.Request.sweep`."""


Patches = Callable[[Tensor, tuple[int, int]], Tensor]
"""From the numbers of boxes of one size (height, width) to what is put into them, (k, C, height, width)."""


@dataclass(frozen=True)
class Changes:
    """An image and the boxes of it that are changed, one at a time.

    Attributes:
        image: (1, C, H, W).
        boxes: (n, 4), first and last row but one, first and last column but one; empty ones change nothing.
        patches: what is put into them.
    """

    image: Tensor
    boxes: Tensor
    patches: Patches

    def scores(
        self,
        request: Sweeps,
        sample: int,
        *,
        at_most: int = _TOGETHER,
        share: tuple[float, float] = (0.0, 1.0),
    ) -> Tensor:
        """Return the score of the image with each box changed, (n,), running only what a change reaches.

        Args:
            request: runs the network, and knows what is explained.
            sample: the number of the sample that the image is.
            at_most: so many patches at once, as whole maps may have to be made of them.
            share: from where to where progress goes meanwhile, in [0, 1].

        Raises:
            Unfollowed: the network does something that patches cannot be taken through.
        """
        order, sizes = self._batches(min(at_most, _TOGETHER))
        base = Base()

        def make(start: int, stop: int) -> Tensor:
            return self._patched(order[start:stop], base)

        with _refused_by(base):
            scores = request.sweep(make, len(order), [sample] * len(order), shared=True, share=share, sizes=sizes)
        return torch.empty_like(scores).index_copy_(0, order.to(scores.device), scores)

    def saving(self, request: Sweeps, sample: int) -> float:
        """Return how many times as much it takes to run whole images, by the multiplications of one batch.

        Raises:
            Unfollowed: as above.
        """
        order, sizes = self._batches(_COUNTED)
        middle = len(sizes) // 2
        start = sum(sizes[:middle])
        numbers, base = order[start : start + sizes[middle]], Base()

        def run(make: Callable[[int, int], Tensor], count: int) -> int:
            with Operations() as done:
                request.sweep(make, count, [sample] * count, shared=False, share=(0.0, 0.0), sizes=[count])
            return int(done.count)

        whole = run(lambda *_: self.image.clone(), 1)
        with _refused_by(base):
            run(lambda *_: self._patched(numbers[:1], base), 1)  # what is made of the image itself
            return whole * len(numbers) / max(1, run(lambda *_: self._patched(numbers, base), len(numbers)))

    def _patched(self, numbers: Tensor, base: Base) -> Tensor:
        boxes = self.boxes[numbers]
        height, width = (boxes[0, 1::2] - boxes[0, ::2]).tolist()
        if height * width == 0:
            return self.image.repeat(len(numbers), 1, 1, 1)
        base.begin()
        return Patched(self.image, self.patches(numbers, (height, width)), boxes[:, ::2].contiguous(), base)

    def _batches(self, together: int) -> tuple[Tensor, list[int]]:
        """Return the boxes' numbers in the order in which they are run, and how many each time.

        Boxes of one size, in one row and at like places of the network's steps go together: patches of a batch are of
        one size in every layer, that of the largest.
        """
        top, bottom, left, right = self.boxes.unbind(1)
        keys = torch.stack([bottom - top, right - left, top, left % _PERIOD, left], 1).tolist()
        order = sorted(range(len(keys)), key=lambda number: keys[number])
        sizes: list[int] = []
        last = None
        for number in order:
            if keys[number][:3] != last or sizes[-1] == together:
                sizes.append(0)
            sizes[-1] += 1
            last = keys[number][:3]
        return torch.tensor(order), sizes


@contextmanager
def _refused_by(base: Base) -> Iterator[None]:
    """Let an error that a refusal was turned into, as by an interpreter in between, be the refusal again."""
    try:
        yield
    except Exception as error:
        if base.refused:
            raise Unfollowed(base.refused) from error
        raise
