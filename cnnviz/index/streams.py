"""Work on several items at once, in threads that share the processors."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], *, streams: int) -> Generator[Result]:
    """Yield ``work(item)`` for each item, in order, while the next ones are worked on.

    Each stream is a thread that computes with an even share of this thread's threads of PyTorch. Two streams outrun one
    of twice the threads: none of them waits for the slowest at the end of every operation, nor between two operations.

    Args:
        work: run in threads of their own; in this one where there is a single stream.
        items: taken one at a time, at most `streams` ahead of the result that is waited for.
        streams: how many are worked on at once.
    """
    if streams == 1:
        yield from map(work, items)
        return
    pool = _threads(streams)
    try:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > streams:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _threads(count: int) -> ThreadPoolExecutor:
    """Return threads of which each computes with its share; those of others keep what they have."""
    threads = torch.get_num_threads()
    begun = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first look takes over the process's number, whatever was set before
        torch.set_num_threads(max(1, threads // count))
        begun.wait()

    pool = ThreadPoolExecutor(count, initializer=begin)
    for _ in range(count):
        pool.submit(int)
    begun.wait()
    torch.set_num_threads(threads)  # what threads that begin later compute with
    return pool
