"""Which boxes go through a network together, so that patches of one size waste little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .geometry import nearly_all
from .patched import Visit

_CALLED: Final = 8e6  # multiplications in the time that it takes to call a layer
_READ: Final = 20  # multiplications in the time that it takes to read a weight


@dataclass(frozen=True)
class Layers:
    """What the layers of a network do for some boxes.

    Attributes:
        products: (layers,), that make one pixel.
        costs: (layers,), of one pixel, in the time that a product takes.
        overhead: of a batch, whatever its size.
        sizes: (layers, 2), height and width of their maps.
        reached: (boxes, layers, 2), how many rows and columns of these each box reaches.
    """

    products: Tensor
    costs: Tensor
    overhead: float
    sizes: Tensor
    reached: Tensor

    @classmethod
    def of(cls, visits: list[list[Visit]], counts: list[int], weights: int) -> Layers:
        """Bring together what was noted batch by batch, of so many boxes.

        Args:
            visits: layer by layer, of each batch.
            counts: of the boxes.
            weights: how many numbers of weights a batch reads.
        """
        known = visits[0][: min(map(len, visits))]  # a network may do otherwise where patches lie elsewhere
        sizes = torch.tensor([visit.size for visit in known], dtype=torch.long, device="cpu").reshape(-1, 2)
        products, costs = (
            torch.tensor(numbers, dtype=torch.float64, device="cpu")
            for numbers in ([visit.products for visit in known], [visit.cost for visit in known])
        )
        reached = torch.empty(sum(counts), len(known), 2, dtype=torch.long, device="cpu")
        start = 0
        for batch, count in zip(visits, counts, strict=True):
            for layer in range(len(known)):
                spans = batch[layer].spans
                reached[start : start + count, layer] = (spans[:, :, 1] - spans[:, :, 0]).clamp(min=1)
            start += count
        return cls(products, costs, _CALLED * len(known) + _READ * weights, sizes, reached)

    def saving(self, box: int, whole: float) -> float:
        """Return how many times as many products a whole image takes as what one of the boxes reaches.

        Args:
            box: which of them.
            whole: products of whole maps that each takes beside.
        """
        all_of, reached = (float(self.products @ sides.double().prod(1)) for sides in (self.sizes, self.reached[box]))
        return (all_of + whole) / max(1.0, reached + whole)


def batches(numbers: Tensor, kinds: Tensor, together: int) -> list[Tensor]:
    """Return numbers in batches of one kind each, of so many at most."""
    return [part for kind in torch.unique(kinds) for part in torch.split(numbers[kinds == kind], together)]


def grouped(boxes: Tensor, left: Tensor, seen: Tensor, layers: Layers, together: int) -> list[Tensor]:
    """Return the numbers of boxes that go together, a tensor for each batch.

    A layer computes patches of one size for a batch, that of the largest. Which size a box comes to in each layer
    depends on where it lies on each axis alone, so rows of boxes that are alike are put into one class, columns too,
    and a batch holds boxes of one class of rows and one of columns: few classes, since every call of a layer costs
    time, and many, since what patches of other sizes compute in vain does too.

    Boxes of different sizes are never put together.

    Args:
        boxes: (n, 4), first and last row but one, first and last column but one.
        left: numbers of the boxes wanted.
        seen: numbers of boxes that were run, which have all rows and all columns of boxes among them.
        layers: what these did for them.
        together: so many boxes at most make a batch.
    """
    classes, lengths, places = [], [], []
    for axis in (0, 1):
        spans, of_box = torch.unique(boxes[:, 2 * axis : 2 * axis + 2], dim=0, return_inverse=True)
        longest = torch.zeros(len(spans), len(layers.costs), dtype=torch.long, device="cpu")
        for span, reached in zip(of_box[seen].tolist(), layers.reached[:, :, axis], strict=True):
            longest[span] = torch.maximum(longest[span], reached)
        length = spans[:, 1] - spans[:, 0]
        keys = torch.cat([length[:, None], longest], 1).tolist()
        order = torch.tensor(sorted(range(len(spans)), key=keys.__getitem__), device="cpu")
        classes.append(longest[order].double())
        lengths.append(length[order])
        places.append(order.argsort()[of_box[left]])
    counts = torch.zeros(len(classes[0]), len(classes[1]), dtype=torch.float64, device="cpu")
    counts.index_put_((places[0], places[1]), torch.ones(len(left), dtype=torch.float64, device="cpu"), accumulate=True)
    rows, columns = _merged(classes, lengths, counts, layers, together)
    kinds = rows[places[0]] * (int(columns.max()) + 1) + columns[places[1]]
    return batches(left, kinds, together)


def _merged(
    classes: list[Tensor], lengths: list[Tensor], counts: Tensor, layers: Layers, together: int
) -> list[Tensor]:
    """Return the class of each row and of each column, which were one each, once no two are better off as one."""

    def costs(rows: Tensor, columns: Tensor, counts: Tensor) -> Tensor:
        """Return what each class of rows takes."""
        pixels = rows[:, None] * columns
        all_of = layers.sizes.double().prod(1)
        pixels = torch.where(nearly_all(pixels, all_of), all_of, pixels)
        batches = (counts / together).ceil()
        return (counts * (pixels @ layers.costs) + batches * layers.overhead).sum(1)

    of = [torch.arange(len(kinds), device="cpu") for kinds in classes]
    while True:
        best, change = None, 0.0
        for axis in (0, 1):
            mine, theirs = classes[axis], classes[1 - axis]
            many = counts if axis == 0 else counts.T
            now = costs(mine, theirs, many)
            then = costs(torch.maximum(mine[1:], mine[:-1]), theirs, many[1:] + many[:-1])
            gains = torch.where(lengths[axis].diff() == 0, now[1:] + now[:-1] - then, 0.0)
            if len(gains) and float(gains.max()) > change:
                best, change = (axis, int(gains.argmax())), float(gains.max())
        if best is None:
            return of
        axis, at = best
        merged = torch.maximum(classes[axis][at], classes[axis][at + 1])
        classes[axis] = torch.cat([classes[axis][:at], merged[None], classes[axis][at + 2 :]])
        lengths[axis] = torch.cat([lengths[axis][:at], lengths[axis][at + 1 :]])
        moved = counts.movedim(axis, 0)
        counts = torch.cat([moved[:at], moved[at : at + 2].sum(0, keepdim=True), moved[at + 2 :]]).movedim(0, axis)
        of[axis] = of[axis] - (of[axis] > at).long()
