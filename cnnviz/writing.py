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

UNENCODABLE = "backslashreplace"
"""How what UTF-8 cannot say is written, which JSON reads back."""

_SCRATCH = ".cnnviz-"
_FILES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".html", ".json", ".csv", ".npy", ".pt"))


def write_file(path: str | Path, content: str | bytes) -> Path:
    r"""Write a text, in UTF-8, or bytes to `path` and return its absolute path.

    What UTF-8 cannot say, as bytes of file names that were none of it, is written as JSON has it: ``\udce9``.

    Raises:
        SaveError: the file cannot be written; nothing is left of it, and one that was there is as it was.
    """
    place = Path(path).expanduser().absolute()
    scratch = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode(errors=UNENCODABLE) if isinstance(content, str) else content)
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
        place = place.resolve() if place.is_symlink() else place
        if place.exists() and not place.is_dir():
            raise SaveError(f"'{place}' is a file; give a folder")
        if not place.exists() and place.suffix.lower() in _FILES:
            raise SaveError(
                f"'{place}' is called as a file is; give a folder for {self.holds}, such as '{place.with_suffix('')}'"
            )
        inside = sorted(path.name for path in place.iterdir()) if place.exists() else []
        # What `write_file` left when it was killed belongs to the kind as well.
        owned = [*self.owned, *(f".{pattern}-*" for pattern in self.owned), f"{_SCRATCH}*"]
        strange = [name for name in inside if not any(fnmatchcase(name, pattern) for pattern in owned)]
        if strange:
            told = f"'{place}' holds something else than {self.holds}: {strange[0]}"
            raise SaveError(f"{told}; give a new or an empty folder")
        there = next(one for one in (place, *place.parents) if one.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise SaveError(f"'{place}' cannot be written, for '{there}' may not; give a folder that you may write to")
        return place

    def write(self, folder: str | Path, fill: Callable[[Path], None]) -> Path:
        """Let `fill` fill a new folder that then takes the place of `folder`; return its absolute path.

        A folder that is there stays the same one, and what it holds is exchanged: it may be a mount, or somebody's
        working directory.

        Raises:
            SaveError: the folder cannot be written, or holds anything else; it is as it was.
        """
        place = self.check(folder)
        there = place.exists()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=place if there else place.parent))
        except OSError as error:
            raise SaveError(
                f"'{place}' cannot be written ({error.strerror}); give a folder that you may write to"
            ) from error
        new = scratch / "new"
        try:
            new.mkdir()
            fill(new)
            if there:
                _exchange(place, scratch)
            else:
                new.rename(place)
        except OSError as error:
            raise SaveError(f"'{place}' cannot be written ({error.strerror or error})") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return place


def _exchange(place: Path, scratch: Path) -> None:
    """Put what a folder holds aside, and what ``scratch/new`` holds in its place; interrupted, all is as it was."""
    old = scratch / "old"
    old.mkdir()
    moves = [(path, old / path.name) for path in place.iterdir() if path != scratch]
    moves += [(path, place / path.name) for path in (scratch / "new").iterdir()]
    done = 0
    try:
        for source, goal in moves:
            done += 1
            source.rename(goal)
    except BaseException:
        for source, goal in reversed(moves[:done]):
            if goal.exists() and not source.exists():
                goal.rename(source)
        raise
