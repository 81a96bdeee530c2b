"""Scores of an image of which one box at a time was changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from ..errors import OptionError
from .geometry import boxed
from .grouping import Layers, grouped
from .patched import Base, Patched, Unfollowed, Visit, cropped
from .work import Operations, WholeMaps

_TOGETHER: Final = 64  # patches that go through the network at once


class Sweeps(Protocol):
    """What scores inputs: a `cnnviz.Request`.

    Attributes:
        memory: budget in bytes.
    """

    memory: int

    @property
    def ends(self) -> str | None:
        """See `cnnviz.Request.ends`."""

    def forward(self, x: Tensor) -> Any:
        """See `cnnviz.Request.forward`."""

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

    def kept(self, name: Hashable, of: Hashable, compute: Callable[[], Any]) -> Any:
        """See `cnnviz.Request.kept`."""

    def batched(self, work: Callable[[int, int], Any], count: int, *, at_most: int) -> list[Any]:
        """See `cnnviz.Request.batched`."""


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
                end. By default all are wanted.
            least: rows and columns at the rim of what a box reaches are dropped before a convolution or a pooling where
                no pixel of theirs changed by this share of what changed most of that map, in [0, 1]; 0 drops nothing.

        Raises:
            Unfollowed: the network does something that patches cannot be taken through.
            OptionError: `least` is no share.
        """
        if not 0 <= least <= 1:
            raise OptionError(f"least: got {least}, expected a share of the largest change, 0 to 1")
        if not len(self.boxes):
            return self.image.new_empty(0)
        together = min(at_most, _TOGETHER)
        kind = tuple(self.image.shape), self.image.dtype, str(self.image.device)
        of = (*kind, self.boxes.numpy().tobytes(), together, request.ends)

        def known(name: str, compute: Callable[[], Any]) -> Any:
            """All targets of the call have the same, whatever other boxes are looked at meanwhile."""
            key = ("incremental", name)
            return request.once((*key, sample, of), lambda: request.kept(key, of, compute))

        survey = known("survey", lambda: self._survey(request, together))
        if isinstance(survey, str):
            raise Unfollowed(survey)
        if survey.saving < worth:
            return None
        # Half of the memory may be kept weights, since a batch takes the other half.
        run = _Run(self, request, sample, share, least, frugal=survey.kept > request.memory // 2)
        every = torch.arange(len(self.boxes), device="cpu")
        with _refused_by(run.base):
            if wanted is None:
                run(known("batches", lambda: survey.grouped(self, every, together)), shared=True)
                return run.scores()
            while len(more := run.missing(wanted(run.scores()))):
                run(survey.grouped(self, more, together), shared=False)  # another target may want others
        return run.scores()

    @cached_property
    def placed(self) -> Tensor:
        """The boxes, (n, 4), with those that are empty put where the first that is not lies."""
        some = self.boxes[~self._empty][:1]
        return torch.where(self._empty[:, None], some if len(some) else self.boxes.new_tensor([0, 1, 0, 1]), self.boxes)

    @cached_property
    def _empty(self) -> Tensor:
        return (self.boxes[:, 1::2] <= self.boxes[:, ::2]).any(1)

    def patched(self, numbers: Tensor, base: Base) -> Tensor:
        """Return the image with each of these boxes changed, which are all of one size where they are placed."""
        base.begin()
        boxes = self.placed[numbers]
        height, width = (boxes[0, 1::2] - boxes[0, ::2]).tolist()
        corners, changed = boxes[:, ::2].contiguous(), (~self._empty[numbers]).nonzero()[:, 0]
        if len(changed) == len(numbers):
            patch = self.patches(numbers, (height, width))
        else:  # an empty one shows the image itself, and is run as the others are
            patch = cropped(self.image, corners, (height, width))
            if len(changed):
                patch[changed.to(patch.device)] = self.patches(numbers[changed], (height, width))
        return Patched(self.image, patch, corners, base)

    def _survey(self, request: Sweeps, together: int) -> _Survey | str:
        """Return what layers do for boxes, or why patches cannot be taken through them.

        Shapes alone tell that, unless the network looks at values.

        Args:
            request: runs the network.
            together: so many patches at once, where they have values.
        """
        with suppress(Exception):  # whatever it is, it may be otherwise with values
            made = surveyed(request.forward, self, "meta", lambda work, count: [work(0, count)])
            if not isinstance(made, str):
                return made
        return surveyed(request.forward, self, self.image.device, partial(request.batched, at_most=together))

    def of_all_spans(self) -> list[int]:
        """Return numbers of boxes that have all spans of rows and of columns among them."""
        chosen, rows, columns = [], set(), set()
        every = [(tuple(box[:2]), tuple(box[2:])) for box in self.placed.tolist()]
        for enough in (1, 0):  # both new, then one
            for number, (row, column) in enumerate(every):
                if (row not in rows) + (column not in columns) > enough:
                    chosen.append(number)
                    rows.add(row)
                    columns.add(column)
        return chosen


@dataclass(frozen=True)
class _Survey:
    """What layers do for some boxes.

    Attributes:
        layers: what they do.
        seen: numbers of the boxes.
        saving: how many times as many products a whole image takes as the one in the middle of them.
        kept: bytes of what is made of weights and kept, at most.
    """

    layers: Layers
    seen: Tensor
    saving: float
    kept: int

    def grouped(self, changes: Changes, numbers: Tensor, together: int) -> list[Tensor]:
        """Return boxes in batches, of so many at most, that suit the sizes which those come to."""
        return grouped(changes.placed, numbers, self.seen, self.layers, together)


def surveyed(
    forward: Callable[[Tensor], Any],
    changes: Changes,
    device: torch.device | str,
    batched: Callable[[Callable[[int, int], Any], int], list[Any]],
) -> _Survey | str:
    """Return what layers do for boxes that have all spans among them, by patches that change nothing.

    Args:
        forward: the network, on that device.
        changes: the image and its boxes.
        device: where to run; "meta" for shapes alone.
        batched: returns what a function makes of ranges that cover so many.

    Returns:
        It, or why patches cannot be taken through.
    """
    image = changes.image.to(device)
    base, counted = Base(like=changes.image), Operations()
    seen = torch.tensor(changes.of_all_spans(), dtype=torch.long, device="cpu")
    base.watch = counted

    def passed(start: int, stop: int) -> tuple[int, list[Visit]]:
        spans = changes.placed[seen[start:stop]].reshape(-1, 2, 2)
        corners, size = boxed(spans, (image.shape[2], image.shape[3]))
        base.begin()
        visits: list[Visit] = []
        base.visits = visits
        forward(Patched(image, cropped(image, corners, size), corners, base, spans=spans))
        return stop - start, visits

    try:
        with torch.no_grad(), WholeMaps(counted), _refused_by(base):
            made = batched(passed, len(seen))
    except Unfollowed as why:
        return str(why)
    counts, visits = [count for count, _ in made], [noted for _, noted in made]
    weights = counted.weights // len(made) + sum(visit.products for visit in visits[0])
    layers = Layers.of(visits, counts, weights)
    kept = sum(visit.kept for visit in visits[0])
    return _Survey(layers, seen, layers.saving(len(seen) // 2, counted.count / len(seen)), kept)


class _Run:
    """Runs boxes of an image batch by batch, and remembers the scores.

    Attributes:
        base: what the network makes of the image.
    """

    def __init__(
        self,
        changes: Changes,
        request: Sweeps,
        sample: int,
        share: tuple[float, float],
        least: float,
        *,
        frugal: bool,
    ) -> None:
        self.base = Base(request.once(("incremental", "weights"), Base), like=changes.image, frugal=frugal)
        self.base.least = least
        self._changes, self._request, self._sample, self._share = changes, request, sample, share
        self._order: list[Tensor] = []
        self._scores: list[Tensor] = []

    def __call__(self, batches: list[Tensor], *, shared: bool) -> None:
        """Run batches of boxes, by their numbers.

        Args:
            batches: of one size each, where they are placed.
            shared: whether every target of the call has the same boxes run.
        """
        order = torch.cat(batches)
        done = [sum(map(len, self._order)) + n for n in (0, len(order))]
        first, last = self._share
        share = [first + (last - first) * n / len(self._changes.boxes) for n in done]
        self._scores.append(
            self._request.sweep(
                lambda start, stop: self._changes.patched(order[start:stop], self.base),
                len(order),
                [self._sample] * len(order),
                shared=shared,
                share=(share[0], share[1]),
                sizes=[len(batch) for batch in batches],
            )
        )
        self._order.append(order)

    def missing(self, numbers: Tensor) -> Tensor:
        """Return those of the boxes of these numbers that were not run, in order."""
        left = torch.zeros(len(self._changes.boxes), dtype=torch.bool, device="cpu").index_fill_(0, numbers, True)
        for order in self._order:
            left.index_fill_(0, order, False)
        return left.nonzero()[:, 0]

    def scores(self) -> Tensor:
        """Return the scores, in the boxes' order, NaN where they were not run."""
        like = self._scores[0] if self._scores else self._changes.image
        every = like.new_full((len(self._changes.boxes),), torch.nan)
        for order, scores in zip(self._order, self._scores, strict=True):
            every.index_copy_(0, order.to(scores.device), scores)
        return every


@contextmanager
def _refused_by(base: Base) -> Iterator[None]:
    """Let an error that a refusal was turned into, as by an interpreter in between, be the refusal again."""
    try:
        yield
    except Exception as error:
        if base.refused:
            raise Unfollowed(base.refused) from error
        raise
