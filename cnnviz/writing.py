"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .errors import SaveError

_FILES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".html", ".json", ".csv", ".npy", ".pt"))


def write_file(path: str | Path, content: str | bytes) -> Path:
    """Write a text, in UTF-8, or bytes to `path` and return its absolute path.

    Raises:
        SaveError: the file cannot be written; nothing is left of it, and one that was there is as it was.
    """
    place = Path(path).expanduser().absolute()
    scratch = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(handle)  # before the name is the file's: a crash of the machine must not leave it empty
        Path(scratch).chmod(0o644)
        Path(scratch).replace(place)
        _settle(place.parent)
    except OSError as error:
        told = f"'{place}' cannot be written ({error.strerror}); give a path that you may write to"
        raise SaveError(told) from error
    finally:
        if scratch:
            Path(scratch).unlink(missing_ok=True)
    return place


def _settle(folder: Path) -> None:
    """Let a folder's new names survive a crash of the machine, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass(frozen=True)
class Kind:
    """A kind of folder that is written whole.

    Attributes:
        holds: what the folder holds, in words.
        owned: patterns of the names of its files.
    """

    holds: str
    owned: tuple[str, ...]

    def check(self, folder: str | Path) -> Path:
        """Return the absolute path of a folder that may be written: new, empty, or of this kind.

        Raises:
            SaveError: it is a file or is called as one, or holds anything else.
        """
        place = Path(folder).expanduser().absolute()
        if place.exists() and not place.is_dir():
            raise SaveError(f"'{place}' is a file; give a folder")
        if not place.exists() and place.suffix.lower() in _FILES:
            raise SaveError(
                f"'{place}' is called as a file is; give a folder for {self.holds}, such as '{place.with_suffix('')}'"
            )
        inside = sorted(path.name for path in place.iterdir()) if place.exists() else []
        # What `write_file` left when it was killed belongs to the kind as well.
        owned = [*self.owned, *(f".{pattern}-*" for pattern in self.owned)]
        strange = [name for name in inside if not any(fnmatchcase(name, pattern) for pattern in owned)]
        if strange:
            told = f"'{place}' holds something else than {self.holds}: {strange[0]}"
            raise SaveError(f"{told}; give a new or an empty folder")
        return place

    def write(self, folder: str | Path, fill: Callable[[Path], None]) -> Path:
        """Let `fill` fill a new folder that then takes the place of `folder`; return its absolute path.

        Raises:
            SaveError: the folder cannot be written, or holds anything else; it is as it was.
        """
        place = self.check(folder)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        except OSError as error:
            raise SaveError(
                f"'{place}' cannot be written ({error.strerror}); give a folder that you may write to"
            ) from error
        new, old = scratch / "new", scratch / "old"
        try:
            new.mkdir()
            fill(new)
            if place.exists():
                place.rename(old)
            new.rename(place)
        except OSError as error:
            raise SaveError(f"'{place}' cannot be written ({error.strerror or error})") from error
        finally:
            if old.exists() and not place.exists():  # interrupted between the two renames
                old.rename(place)
            shutil.rmtree(scratch, ignore_errors=True)
        return place
