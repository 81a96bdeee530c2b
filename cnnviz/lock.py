"""One writer at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from .errors import SaveError

_writing: Final[set[Path]] = set()
_writing_lock: Final = threading.Lock()


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Keep everybody else from writing to a folder, by a lock that its holder takes along when it is killed.

    Args:
        path: the lock's file, in the folder, which is made if there is none; the file stays there.
        what: what is written there, in words.

    Raises:
        SaveError: somebody else holds the lock, or the folder cannot be written or locked.
    """
    folder = path.parent
    busy = SaveError(f"somebody else is writing to the {what} in '{folder}'; wait for them to end")
    place = folder.resolve() / path.name
    with _writing_lock:  # of this process; the other lock is for others
        if place in _writing:
            raise busy
        _writing.add(place)
    try:
        with _opened(path) as file:
            # A record lock, which processes that decode do not inherit and so do not keep.
            with contextlib.suppress(ImportError):  # Windows has none
                import fcntl

                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EAGAIN):
                        told = f"the folder '{folder}' cannot be locked ({error.strerror}); give one on another disk"
                        raise SaveError(told) from error
                    raise busy from error
            yield
    finally:
        with _writing_lock:
            _writing.discard(place)


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except OSError as error:
        raise SaveError(f"'{path.parent}' cannot be written ({error.strerror}); give another folder") from error
