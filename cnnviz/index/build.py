"""Writing an index: part by part, in any order, by anyone; whatever is interrupted goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import Dataset
from ..errors import SaveError
from ..models import Model
from ..writing import write_file
from .observe import Observed, Recipe
from .part import Part, read_tensors, sha256, write_tensors
from .store import FORMAT, KIND, LOCK, MANIFEST, about, read_manifest, refuse_other
from .tally import Histogram, Strongest


@dataclass(frozen=True)
class Job:
    """What is to be made of a data set, cut into parts that can be made anywhere and in any order.

    Attributes:
        folder: the index's.
        dataset: the images that the index does not have yet.
        recipe: what is made of them.
        owner: tells the parts of this job from others.
    """

    folder: Path
    dataset: Dataset
    recipe: Recipe
    owner: str

    @property
    def parts(self) -> int:
        """How many there are."""
        return self.recipe.parts(len(self.dataset))

    def path(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"{self.owner[:12]}-{part:06}.safetensors"

    def batches(self, part: int) -> list[range]:
        """Return the numbers of the images in each batch of a part."""
        return self.recipe.batches(len(self.dataset), part)

    def missing(self) -> list[int]:
        """Return the parts that are not there yet."""
        return [part for part in range(self.parts) if not self._there(part)]

    def _there(self, part: int) -> bool:
        path = self.path(part)
        return path.exists() and Part.open(path).owner == self.owner

    def write(self, part: int, observed: Observed) -> None:
        """Write a part, whole or not at all."""
        Part.write(self.path(part), self.owner, self.dataset.items, observed)

    def finish(self) -> None:
        """Make the parts the index's own: all at once, or none.

        Raises:
            SaveError: a part is missing or damaged.
        """
        manifest = read_manifest(self.folder)
        old = {told["file"] for told in manifest["parts"]}
        paths = [self.path(part) for part in range(self.parts)]
        if not paths or paths[0].name in old:
            return
        summary = self.folder / f"{self.owner[:12]}-summary.safetensors"
        _summarise(manifest, self.folder, [Part.open(path) for path in paths], self.recipe, summary)
        manifest["parts"] += [_told(path, images=len(Part.open(path).entries)) for path in paths]
        former = manifest["summary"]
        manifest |= {
            "summary": _told(summary),
            "datasets": [*manifest["datasets"], manifest["pending"]],
            "pending": None,
        }
        _write_manifest(self.folder, manifest)
        if former:
            (self.folder / former["file"]).unlink(missing_ok=True)


@contextlib.contextmanager
def begin(folder: str | Path, model: Model, dataset: Dataset, recipe: Recipe, *, add: bool) -> Iterator[Job]:
    """Begin to write an index, or go on where it was interrupted; nobody else may write to it meanwhile.

    Args:
        folder: a new or empty one, or one with an index.
        model: the network.
        dataset: the images.
        recipe: what is made of them.
        add: add the images that a finished index does not have, by their ids.

    Yields:
        What is to be done; `Job.finish` ends it.

    Raises:
        SaveError: the folder holds something else, an index of something else, or somebody writes to it.
    """
    place = KIND.check(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"'{place}' cannot be written ({error.strerror}); give another folder") from error
    with _alone(place):
        exists = (place / MANIFEST).exists()
        if add and not exists:
            raise SaveError(f"'{folder}' holds no index that images could be added to; cnnviz index build makes one")
        if not exists:
            _refuse_strays(place)
        manifest = read_manifest(place) if exists else _new(model, recipe)
        _refuse_others(manifest, model, recipe, place, add=add)
        if add:
            known = {
                entry.item.id for told in manifest["parts"] for entry in Part.open(place / told["file"]).entries
            } | {name for told in manifest["parts"] for name in Part.open(place / told["file"]).left_out}
            dataset = replace(dataset, items=tuple(item for item in dataset.items if item.id not in known))
        owner = _owner(manifest, dataset)
        pending = {"source": dataset.source, "labels": dataset.labels, "digest": dataset.digest, "images": len(dataset)}
        before = manifest["pending"]
        if before and before["digest"] != pending["digest"]:
            raise SaveError(
                f"the index in '{place}' waits for the rest of {before['images']} images of {before['source']}, whose "
                f"ids or labels have changed since or were others (got {len(dataset)} of {dataset.source}); go on with "
                "those, or give a new folder"
            )
        if not add and not before and manifest["parts"] and manifest["datasets"][0]["digest"] != dataset.digest:
            raise SaveError(f"'{place}' holds an index of other images; add to it with cnnviz index add")
        if len(dataset) and not (manifest["parts"] and not add):
            manifest["pending"] = pending
            _write_manifest(place, manifest)
        yield Job(place, dataset, recipe, owner)


def _new(model: Model, recipe: Recipe) -> dict[str, Any]:
    return {
        "kind": "cnnviz index",
        "format": FORMAT,
        "model": about(model),
        "recipe": recipe.to_json(),
        "datasets": [],
        "parts": [],
        "summary": None,
        "pending": None,
    }


def _refuse_strays(folder: Path) -> None:
    strays = sorted(path.name for path in folder.glob("*.safetensors"))
    if strays:
        raise SaveError(f"'{folder}' holds {strays[0]} but no {MANIFEST}; give a new or an empty folder")


def _refuse_others(manifest: dict[str, Any], model: Model, recipe: Recipe, folder: Path, *, add: bool) -> None:
    refuse_other(manifest["model"], model, f"the index in '{folder}'")
    mine, theirs = recipe.to_json(), manifest["recipe"]
    other = [name for name in mine if mine[name] != theirs.get(name)]
    if other and not add:
        name = other[0]
        raise SaveError(
            f"'{folder}' holds an index with other {name}: {theirs.get(name)}, got {mine[name]}; give another folder"
        )


def _owner(manifest: dict[str, Any], dataset: Dataset) -> str:
    told = [manifest["model"]["digest"], manifest["model"]["preprocess"], manifest["recipe"], dataset.digest]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _told(path: Path, **more: int) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path), **more}


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_file(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _summarise(manifest: dict[str, Any], folder: Path, parts: list[Part], recipe: Recipe, path: Path) -> None:
    """Add the parts' tallies to those of the index, and write the sums."""
    first = sum(told["images"] for told in manifest["parts"])
    old = read_tensors(folder / manifest["summary"]["file"]) if manifest["summary"] else {}
    tensors: dict[str, Tensor] = {}
    for number in range(len(recipe.layers)):
        names = [f"{name}.{number}" for name in ("strongest", "places", "bins", "counts")]
        found = [(0, [old[name] for name in names])] if old else []
        begin = first
        for part in parts:
            if part.entries:
                found.append((begin, [part.tensor(name) for name in names]))
            begin += len(part.entries)
        if not found:
            raise SaveError("none of the images can be read; " + next(iter(parts[0].left_out.values())))
        strongest = Strongest.merged(
            [Strongest(values, places).shifted(begin) for begin, (values, places, *_) in found], recipe.top
        )
        histogram = Histogram.none(strongest.values.shape[1])
        for _, (*_, bins, counts) in found:
            histogram.add_packed(bins, counts)
        tensors |= dict(zip(names, (strongest.values, strongest.places, *histogram.packed()), strict=True))
    write_tensors(path, tensors, {})


_writing: set[Path] = set()
_writing_lock = threading.Lock()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep everybody else from writing, by a lock that its holder takes along when it is killed."""
    busy = SaveError(f"somebody else is writing to the index in '{folder}'; wait for them to end")
    with _writing_lock:  # of this process; the other lock is for others
        if folder in _writing:
            raise busy
        _writing.add(folder)
    try:
        with (folder / LOCK).open("w") as file:
            # A record lock, which processes that decode do not inherit and so do not keep.
            with contextlib.suppress(ImportError):  # Windows has none
                import fcntl

                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise busy from error
            yield
    finally:
        with _writing_lock:
            _writing.discard(folder)
