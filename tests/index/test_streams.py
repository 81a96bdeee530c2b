"""Several items are worked on at once, and come in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from cnnviz.index.streams import in_order, threads


@pytest.fixture
def four() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order(streams: int, count: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.01 * (item % 3 == 0))
        return item * item

    assert list(in_order(work, range(count), streams=streams)) == [item * item for item in range(count)]


def test_two_are_worked_on_at_once() -> None:
    both = threading.Barrier(2, timeout=10)
    assert list(in_order(lambda _: both.wait() in (0, 1), range(4), streams=2)) == [True] * 4


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with closing(in_order(lambda item: item, items(), streams=2)) as results:
        assert next(results) == 0
    assert taken == [0, 1, 2]


def test_each_stream_computes_with_its_share_and_nobody_else_does(four: int) -> None:
    shares = set(in_order(lambda _: torch.get_num_threads(), range(8), streams=2))
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert shares == {four // 2}
    assert later == [four] == [torch.get_num_threads()]


@pytest.mark.parametrize("streams", [1, 2])
def test_an_error_comes_in_its_turn_and_ends_all(streams: int) -> None:
    before = threading.active_count()

    def work(item: int) -> int:
        if item == 2:
            raise ValueError("the third")
        return item

    with closing(in_order(work, range(100), streams=streams)) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="the third"):
            next(results)
    assert threading.active_count() == before


def test_streams_that_begin_at_once_leave_the_processs_number(four: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first has the number changed."""
    count, changed = torch.set_num_threads, threading.Event()

    def slowly(number: int) -> None:
        count(number)
        if number < four:
            changed.set()
            time.sleep(0.1)

    monkeypatch.setattr(torch, "set_num_threads", slowly)

    def begin(shares: list[int]) -> None:
        shares.extend(in_order(lambda _: torch.get_num_threads(), range(4), streams=2))

    found: list[list[int]] = [[], []]
    builders = [threading.Thread(target=begin, args=(shares,)) for shares in found]
    builders[0].start()
    changed.wait()
    builders[1].start()
    for builder in builders:
        builder.join()
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [[four // 2] * 4] * 2
    assert later == [four]


def test_threads_are_used_again() -> None:
    pool = threads(2)
    with closing(in_order(lambda _: 1 / 0, range(9), streams=2, pool=pool)) as results, pytest.raises(ArithmeticError):
        next(results)
    seen = [set(in_order(lambda _: threading.get_ident(), range(9), streams=2, pool=pool)) for _ in range(2)]
    pool.shutdown()
    assert len(set.union(*seen)) <= 2
