"""Files of an index: safetensors that are written whole, and know what they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data import Item
from ..errors import SaveError
from ..writing import write_file
from .observe import Observed

_FORMAT: Final = "cnnviz-index-1"


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of an index.

    Attributes:
        item: where it is.
        digest: SHA-256 of its file.
    """

    item: Item
    digest: str


@dataclass(frozen=True)
class Part:
    """A file with what a network made of some images.

    Attributes:
        path: the file.
        entries: its images, in the order of the tensors' rows.
        left_out: id of an image that could not be read, and why.
        owner: what it belongs to.
    """

    path: Path
    entries: tuple[Entry, ...]
    left_out: dict[str, str]
    owner: str

    @classmethod
    def open(cls, path: Path) -> Part:
        """Return a part that is there.

        Raises:
            SaveError: the file is missing, damaged, or none of cnnviz's.
        """
        with _reading(path) as file:
            told = (file.metadata() or {}).get(_FORMAT, "{}")
        try:
            about = json.loads(told)
            entries = tuple(Entry(Item(*item), digest) for *item, digest in about["entries"])
            return cls(path, entries, about["left_out"], about["owner"])
        except (ValueError, KeyError, TypeError) as error:
            raise SaveError(f"'{path}' is no part of an index that this version of cnnviz reads ({error!r})") from error

    @classmethod
    def write(cls, path: Path, owner: str, items: Sequence[Item], observed: Observed) -> None:
        """Write what was made of images of a data set; all of it, or nothing.

        Raises:
            SaveError: it cannot be written.
        """
        pairs = zip(observed.numbers, observed.digests, strict=True)
        about = {
            "owner": owner,
            "entries": [(*astuple(items[number]), digest) for number, digest in pairs],
            "left_out": {items[number].id: why for number, why in observed.left_out.items()},
        }
        write_tensors(path, observed.tensors, about)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of its tensors."""
        with _reading(self.path) as file:
            return frozenset(file.keys())

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return tensors by their names, read when they are asked for."""
        return read_tensors(self.path, names)

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Return some rows of a tensor, without reading the others."""
        with _reading(self.path) as file:
            part = file.get_slice(name)
            return torch.stack([part[row] for row in rows])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a safetensors file, whole or not at all; the same values give the same bytes."""
    # One key, since the order of several is not fixed.
    write_file(
        path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, {_FORMAT: json.dumps(about)})
    )


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        SaveError: it is missing or damaged.
    """
    with _reading(path) as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def intact(folder: Path, told: Mapping[str, Any]) -> bool:
    """Whether a file that a manifest names is there, and of the size that was written."""
    path = folder / str(told["file"])
    return path.is_file() and path.stat().st_size == told["bytes"]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        SaveError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SaveError(f"'{path}' cannot be read: {error.strerror}") from error


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise SaveError(
            f"'{path}' is missing or damaged ({error}); build the index again with the same images"
        ) from error
