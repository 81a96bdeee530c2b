"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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

    What UTF-8 cannot say, as bytes of file names that were none of it, is written as JSON has it: ``\udce9``. A link
    stays, and so does the mode of a file that is there. A pipe or a device is written into.

    Raises:
        SaveError: the file cannot be written; nothing is left of it, and one that was there is as it was.
    """
    place = Path(path).expanduser().absolute()
    raw = content.encode(errors=UNENCODABLE) if isinstance(content, str) else content
    try:
        if place.exists() and not place.is_file():
            with place.open("wb") as file:
                file.write(raw)
        else:
            place = _real(place)
            _replace(place, raw)
    except OSError as error:
        told = f"'{place}' cannot be written ({error.strerror}); give a path that you may write to"
        raise SaveError(told) from error
    return place


def check_file(path: str | Path) -> Path:
    """Return the absolute path of a file that may be written, before the work whose result it is to hold.

    Raises:
        SaveError: it is a folder, or lies where nothing can be written.
    """
    place = Path(path).expanduser().absolute()
    if place.is_dir():
        raise SaveError(f"'{place}' is a folder; give a file, such as '{place / 'index.html'}'")
    if not place.exists() or place.is_file():
        place = _real(place)
        _refuse_closed(place, place.parent)
    elif not os.access(place, os.W_OK):
        raise SaveError(f"'{place}' cannot be written; give a path that you may write to")
    return place


def _replace(place: Path, raw: bytes) -> None:
    """Write a new file and put it where another may be."""
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.with_name(f".{place.name}-{os.urandom(4).hex()}")
    try:
        with scratch.open("xb") as file:
            if place.exists():
                scratch.chmod(stat.S_IMODE(place.stat().st_mode))
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())  # before the name is the file's: a crash of the machine must not leave it empty
        scratch.replace(place)
    finally:
        scratch.unlink(missing_ok=True)
    _settle(place.parent)


def _real(place: Path) -> Path:
    """Return what a link leads to, also where that is not there yet."""
    return Path(os.path.realpath(place)) if place.is_symlink() else place


def _refuse_closed(place: Path, folder: Path) -> None:
    """Refuse a place whose folder, or the nearest one above it that is there, takes no new files."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir():
        raise SaveError(f"'{place}' cannot be written, for '{there}' is a file; give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SaveError(f"'{place}' cannot be written, for '{there}' may not; give a folder that you may write to")


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
        sidecar: JSON file without which a folder is none of this kind, however its files are called; None for none.
        keys: what that file has, among other things.
    """

    holds: str
    owned: tuple[str, ...]
    sidecar: str | None = None
    keys: tuple[str, ...] = ()

    def check(self, folder: str | Path, *, any_name: bool = False) -> Path:
        """Return the absolute path of a folder that may be written: new, empty, or of this kind.

        Args:
            folder: the folder.
            any_name: it may be called as a file is, ``cat.jpg``.

        Raises:
            SaveError: it is a file or is called as one, or holds anything else.
        """
        place = _real(Path(folder).expanduser().absolute())
        if place.exists() and not place.is_dir():
            raise SaveError(f"'{place}' is a file; give a folder")
        if not any_name and not place.exists() and place.suffix.lower() in _FILES:
            raise SaveError(
                f"'{place}' is called as a file is; give a folder for {self.holds}, such as '{place.with_suffix('')}'"
            )
        if place.exists():
            with _held(place):
                self._refuse_others(place)
        _refuse_closed(place, place)
        return place

    def _refuse_others(self, place: Path) -> None:
        inside = sorted(path.name for path in place.iterdir() if not path.name.startswith(_SCRATCH))
        # What `write_file` left when it was killed belongs to the kind as well.
        owned = [*self.owned, *(f".{pattern}-*" for pattern in self.owned)]
        strange = [name for name in inside if not any(fnmatchcase(name, pattern) for pattern in owned)]
        if strange:
            told = f"'{place}' holds something else than {self.holds}: {strange[0]}"
            raise SaveError(f"{told}; give a new or an empty folder")
        if inside and self.sidecar is not None and not self._vouched(place, self.sidecar):
            told = f"'{place}' holds something else than {self.holds}: {inside[0]} without {self.sidecar} of cnnviz"
            raise SaveError(f"{told}; give a new or an empty folder")

    def _vouched(self, place: Path, sidecar: str) -> bool:
        """Whether a folder has its sidecar, be it aside since whoever exchanged it was killed."""
        for path in (place / sidecar, *place.glob(f"{_SCRATCH}*/*/{sidecar}")):
            with suppress(OSError, ValueError):
                told = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(told, dict) and told.keys() >= set(self.keys):
                    return True
        return False

    def write(self, folder: str | Path, fill: Callable[[Path], None], *, any_name: bool = False) -> Path:
        """Let `fill` fill a new folder that then takes the place of `folder`; return its absolute path.

        A folder that is there stays the same one, and what it holds is exchanged: it may be a mount, or somebody's
        working directory. Of several who write to it at once the last one's stays.

        Raises:
            SaveError: the folder cannot be written, or holds anything else; it is as it was.
        """
        place = self.check(folder, any_name=any_name)
        with _scratch(place) as scratch:
            new = scratch / "new"
            try:
                new.mkdir()
                fill(new)
                if scratch.parent == place or not _moved(new, place):
                    with _held(place):
                        self._refuse_others(place)
                        _exchange(place, scratch)
            except SaveError:
                raise
            except OSError as error:
                raise SaveError(f"'{place}' cannot be written ({error.strerror or error})") from error
        return place


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """Make a folder on the disk of another, in it where it is there, and hold it; it is gone afterwards."""
    with ExitStack() as held:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with _held(place):  # so that nobody finds it before it is held, and takes it for one that was left
                made = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=place if place.exists() else place.parent))
                held.enter_context(_held(made))
        except OSError as error:
            raise SaveError(
                f"'{place}' cannot be written ({error.strerror}); give a folder that you may write to"
            ) from error
        try:
            yield made
        finally:
            with _held(place):  # so that nobody reads in it meanwhile
                shutil.rmtree(made, ignore_errors=True)


def _moved(new: Path, place: Path) -> bool:
    """Move a folder to its place; return whether nobody else's was there meanwhile."""
    try:
        new.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        return False
    return True


def _exchange(place: Path, scratch: Path) -> None:
    """Put what a folder holds aside, and what ``scratch/new`` holds in its place; interrupted, all is as it was."""
    old = scratch / "old"
    old.mkdir()
    moves = [(path, old / path.name) for path in place.iterdir() if path != scratch and not _live(path)]
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


def _live(path: Path) -> bool:
    """Whether somebody fills this folder, to exchange it afterwards."""
    if not path.name.startswith(_SCRATCH):
        return False
    with _held(path, wait=False) as held:
        return not held


@contextmanager
def _held(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder by a lock that its holder takes along when it is killed; yields whether it is held.

    Where the system has no such locks, everybody holds it who asks.
    """
    try:
        import fcntl  # which Windows has not

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield True
        return
    held = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        except OSError:  # some network disks have none
            pass
        yield held
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # at once: a process that was forked meanwhile has the handle too
        os.close(handle)
