"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from .errors import SaveError


def write_file(path: str | Path, text: str) -> Path:
    """Write `text` to `path` and return its absolute path.

    Raises:
        SaveError: the file cannot be written; nothing is left of it, and one that was there is as it was.
    """
    place = Path(path).expanduser().absolute()
    scratch = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(place)
    except OSError as error:
        told = f"'{place}' cannot be written ({error.strerror}); give a path that you may write to"
        raise SaveError(told) from error
    finally:
        if scratch:
            Path(scratch).unlink(missing_ok=True)
    return place


def write_folder(folder: str | Path, write: Callable[[Path], None], *, marker: str, holds: str) -> Path:
    """Let `write` fill a new folder that then takes the place of `folder`; return its absolute path.

    Args:
        folder: new, empty, or with the file `marker`, which says that it holds the same kind of thing.
        write: called with the folder to fill.
        marker: name of a file that `write` makes.
        holds: what the folder holds, in words.

    Raises:
        SaveError: the folder cannot be written, or holds something else; it is as it was.
    """
    folder = Path(folder).expanduser().absolute()
    occupied = folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / marker).exists()))
    if occupied:
        raise SaveError(f"'{folder}' holds something else than {holds}; give a new or an empty folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise SaveError(
            f"'{folder}' cannot be written ({error.strerror}); give a folder that you may write to"
        ) from error
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        write(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise SaveError(f"'{folder}' cannot be written ({error.strerror or error})") from error
    finally:
        if old.exists() and not folder.exists():  # interrupted between the two renames
            old.rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
