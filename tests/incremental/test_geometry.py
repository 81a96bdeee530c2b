"""Plans of patches: the compiled planner does what its slow twin does, and that is what a pass over ones reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cnnviz.incremental import geometry
from cnnviz.incremental.geometry import Reach, Window

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def windows(draw: Any) -> tuple[Window, torch.Tensor, tuple[int, int]]:
    kernel, dilation = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    window = Window(kernel, draw(pairs), padding, dilation)
    size = draw(st.tuples(st.integers(15, 24), st.integers(15, 24)))
    spans = [
        [sorted((draw(st.integers(0, side)), draw(st.integers(0, side)))) for side in size]
        for _ in range(draw(st.integers(1, 4)))
    ]
    return window, torch.tensor(spans), size


def parts(reach: Reach) -> list[list[int]]:
    return [torch.as_tensor(part).flatten().tolist() for part in vars(reach).values()]


@given(windows())
def test_the_planner_is_its_twin(given: tuple[Window, torch.Tensor, tuple[int, int]]) -> None:
    window, spans, size = given
    planned = window.reach(spans, window.output(size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "host", lambda: None)
        assert parts(window.reach(spans, window.output(size))) == parts(planned)


@given(windows(), st.data())
def test_united_spans_are_their_twins(given: tuple[Window, torch.Tensor, tuple[int, int]], data: Any) -> None:
    _, spans, size = given
    lists = [spans]
    for _ in range(data.draw(st.integers(0, 2))):
        drawn = [sorted(data.draw(st.tuples(*[st.integers(0, side)] * 2))) for _ in spans for side in size]
        lists.append(torch.tensor(drawn).view(-1, 2, 2))
    united, places, extent = geometry.united(lists, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "host", lambda: None)
        slow = geometry.united(lists, size)
    assert united.tolist() == slow[0].tolist()
    assert places.tolist() == slow[1].tolist()
    assert extent == slow[2]


def test_united_spans_hold_each_that_is_not_empty() -> None:
    one, other = torch.tensor([[[2, 4], [3, 5]], [[1, 2], [1, 2]]]), torch.tensor([[[1, 3], [6, 8]], [[7, 7], [0, 9]]])
    united, places, extent = geometry.united([one, other], (10, 9))
    assert united.tolist() == geometry.united([other, one], (10, 9))[0].tolist() == [[[1, 4], [3, 8]], [[1, 2], [1, 2]]]
    assert places.tolist() == [[1, 3], [1, 1]]
    assert extent == (3, 5)


@given(windows())
def test_a_plan_is_what_a_convolution_of_ones_reaches(given: tuple[Window, torch.Tensor, tuple[int, int]]) -> None:
    window, spans, size = given
    output = window.output(size)
    reach = window.reach(spans, output)
    for number, ((top, bottom), (left, right)) in enumerate(spans.tolist()):
        ones = torch.zeros(1, 1, *size)
        ones[:, :, top:bottom, left:right] = 1
        lit = functional.conv2d(
            ones, torch.ones(1, 1, *window.kernel), None, window.stride, window.padding, window.dilation
        )[0, 0].nonzero()
        if not len(lit):
            continue  # nothing sees it; where an empty span lies does not matter
        (first, last), (begin, end) = reach.spans[number].tolist()
        # A dilated kernel may step over some of what lies between.
        assert first <= int(lit[:, 0].min())
        assert int(lit[:, 0].max()) < last
        assert begin <= int(lit[:, 1].min())
        assert int(lit[:, 1].max()) < end
        if window.dilation == (1, 1):
            assert (lit.amin(0).tolist(), lit.amax(0).tolist()) == ([first, begin], [last - 1, end - 1])
        row, column = reach.places[number].tolist()
        assert 0 <= row <= first
        assert last <= row + reach.size[0] <= output[0]
        assert 0 <= column <= begin
        assert end <= column + reach.size[1] <= output[1]
