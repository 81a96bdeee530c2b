"""Scores of an image of which one box at a time was changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from ..errors import OptionError
from ..ops._layout import memory_format
from .grouping import Layers, batches, grouped
from .patched import Base, Patched, Unfollowed, Visit
from .work import Operations, WholeMaps

_TOGETHER: Final = 64  # patches that go through the network at once


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

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """See `cnnviz.Request.once`."""


Wanted = Callable[[Tensor], Tensor]
"""From all scores, NaN where a box was not run, to the numbers of boxes."""

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
        worth: float = 0.0,
        wanted: Wanted | None = None,
        least: float = 0.0,
    ) -> Tensor | None:
        """Return the score of the image with each box changed, (n,), running only what a change reaches.

        Args:
            request: runs the network, and knows what is explained.
            sample: the number of the sample that the image is.
            at_most: so many patches at once, as whole maps may have to be made of them.
            share: from where to where progress goes meanwhile, in [0, 1].
            worth: return None where whole images would take less than so many times as many multiplications.
            wanted: from all scores, NaN where a box was not run yet, to the numbers of those to run next; none is the
                end. A few that show what layers do for the others are run whatever it says. By default all are wanted.
            least: rows and columns at the rim of what a box reaches are dropped before a convolution or a pooling where
                no pixel of theirs changed by this share of what changed most of that map, in [0, 1]; 0 drops nothing.
                The few that show what layers do are run as they are.

        Raises:
            Unfollowed: the network does something that patches cannot be taken through.
            OptionError: `least` is no share.
        """
        if not 0 <= least <= 1:
            raise OptionError(f"least: got {least}, expected a share of the largest change, 0 to 1")
        run = _Run(self, request, sample, share)
        together = min(at_most, _TOGETHER)
        known = self._of_all_spans()
        middle = len(known) // 2
        with _refused_by(run.base):
            whole = run.counting(self._batches(known[middle : middle + 1], together))
            if request.once(("incremental", "saving", sample), lambda: run.saving(whole.count)) < worth:
                return None
            run(self._batches(known[:middle] + known[middle + 1 :], together))
            run.surveying = False
            run.base.least = least  # from now on: how far boxes reach depends on where they lie alone before
            survey = request.once(("incremental", "survey", sample), lambda: run.survey(whole.weights))
            if wanted is None:
                rest = run.missing(torch.arange(len(self.boxes), device="cpu"))
                run(request.once(("incremental", "batches", sample), lambda: survey.grouped(self, rest, together)))
                return run.scores()
            run.shared = False  # another target may want others
            while len(more := run.missing(wanted(run.scores()))):
                run(survey.grouped(self, more, together))
        return run.scores()

    def _of_all_spans(self) -> list[int]:
        """Return numbers of boxes that have all spans of rows and of columns among them."""
        chosen, rows, columns = [], set(), set()
        every = [(tuple(box[:2]), tuple(box[2:])) for box in self.boxes.tolist()]
        for enough in (1, 0):  # both new, then one
            for number, (row, column) in enumerate(every):
                if (row not in rows) + (column not in columns) > enough:
                    chosen.append(number)
                    rows.add(row)
                    columns.add(column)
        return chosen

    def patched(self, numbers: Tensor, base: Base) -> Tensor:
        """Return the image with each of these boxes changed, which are all of one size."""
        boxes = self.boxes[numbers]
        base.begin()
        height, width = (boxes[0, 1::2] - boxes[0, ::2]).tolist()
        if height * width == 0:  # one pixel of the image itself, so that it is run as the others are
            patch = self.image[:, :, :1, :1].repeat(len(numbers), 1, 1, 1)
            return Patched(self.image, patch, torch.zeros(len(numbers), 2, dtype=torch.long, device="cpu"), base)
        return Patched(self.image, self.patches(numbers, (height, width)), boxes[:, ::2].contiguous(), base)

    def _batches(self, numbers: list[int], together: int) -> list[Tensor]:
        """Return boxes in batches of one size each."""
        chosen = torch.tensor(numbers, dtype=torch.long, device="cpu")
        sizes = self.boxes[chosen, 1::2] - self.boxes[chosen, ::2]
        return batches(chosen, torch.unique(sizes, dim=0, return_inverse=True)[1], together)


@dataclass(frozen=True)
class _Survey:
    """What layers did for some boxes."""

    layers: Layers
    seen: Tensor

    def grouped(self, changes: Changes, numbers: Tensor, together: int) -> list[Tensor]:
        """Return other boxes in batches, of so many at most, that suit the sizes which those came to."""
        return grouped(changes.boxes, numbers, self.seen, self.layers, together)


class _Run:
    """Runs boxes of an image batch by batch, and remembers the scores.

    Attributes:
        base: what the network makes of the image.
        surveying: whether what layers do for the boxes is noted.
        shared: whether every target of the call has the same boxes run.
    """

    def __init__(self, changes: Changes, request: Sweeps, sample: int, share: tuple[float, float]) -> None:
        self.base = Base(request.once(("incremental", "weights"), Base))
        self.base.channels_last = memory_format(changes.image) == torch.channels_last
        self._changes, self._request, self._sample, self._share = changes, request, sample, share
        self._order: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._seen: list[Tensor] = []
        self._visits: list[list[Visit]] = []
        self.surveying = True
        self.shared = True

    def __call__(self, batches: list[Tensor]) -> None:
        """Run batches of boxes, by their numbers."""
        if not batches:
            return
        order = torch.cat(batches)

        def make(start: int, stop: int) -> Tensor:
            numbers, self.base.visits = order[start:stop], []
            if self.surveying:
                self._seen.append(numbers)
                self._visits.append(self.base.visits)
            return self._changes.patched(numbers, self.base)

        done = [sum(map(len, self._order)) + n for n in (0, len(order))]
        first, last = self._share
        share = [first + (last - first) * n / len(self._changes.boxes) for n in done]
        self._scores.append(
            self._request.sweep(
                make,
                len(order),
                [self._sample] * len(order),
                shared=self.shared,
                share=(share[0], share[1]),
                sizes=[len(batch) for batch in batches],
            )
        )
        self._order.append(order)

    def counting(self, batches: list[Tensor]) -> Operations:
        """Run batches of boxes, and return what was multiplied of whole maps."""
        self.base.watch = counted = Operations()
        with WholeMaps(counted):
            self(batches)
        self.base.watch = nullcontext()
        return counted

    def saving(self, whole: int) -> float:
        """Return how many times as many products whole images take as the boxes that were run.

        Args:
            whole: products of whole maps that these boxes took.
        """
        done, all_of = float(whole), float(whole)
        for visit in chain.from_iterable(self._visits):
            sides = (visit.spans[:, :, 1] - visit.spans[:, :, 0]).clamp(min=0)
            done += visit.products * int(sides.prod(1).sum())
            all_of += visit.products * len(sides) * math.prod(visit.size)
        return all_of / max(1.0, done)

    def survey(self, weights: int) -> _Survey:
        """Return what layers did for the boxes that were run.

        Args:
            weights: how many numbers of weights each batch reads beside those of layers that patches go through.
        """
        weights += sum(visit.products for visit in self._visits[0])
        layers = Layers.of(self._visits, [len(numbers) for numbers in self._seen], weights)
        return _Survey(layers, torch.cat(self._seen))

    def missing(self, numbers: Tensor) -> Tensor:
        """Return those of the boxes of these numbers that were not run, in order."""
        left = torch.zeros(len(self._changes.boxes), dtype=torch.bool, device="cpu").index_fill_(0, numbers, True)
        return left.index_fill_(0, torch.cat(self._order), False).nonzero()[:, 0]

    def scores(self) -> Tensor:
        """Return the scores, in the boxes' order, NaN where they were not run."""
        scores = torch.cat(self._scores)
        every = scores.new_full((len(self._changes.boxes),), torch.nan)
        return every.index_copy_(0, torch.cat(self._order).to(scores.device), scores)


@contextmanager
def _refused_by(base: Base) -> Iterator[None]:
    """Let an error that a refusal was turned into, as by an interpreter in between, be the refusal again."""
    try:
        yield
    except Exception as error:
        if base.refused:
            raise Unfollowed(base.refused) from error
        raise
