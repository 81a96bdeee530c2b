"""Points settle in cells near them, none over another."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnviz.render import settle


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(2, 7))
def test_every_point_has_its_cell_where_there_are_enough(seed: int, count: int, side: int) -> None:
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    cells = settle(points, side)
    assert len(set(cells.values())) == len(cells)
    assert set(cells) <= set(range(side * side))
    if count <= side * side:
        assert sorted(cells.values()) == list(range(count))


def test_a_grid_of_points_stays_as_it_is() -> None:
    points = torch.tensor([[float(column), float(-row)] for row in range(4) for column in range(4)])
    assert settle(points, 4) == {cell: cell for cell in range(16)}


def test_of_too_many_those_are_shown_that_lie_best() -> None:
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [1.0, 1.0], [0.9, 1.0], [0.4, 0.1], [0.45, 0.9]])
    cells = settle(points, 2)  # from the top left
    assert (cells[2], cells[1]) == (0, 2)
    assert settle(torch.zeros(3, 2), 1) == {0: 0}


def test_those_that_are_first_have_a_cell_in_any_case() -> None:
    points = torch.cat([torch.zeros(7, 2), torch.tensor([[1.0, 1.0], [0.2, 0.0], [0.2, 0.1]])])
    cells = settle(points, 2, first=(8, 9))
    assert {8, 9} <= set(cells.values())
    assert len(set(cells.values())) == len(cells)
    assert settle(torch.zeros(3, 2), 1, first=(2, 1)) == {0: 1}, "no more than there are cells"
