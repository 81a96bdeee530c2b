"""Work that may fail without taking other work down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..request import Progress

Made = TypeVar("Made")


def attempt(work: Callable[[Progress], Made], progress: Progress | None) -> tuple[Made | None, Exception | None]:
    """Run ``work(progress)``; return what it made and None, or None and the error by which it failed.

    What `progress` raises goes through, since it cancels everything.
    """
    cancelled: list[Exception] = []

    def watched(done: int, total: int) -> None:
        try:
            if progress is not None:
                progress(done, total)
        except Exception as error:
            cancelled.append(error)
            raise

    try:
        return work(watched), None
    except Exception as error:
        if error in cancelled:
            raise
        return None, error
