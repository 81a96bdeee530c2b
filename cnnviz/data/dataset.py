"""Data sets of images: folders, Parquet manifests and WebDataset tars, listed in a fixed order and read on demand."""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from ..errors import CnnvizError, InputError
from .images import find_images, image_endings

if TYPE_CHECKING:  # they are slow to import, and few need them
    import tarfile

_PATH_COLUMNS: Final = ("path", "uri", "url", "file", "image")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a data set.

    Attributes:
        id: its name, unique within the data set: path below the folder, path or URI in a manifest, key in a tar.
        label: name of its class, or None.
        place: path or URI of the file that holds it.
        offset: byte of that file at which it begins, in a tar.
        size: its bytes, in a tar; None for the whole file.
    """

    id: str
    label: str | None
    place: str
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """Return the image file's bytes.

        Raises:
            InputError: there is no such file, or none that may be read.
            CnnvizError: it cannot be read for now; trying again may help.
        """
        try:
            if "://" in self.place:
                import fsspec  # slow to import

                with fsspec.open(self.place, "rb") as file:
                    return bytes(file.read())
            with Path(self.place).open("rb") as file:
                file.seek(self.offset)
                return file.read(-1 if self.size is None else self.size)
        except ImportError as error:  # the package of a protocol
            raise CnnvizError(f"image '{self.id}' cannot be read: {error}; install what reads {self.place}") from error
        except Exception as error:  # a disk or network that fails, in whatever way a protocol tells it
            if for_good(error):
                raise InputError(f"image '{self.id}' cannot be read: {error}") from error
            raise CnnvizError(
                f"image '{self.id}' cannot be read for now: {error!r}; start again when it can, what was done is kept"
            ) from error


_NO_FILE: Final = frozenset((errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL))
_LATER: Final = frozenset((408, 425, 429))  # of HTTP: a time-out, too early, too many requests


def for_good(error: Exception) -> bool:
    """Whether reading a file again would fail again: it is none, or none that may be read."""
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, ValueError)):
        return True
    status = getattr(error, "status", None)  # of aiohttp's errors, as fsspec raises them
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _LATER
    return isinstance(error, OSError) and error.errno in _NO_FILE


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed order.

    Attributes:
        source: where they are, as an absolute path.
        labels: the file that their labels come from, or None.
        items: the images.
    """

    source: str
    labels: str | None
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids and labels, in order."""
        made = hashlib.sha256()
        for item in self.items:
            made.update(repr((item.id, item.label)).encode())
        return made.hexdigest()


def open_dataset(place: str | Path, labels: str | Path | None = None) -> Dataset:
    """List the images of a folder, a Parquet manifest, or a WebDataset of one tar or a folder of them.

    A folder's images take the name of the sub-folder they are in, if any, for their label. A manifest has a column path
    (uri, url, file, image) of paths, relative ones to its own folder, or URIs that fsspec reads (``s3://…``), and may
    have the columns label and id. In a tar an image's label is the content of its ``.cls`` file, or "label" or "cls" in
    its ``.json``.

    Args:
        place: the folder, ``.parquet`` or ``.tar`` file.
        labels: CSV file of ids and labels; those of a folder's images may leave out the folders.

    Raises:
        InputError: there is no such place, it holds no images, or two have one id; a label file that cannot be read.
    """
    root = Path(place).expanduser().absolute()
    if not root.exists():
        raise InputError(f"data set '{place}' does not exist; give a folder, a .parquet or a .tar file")
    tars = sorted(root.glob("*.tar")) if root.is_dir() else [root]
    if root.is_dir() and tars and (loose := next(_images_in(root), None)):
        raise InputError(
            f"data set '{place}' holds both {tars[0].name} and {loose.relative_to(root)}; give the tar files, or the "
            "images, a folder of their own"
        )
    if root.suffix == ".parquet":
        items = _manifest(root)
    elif root.suffix == ".tar" or (root.is_dir() and tars):
        items = [item for tar in tars for item in _webdataset(tar)]
    elif root.is_dir():
        items = [_in_folder(path, root) for path in _images_in(root)]
    else:
        raise InputError(f"data set '{place}' is no folder, .parquet or .tar file")
    if not items:
        raise InputError(f"data set '{place}' has no images")
    if labels is not None:
        items = _labelled(items, Path(labels).expanduser())
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise InputError(f"data set '{place}' has two images with the id '{item.id}'; give each its own")
        seen.add(item.id)
    return Dataset(str(root), None if labels is None else str(Path(labels).expanduser().absolute()), tuple(items))


def _images_in(root: Path) -> Iterator[Path]:
    try:
        yield from find_images([root])
    except InputError:  # there are none
        return


def _in_folder(path: Path, root: Path) -> Item:
    inside = path.relative_to(root)
    return Item(inside.as_posix(), inside.parts[0] if len(inside.parts) > 1 else None, str(path))


def _manifest(path: Path) -> list[Item]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError("a Parquet manifest needs pyarrow; pip install 'cnnviz[data]'") from error
    try:
        names = parquet.read_schema(path).names
        column = next((name for name in _PATH_COLUMNS if name in names), None)
        if column is None:
            got, expected = ", ".join(names), ", ".join(_PATH_COLUMNS)
            raise InputError(f"manifest '{path}' has the columns {got}; expected one of {expected} with paths or URIs")
        table = parquet.read_table(path, columns=[name for name in (column, "id", "label") if name in names])
    except (ArrowException, OSError) as error:
        raise InputError(f"manifest '{path}' cannot be read: {error}") from error
    places = table.column(column).to_pylist()

    def others(name: str) -> list[str | None]:
        values = table.column(name).to_pylist() if name in table.column_names else [None] * len(places)
        return [None if value is None else str(value) for value in values]

    missing = next((row for row, value in enumerate(places) if not isinstance(value, str)), None)
    if missing is not None:
        got = type(places[missing]).__name__
        raise InputError(f"manifest '{path}': row {missing} has {got} as its {column}, expected text")
    return [
        Item(own or place, label, place if "://" in place else str(path.parent / place))
        for place, own, label in zip(places, others("id"), others("label"), strict=True)
    ]


def _webdataset(tar: Path) -> Iterator[Item]:
    """Yield the images of a tar whose files of one name, up to its first dot, belong together."""
    import tarfile

    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isfile() and not name.name.startswith("."):
                    stem, _, ending = name.name.partition(".")
                    files = samples.setdefault(str(name.with_name(stem)), {})
                    if ending.lower() in files:
                        raise InputError(f"'{tar}' holds {member.name} twice; give each image a name of its own")
                    files[ending.lower()] = member
            for key, files in samples.items():
                images = [ending for ending in files if PurePosixPath(f"_.{ending}").suffix in image_endings()]
                label = _label_in(archive, files)
                for ending in images:
                    image = files[ending]
                    own = f"{tar.name}/{key}" + (f".{ending}" if len(images) > 1 else "")
                    yield Item(own, label, str(tar), image.offset_data, image.size)
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"'{tar}' is damaged, compressed, or no tar file ({error}); copy it again, or write it uncompressed"
        ) from error


def _label_in(archive: tarfile.TarFile, files: Mapping[str, tarfile.TarInfo]) -> str | None:
    if "cls" in files:
        return _text(archive, files["cls"]).strip()
    if "json" in files:
        try:
            told = json.loads(_text(archive, files["json"]))
        except ValueError:
            return None
        found = [told[key] for key in ("label", "cls") if key in told] if isinstance(told, dict) else []
        return str(found[0]) if found and found[0] is not None else None
    return None


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    return "" if file is None else file.read().decode(errors="replace")


def _labelled(items: Sequence[Item], path: Path) -> list[Item]:
    """Give items the labels of a CSV file of two columns, with or without a heading."""
    import csv

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"labels '{path}' cannot be read: {error}; expected CSV rows of id and label") from error
    short = next((row for row in rows if len(row) < 2), None)
    if short is not None:
        raise InputError(f"labels '{path}' has the row {short}; expected an id and a label")
    known: dict[str, str] = {}
    for row in rows:
        name, label = row[0].strip(), row[1].strip()
        if known.setdefault(name, label) != label:
            raise InputError(
                f"labels '{path}' has '{name}' with the labels {known[name]} and {label}; leave one of them"
            )
    often = Counter(PurePosixPath(item.id).name for item in items)
    doubtful = next((name for name, times in often.items() if times > 1 and name in known), None)
    if doubtful is not None and doubtful not in {item.id for item in items}:
        told = f"'{doubtful}', which is the name of {often[doubtful]} images"
        raise InputError(f"labels '{path}' has {told}; give whole ids, such as '{items[0].id}'")
    found = [known.get(item.id, known.get(PurePosixPath(item.id).name)) for item in items]
    if not any(label is not None for label in found):
        raise InputError(f"labels '{path}' has none of the ids, such as '{items[0].id}'")
    return [Item(item.id, label, item.place, item.offset, item.size) for item, label in zip(items, found, strict=True)]
