"""Writing an index: part by part, in any order, by anyone; whatever is interrupted goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ..data import Dataset
from ..errors import InputError, SaveError
from ..lock import alone
from ..models import Model
from ..writing import write_file
from .observe import Observed, Recipe
from .part import Part, intact, read_tensors, sha256, write_tensors
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
        known: SHA-256 of the files that are the index's already.
    """

    folder: Path
    dataset: Dataset
    recipe: Recipe
    owner: str
    known: dict[str, str]

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
        try:
            sound = self.known.get(path.name, "") in ("", sha256(path))
            return sound and Part.open(path).owner == self.owner
        except SaveError:  # there is none, or a damaged one
            return False

    def write(self, part: int, observed: Observed) -> None:
        """Write a part, whole or not at all."""
        Part.write(self.path(part), self.owner, self.dataset.items, observed)

    def too_large(self) -> str:
        """Return what to do where a batch does not fit into memory."""
        return (
            f"a batch of {self.recipe.batch} images does not fit into memory; build another index with less memory= "
            "(--memory), or on another device"
        )

    def finish(self) -> None:
        """Make the parts the index's own: all at once, or none.

        Raises:
            InputError: none of the images can be read; nothing is kept of them, so that they can be tried again.
            SaveError: a part is missing or damaged.
        """
        manifest = read_manifest(self.folder)
        parts = [Part.open(self.path(part)) for part in range(self.parts)]
        whole = manifest["summary"] is not None and intact(self.folder, manifest["summary"])
        kept = [part for part in parts if part.entries]
        before = {told["file"]: told for told in manifest["parts"]}
        told = {part.path.name: _told(part.path, images=len(part.entries)) for part in kept}
        left_out = manifest["left_out"] | {name: why for part in parts for name, why in part.left_out.items()}
        for name in (entry.item.id for part in parts for entry in part.entries):
            left_out.pop(name, None)
        for part in parts:
            if not part.entries:
                part.path.unlink()  # so that its images are tried again next time
        if whole and told.items() <= before.items() and not manifest["pending"] and left_out == manifest["left_out"]:
            return
        known = before | told
        if not known:
            _write_manifest(self.folder, {**manifest, "pending": None})
            raise InputError(f"none of {len(left_out)} images can be read; {next(iter(left_out.values()))}")
        if whole and not told.keys() & before.keys():
            tallies = read_tensors(self.folder / manifest["summary"]["file"])
            sums = _summed(tallies, sum(one["images"] for one in before.values()), kept, self.recipe)
        else:
            sums = _summed({}, 0, [Part.open(self.folder / name) for name in known], self.recipe)
        # Another name each time, so that whoever reads the index goes on with the old one.
        digest = hashlib.sha256(json.dumps([one["sha256"] for one in known.values()]).encode()).hexdigest()
        summary = self.folder / f"{digest[:12]}-summary.safetensors"
        write_tensors(summary, sums, {})
        mine = _described(self.dataset)
        manifest |= {
            "parts": list(known.values()),
            "summary": _told(summary),
            "left_out": left_out,
            "datasets": [*manifest["datasets"], *[mine] * (mine not in manifest["datasets"])],
            "pending": None,
        }
        _write_manifest(self.folder, manifest)


@contextlib.contextmanager
def begin(
    folder: str | Path, model: Model, dataset: Dataset, recipe: Recipe, *, add: bool, restart: bool = False
) -> Iterator[Job]:
    """Begin to write an index, or go on where it was interrupted; nobody else may write to it meanwhile.

    Parts of a finished index that are missing or damaged are made anew, where their images are among those given.

    Args:
        folder: a new or empty one, or one with an index.
        model: the network.
        dataset: the images.
        recipe: what is made of them.
        add: add the images that a finished index does not have, by their ids.
        restart: forget what an interrupted run left that had other images, or was made otherwise.

    Yields:
        What is to be done; `Job.finish` ends it.

    Raises:
        SaveError: the folder holds something else, an index of something else, or somebody writes to it.
    """
    place = KIND.check(folder)
    with alone(place / LOCK, "index"):
        exists = (place / MANIFEST).exists()
        if add and not exists:
            raise SaveError(f"'{folder}' holds no index that images could be added to; cnnviz index build makes one")
        if not exists:
            _refuse_strays(place)
        mine = about(model)  # which reads all weights
        manifest = read_manifest(place) if exists else _new(mine, recipe)
        if not add and not manifest["parts"] and (restart or not manifest["pending"]):
            manifest = _new(mine, recipe)
        _refuse_others(manifest, mine, recipe, place, add=add)
        if add:
            dataset = _to_add(manifest, dataset, place)
        elif manifest["datasets"] and manifest["datasets"][0]["digest"] != dataset.digest:
            raise SaveError(f"'{place}' holds an index of other images; add to it with cnnviz index add")
        _refuse_to_forget(manifest, dataset, place, restart=restart)
        known = {told["file"]: told["sha256"] for told in manifest["parts"]}
        job = Job(place, dataset, recipe, _owner(manifest, dataset), known)
        own = {job.path(part).name for part in range(job.parts)}
        lost = [told["file"] for told in manifest["parts"] if told["file"] not in own and not intact(place, told)]
        if lost:
            raise SaveError(
                f"the index in '{place}' is damaged: {lost[0]} is missing or not of the size that was written; build "
                "or add again the images that it was made of"
            )
        _clear(place, own | {told["file"] for told in (*manifest["parts"], manifest["summary"]) if told})
        if len(dataset) and _described(dataset) not in manifest["datasets"]:
            _write_manifest(place, {**manifest, "pending": _described(dataset)})
        yield job


def _to_add(manifest: dict[str, Any], dataset: Dataset, folder: Path) -> Dataset:
    """Return the images that an index does not have; or those of the run whose parts were damaged since."""
    ids = ids_in(manifest, folder)

    def without(known: Iterable[set[str]]) -> Dataset:
        there = set().union(*known)
        return replace(dataset, items=tuple(item for item in dataset.items if item.id not in there))

    for run in sorted({told["file"].partition("-")[0] for told in manifest["parts"] if told["file"] not in ids}):
        again = without(names for name, names in ids.items() if name.partition("-")[0] != run)
        if _owner(manifest, again).startswith(run):
            return again
    return without(ids.values())


def ids_in(manifest: dict[str, Any], folder: Path) -> dict[str, set[str]]:
    """Return the ids of the images in each part of an index; of damaged ones nothing is known."""
    sound = [told["file"] for told in manifest["parts"] if intact(folder, told)]
    return {name: {entry.item.id for entry in Part.open(folder / name).entries} for name in sound}


def _described(dataset: Dataset) -> dict[str, Any]:
    return {"source": dataset.source, "labels": dataset.labels, "digest": dataset.digest, "images": len(dataset)}


def _refuse_to_forget(manifest: dict[str, Any], dataset: Dataset, folder: Path, *, restart: bool) -> None:
    before = manifest["pending"]
    if before and before["digest"] != dataset.digest and not restart:
        raise SaveError(
            f"the index in '{folder}' waits for the rest of {before['images']} images of {before['source']}, whose ids "
            f"or labels have changed since or were others (got {len(dataset)} of {dataset.source}); go on with those, "
            "or forget what was done of them with restart (--restart)"
        )


_OWN: Final = r"[0-9a-f]{12}-([0-9]{6,}|summary)\.safetensors"  # parts and summaries
_HALF: Final = rf"\.({_OWN}|map-.+\.safetensors|{re.escape(MANIFEST)})-[a-z0-9_]{{8}}"  # what was not written whole


def _clear(folder: Path, known: set[str]) -> None:
    """Remove what runs that were killed, or are forgotten, left behind."""
    for path in folder.iterdir():
        if path.name not in known and re.fullmatch(f"{_OWN}|{_HALF}", path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def _new(model: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    return {
        "kind": "cnnviz index",
        "format": FORMAT,
        "model": model,
        "recipe": recipe.to_json(),
        "datasets": [],
        "parts": [],
        "summary": None,
        "left_out": {},
        "pending": None,
    }


def _refuse_strays(folder: Path) -> None:
    strays = sorted(path.name for path in folder.glob("*.safetensors"))
    if strays:
        raise SaveError(f"'{folder}' holds {strays[0]} but no {MANIFEST}; give a new or an empty folder")


def _refuse_others(manifest: dict[str, Any], model: dict[str, Any], recipe: Recipe, folder: Path, *, add: bool) -> None:
    refuse_other(manifest["model"], model, f"the index in '{folder}'")
    mine, theirs = recipe.to_json(), manifest["recipe"]
    # Which values are kept follows from the number of images, which others are told of.
    other = [name for name in mine if name != "exact" and mine[name] != theirs.get(name)]
    if other and not add:
        name = other[0]
        told = f"'{folder}' holds an index with other {name}: {theirs.get(name)}, got {mine[name]}; give another folder"
        forget = "" if manifest["parts"] else ", or forget what was done of it with restart (--restart)"
        raise SaveError(told + forget)


def _owner(manifest: dict[str, Any], dataset: Dataset) -> str:
    told = [manifest["model"]["digest"], manifest["model"]["preprocess"], manifest["recipe"], dataset.digest]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _told(path: Path, **more: int) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path), **more}


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_file(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _summed(before: dict[str, Tensor], begin: int, parts: Sequence[Part], recipe: Recipe) -> dict[str, Tensor]:
    """Return tallies and those of parts, added up one after the other.

    Args:
        before: the tallies of what was there before; {} for nothing.
        begin: number of the first part's first row.
        parts: each with images.
        recipe: the index's.
    """
    tensors: dict[str, Tensor] = {}
    for number in range(len(recipe.layers)):
        names = [f"{name}.{number}" for name in ("strongest", "places", "bins", "counts")]
        found = [before[name] for name in names] if before else []
        strongest = Strongest(found[0], found[1]) if found else None
        histogram: Histogram | None = None
        first = begin
        for part in parts:
            values, places, bins, counts = part.tensors(names).values()
            more = Strongest(values, places).shifted(first)
            strongest = Strongest.merged([strongest, more] if strongest else [more], recipe.top)
            if histogram is None:
                histogram = Histogram.none(values.shape[1])
                if found:
                    histogram.add_packed(found[2], found[3])
            histogram.add_packed(bins, counts)
            first += len(part.entries)
        if strongest is not None and histogram is not None:
            tensors |= dict(zip(names, (strongest.values, strongest.places, *histogram.packed()), strict=True))
    return {**before, **tensors}
