"""Memory as a budget in bytes: how large a batch may be, and what happens when it was too large after all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar

import torch

from .errors import OptionError
from .models import Survey

DEFAULT: Final = 1 << 30
"""One gibibyte, on every machine, so that the same call gives the same batches and so the same bits."""

_UNITS: Final = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("b", 1000), ("ib", 1024))
}
_CPU_TENSOR: Final = 20 << 20
"""On a CPU a batch's largest tensor stays below this: beyond, page faults cost more than a larger batch saves."""
_WEIGHTS_PER_IMAGE: Final = 64 << 20
"""But so many bytes of weights earn a batch another image: all are read anew for every batch."""


def parse_memory(memory: int | str | None) -> int:
    """Return a budget in bytes: None is the default, a string has a unit ("2GiB", "500 MB").

    Raises:
        OptionError: no amount, less than a mebibyte, or more than any machine has.
    """
    if memory is None:
        return DEFAULT
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", memory.lower())
        amount = float(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else None
    else:
        amount = memory if isinstance(memory, int) and not isinstance(memory, bool) else None
    if amount is None or not 1 << 20 <= amount < 1 << 63:
        raise OptionError(
            f"memory: got {memory!r}, expected at least 1 MiB and less than 8 EiB, as bytes or as text such as '2GiB'"
        )
    return int(amount)


def batch_size(survey: Survey, memory: int, device: torch.device, *, backward: bool) -> int:
    """Return how many images to run at once; it depends on budget, model, shape and kind of device alone."""
    size = memory // max(need(survey, backward=backward), 1)
    if device.type == "cpu":
        size = min(size, max(_CPU_TENSOR // max(survey.largest, 1), survey.weights // _WEIGHTS_PER_IMAGE))
    return max(1, size)


def need(survey: Survey, *, backward: bool) -> int:
    """Return how many bytes one image takes."""
    # Twice the busiest operation: a branch may be waiting beside it, and kernels want room to work.
    return 2 * survey.working + (survey.kept if backward else 0)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _RAN_OUT)


_RAN_OUT: Final = (
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


Part = TypeVar("Part")


class Batches:
    """Runs work in batches, halving them for good when memory runs out, and keeps a record of it."""

    def __init__(self) -> None:
        self.sizes: set[int] = set()
        self.halvings = 0
        self._ceiling: int | None = None

    def run(self, count: int, size: int, work: Callable[[int, int], Part]) -> list[Part]:
        """Return ``work(start, stop)`` for consecutive ranges of at most `size` that cover ``range(count)``."""
        parts: list[Part] = []
        start = 0
        while start < count:
            size = min(size, self._ceiling or size)
            stop = min(start + size, count)
            try:
                parts.append(work(start, stop))
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or stop - start == 1:
                    raise
                self.halvings += 1
                self._ceiling = (stop - start) // 2
                continue
            self.sizes.add(stop - start)
            start = stop
        return parts
