"""Work that may fail without taking other work down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import CnnvizError
from ..request import Progress

Made = TypeVar("Made")


def attempt(
    work: Callable[[Progress], Made], progress: Progress | None, *, source: object = ""
) -> tuple[Made | None, str]:
    """Run ``work(progress)``; return what it made and "", or None and why it failed, in whatever way.

    What `progress` raises goes through, since it cancels everything. `source` is whose fault an unforeseen error is.
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
        return work(watched), ""
    except CnnvizError as error:
        if error in cancelled:
            raise
        return None, str(error)
    except Exception as error:
        if error in cancelled:
            raise
        return None, f"{error!r}, from {source}" if source else repr(error)
