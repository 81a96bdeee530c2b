"""Work on several items at once, in threads that share the processors."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_counting: Final = threading.Lock()  # a stream that begins changes the process's number of threads for a moment


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, streams: int, pool: ThreadPoolExecutor | None = None
) -> Generator[Result]:
    """Yield ``work(item)`` for each item, in order, while the next ones are worked on.

    Each stream is a thread that computes with an even share of this thread's threads of PyTorch. Two streams outrun one
    of twice the threads: none of them waits for the slowest at the end of every operation, nor between two operations.

    Args:
        work: run in threads of their own; in this one where there is a single stream.
        items: taken one at a time, at most `streams` ahead of the result that is waited for.
        streams: how many are worked on at once.
        pool: so many threads, from `threads`, that are used again; by default new ones, which end with the last item.
    """
    if streams == 1:
        yield from map(work, items)
        return
    workers = pool or threads(streams)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(workers.submit(work, item))
            if len(waiting) > streams:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)
        if pool is None:
            workers.shutdown()


def thread_count() -> int:
    """Return how many threads of PyTorch this thread computes with."""
    with _counting:
        return torch.get_num_threads()


def threads(count: int) -> ThreadPoolExecutor:
    """Return threads of which each computes with its share; those of others keep what they have."""
    with _counting:
        whole = torch.get_num_threads()
        pool = _begun(count, max(1, whole // count))
        torch.set_num_threads(whole)  # what threads that begin later compute with
        return pool


def _begun(count: int, share: int) -> ThreadPoolExecutor:
    """Return threads that have begun, each with so many of PyTorch's."""
    begun = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first look takes over the process's number, whatever was set before
        torch.set_num_threads(share)
        begun.wait()

    pool = ThreadPoolExecutor(count, initializer=begin)
    for _ in range(count):
        pool.submit(int)
    begun.wait()
    return pool
