"""Boxes are put together so that patches of one size waste little, and none is lost or run twice."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import cnnviz
from cnnviz import OptionError
from cnnviz.incremental import Base, Changes, Operations
from cnnviz.incremental.geometry import boxed, spans_of
from cnnviz.incremental.grouping import Layers, grouped
from cnnviz.incremental.patched import Visit
from cnnviz.models import replicate


def layers(reached: list[list[int]], side: int, cost: int = 10**6) -> Layers:
    """One layer of a square map, of which each box reaches so many rows and columns."""
    lengths = torch.tensor(reached)
    visit = Visit(torch.stack([torch.zeros_like(lengths), lengths], 2), (side, side), cost, cost, kept=0)
    return Layers.of([[visit]], [len(reached)], 0)


def grid(rows: int, columns: int) -> Tensor:
    return torch.tensor([(4 * r, 4 * r + 4, 4 * c, 4 * c + 4) for r in range(rows) for c in range(columns)])


def test_boxes_of_other_sizes_stay_apart_where_that_saves_more_than_a_call() -> None:
    """The first row and column of boxes reach 2 of 100 rows or columns, the others 50."""
    boxes, seen = grid(6, 6), torch.arange(0, 36, 7)
    known = layers([[2, 2], *[[50, 50]] * 5], 100)
    made = [sorted(batch.tolist()) for batch in grouped(boxes, torch.arange(36), seen, known, 32)]
    assert sorted(map(len, made)) == [1, 5, 5, 25]
    assert [0] in made
    cheap = layers([[2, 2], *[[50, 50]] * 5], 100, cost=1)
    assert len(grouped(boxes, torch.arange(36), seen, cheap, 32)) == 2  # all alike, as many as go together


@given(st.data())
def test_none_is_lost_and_sizes_are_not_mixed(data: st.DataObject) -> None:
    spans = st.tuples(st.integers(0, 9), st.integers(1, 3)).map(lambda span: (span[0], sum(span)))
    rows = data.draw(st.lists(spans, min_size=1, max_size=6, unique=True))
    columns = data.draw(st.lists(spans, min_size=1, max_size=6, unique=True))
    boxes = torch.tensor([(*row, *column) for row in rows for column in columns])
    reached = [[data.draw(st.integers(1, 12)) for _ in range(2)] for _ in boxes]
    together = data.draw(st.integers(1, 8))
    left = torch.arange(len(boxes))[data.draw(st.integers(0, len(boxes))) :]
    made = grouped(boxes, left, torch.arange(len(boxes)), layers(reached, 12), together)
    assert sorted(number for batch in made for number in batch.tolist()) == left.tolist()
    for batch in made:
        assert 1 <= len(batch) <= together
        assert len((boxes[batch, 1::2] - boxes[batch, ::2]).unique(dim=0)) == 1


class Recorded:
    """Runs what it is given, and remembers how many at a time."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.sizes, self.ends, self.memory = net, [], None, 1 << 30

    def sweep(self, make, count, rows, *, shared, share, sizes):
        assert sum(sizes) == count == len(rows)
        self.sizes += sizes
        scores, start = [], 0
        with torch.no_grad():
            for size in sizes:
                scores.append(self.net(make(start, start + size)).sum(1))
                start += size
        return torch.cat(scores)

    def once(self, key, compute):
        return compute()

    def kept(self, name, of, compute):
        return compute()

    def forward(self, x):
        return (replicate(self.net, device="meta") if x.is_meta else self.net)(x)

    def batched(self, work, count, *, at_most):
        assert count <= at_most
        return [work(0, count)]


def test_no_boxes_have_no_scores() -> None:
    image, run = torch.zeros(1, 2, 8, 8, dtype=torch.float64), Recorded(nn.Conv2d(2, 3, 3))
    made = Changes(image, torch.zeros(0, 4, dtype=torch.long), lambda numbers, size: image).scores(run, 0)
    assert made is not None
    assert made.shape == (0,)
    assert made.dtype == torch.float64
    assert not run.sizes


def test_every_box_is_run_once_and_gets_its_own_score() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 3, 1, 1), nn.Flatten())
    net = net.double().eval()
    image = torch.randn(1, 2, 40, 40, dtype=torch.float64)
    boxes = torch.tensor(
        [(t, min(t + 7, 40), left, min(left + 5, 40)) for t in range(0, 40, 6) for left in range(0, 40, 9)]
        + [(3, 3, 0, 40), (0, 1, 0, 1)]
    )
    run = Recorded(net)
    made = Changes(image, boxes, lambda numbers, size: torch.full((len(numbers), 2, *size), 9.0).double()).scores(
        run, 0
    )
    expected = []
    for top, bottom, left, right in boxes.tolist():
        changed = image.clone()
        changed[:, :, top:bottom, left:right] = 9
        expected.append(net(changed).sum())
    torch.testing.assert_close(made, torch.stack(expected), rtol=0, atol=1e-9)
    assert sum(run.sizes) == len(boxes)


@pytest.mark.parametrize("memory", ["plenty", "little"])
def test_what_is_made_of_weights_takes_half_of_the_memory_at_most(memory: str) -> None:
    """Three convolutions of 147 kB each, and batch norms that could be a part of them."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64)) for _ in range(3)]
    net = nn.Sequential(nn.Conv2d(2, 64, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    image = torch.randn(1, 2, 32, 32)
    boxes = torch.tensor([(t, t + 4, left, left + 4) for t in range(0, 32, 4) for left in range(0, 32, 4)])
    run, kept = Recorded(net), []
    run.memory = 1 << 21 if memory == "plenty" else 1 << 19
    run.once = lambda key, compute: kept.append(compute()) or kept[-1]
    made = Changes(image, boxes, lambda numbers, size: torch.full((len(numbers), 2, *size), 2.0)).scores(run, 0)
    expected = []
    for top, bottom, left, right in boxes.tolist():
        changed = image.clone()
        changed[:, :, top:bottom, left:right] = 2
        expected.append(net(changed).sum().detach())
    assert made is not None
    torch.testing.assert_close(made, torch.stack(expected), rtol=1e-4, atol=1e-4)
    weights = next(one for one in kept if isinstance(one, Base))
    taken = sum(tensor.nbytes for tensor in tree_leaves(list(weights._known.values())) if isinstance(tensor, Tensor))
    assert taken <= run.memory // 2
    assert (taken > 3 * 64 * 64 * 9 * 4) == (memory == "plenty")


def test_boxes_that_change_nothing_are_run_with_the_others() -> None:
    """And nothing is asked for to put into them."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    image = torch.randn(1, 2, 20, 20, generator=torch.Generator().manual_seed(0)).double()
    boxes = torch.tensor([(0, 0, 3, 9), (4, 8, 4, 8), (20, 20, 20, 20), (8, 12, 0, 4)])
    asked: list[int] = []

    def nines(numbers: Tensor, size: tuple[int, int]) -> Tensor:
        asked.extend(numbers.tolist())
        return torch.full((len(numbers), 2, *size), 9.0).double()

    run = Recorded(net)
    made = Changes(image, boxes, nines).scores(run, 0)
    assert sorted(asked) == [1, 3]
    assert sum(run.sizes) == 4
    assert float(made[0]) == float(made[2]) == pytest.approx(float(net(image).sum().detach()), rel=1e-12)
    assert float(made[1]) != float(made[0])
    run = Recorded(net)
    nothing = Changes(image, boxes[[0, 2]], nines).scores(run, 0)
    torch.testing.assert_close(nothing, made[[0, 2]], rtol=1e-12, atol=0)
    assert sorted(asked) == [1, 3]


def test_boxes_of_two_kinds_of_one_image() -> None:
    """A technique may look at an image with large boxes and with small ones, for several targets."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2), nn.Flatten()).double().eval()
    x = torch.randn(2, 2, 18, 18, generator=torch.Generator().manual_seed(0)).double()
    large, small = (torch.tensor([(0, side, c, c + side) for c in range(0, 16, side)]) for side in (8, 2))

    def drops(request: cnnviz.Request, options: object) -> Tensor:
        def zeros(numbers: Tensor, size: tuple[int, int]) -> Tensor:
            return request.inputs.new_zeros(len(numbers), 2, *size)

        found = [
            torch.cat([Changes(image[None], boxes, zeros).scores(request, i) for boxes in (large, small, large)])
            for i, image in enumerate(request.inputs)
        ]
        return torch.stack(found)[:, None, None]

    targets = [3, 70]
    made = cnnviz.explain(net, x, cnnviz.Technique("drops", drops), target=[targets, targets]).values
    boxes = torch.cat([large, small, large]).tolist()
    for row, values in enumerate(made[:, 0, 0]):
        for (top, bottom, left, right), value in zip(boxes, values, strict=True):
            covered = x[row // 2].clone()
            covered[:, top:bottom, left:right] = 0
            score = net(covered[None])[0, targets[row % 2]].detach()
            torch.testing.assert_close(value, score, rtol=0, atol=1e-9)


class Choosing(nn.Module):
    """Looks at values to choose what to do, so that shapes alone tell nothing; and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.then = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        maps = self.first(x).relu()
        if float(maps.detach().mean()) > 0:
            maps = self.then(maps).relu()
        return maps.mean((2, 3))


def test_where_values_decide_they_are_looked_at() -> None:
    net = Choosing().double()
    image = torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(0)).double()
    run, boxes = Recorded(net), torch.cat([grid(6, 6), torch.zeros(1, 4).long()])
    changes = Changes(image, boxes, lambda numbers, size: torch.zeros(len(numbers), 2, *size).double())
    made = changes.scores(run, 0)
    assert net.passes == len(run.sizes) + 1
    covered = image.repeat(len(boxes), 1, 1, 1)
    for number, (top, bottom, left, right) in enumerate(boxes.tolist()):
        covered[number, :, top:bottom, left:right] = 0
    torch.testing.assert_close(made, net(covered).sum(1), rtol=0, atol=1e-9)


def test_what_saves_too_little_is_not_run() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 1), nn.Flatten()).double()
    run = Recorded(net)
    changes = Changes(
        torch.zeros(1, 2, 9, 9).double(), grid(2, 2), lambda n, size: torch.ones(len(n), 2, *size).double()
    )
    assert changes.scores(run, 0, worth=1.2) is None
    assert run.sizes == []


def test_little_changes_at_the_rim_are_dropped_where_that_is_asked_for() -> None:
    """Less is multiplied, and scores come out nearly as they were; exactly so where a box changes nothing."""
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(2, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    near = torch.tensor([0.1, 1.0, 0.1])
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight *= near[:, None] * near
    corners = [(row, column) for row in range(0, 40, 4) for column in range(0, 40, 4)]
    boxes = torch.tensor([(row, row + 4, column, column + 4) for row, column in corners] + [(0, 0, 0, 0)])
    image = torch.randn(1, 2, 40, 40).double()
    changes = Changes(image, boxes, lambda n, size: torch.full((len(n), 2, *size), 2.0).double())
    made, counts = [], []
    for least in (0.0, 0.05, 0.2):
        with Operations() as done:
            made.append(changes.scores(Recorded(net), 0, least=least))
        counts.append(done.count)
    exact, nearly, roughly = made
    away = [float((one - exact).abs().max() / (exact.max() - exact.min())) for one in made]
    assert counts[2] < counts[1] < 0.9 * counts[0]
    assert 0 < away[1] < 0.01 < away[2] < 0.2
    assert float(nearly[-1]) == float(roughly[-1]) == float(exact[-1])
    with pytest.raises(OptionError, match=r"least: got 1.5, expected a share of the largest change, 0 to 1"):
        changes.scores(Recorded(net), 0, least=1.5)


class Excited(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.squeeze, self.then = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 64, 3)

    def forward(self, x):
        maps = self.first(x)
        return self.then(maps * self.squeeze(maps.mean((2, 3), keepdim=True))).mean((2, 3))


def test_behind_squeeze_and_excitation_nothing_is_saved() -> None:
    """Also where one box alone is counted, whose factors are as good as constants to it."""
    run = Recorded(Excited().double().eval())
    changes = Changes(
        torch.zeros(1, 2, 18, 18).double(), grid(3, 3), lambda n, size: torch.ones(len(n), 2, *size).double()
    )
    assert changes.scores(run, 0, worth=1.2) is None


def test_spans_that_are_nearly_all_are_all() -> None:
    spans = spans_of(torch.tensor([[0, 0], [2, 3]]), (9, 10))
    assert boxed(spans, (11, 13))[1] == (9, 10)
    assert boxed(spans_of(torch.tensor([[1, 1]]), (10, 10)), (10, 10))[1] == (10, 10)
    places, size = boxed(spans_of(torch.tensor([[1, 0]]), (98, 99)), (100, 100))
    assert size == (100, 100)
    assert places.tolist() == [[0, 0]]
    assert math.prod(boxed(spans_of(torch.tensor([[1, 0]]), (90, 90)), (100, 100))[1]) == 8100
