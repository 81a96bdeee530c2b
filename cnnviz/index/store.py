"""A folder with what a network makes of a data set: features, strongest units and value counts of each channel."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from ..data import open_image
from ..errors import InputError, LayerError, OptionError, SaveError, nearest
from ..models import Model
from ..writing import Kind
from .observe import Recipe
from .part import Entry, Part, intact, read_tensors, sha256
from .search import Metric, check_queries
from .search import nearest as nearest_vectors
from .tally import Histogram, Strongest, exact_quantile

MANIFEST: Final = "index.json"
LOCK: Final = "index.lock"
FORMAT: Final = 1
_NAMES: Final = 20_000  # among which the nearest to a wrong one is looked for
KIND: Final = Kind("an index of images", (MANIFEST, LOCK, "*.safetensors"))


@dataclass(frozen=True)
class Found:
    """An image that a search found.

    Attributes:
        id: its id.
        label: its label, or None.
        prediction: the network's most probable class for it, in words, or None.
        distance: from the query, in the units of the metric.
    """

    id: str
    label: str | None
    prediction: str | None
    distance: float


class Index:
    """What a network made of a data set's images, read from the folder that `cnnviz.engines.build_index` wrote.

    Rows are images, in the order in which they were added; those that could not be read have none.

    Attributes:
        folder: its absolute path.
        recipe: how it was made.
        about: name, source, SHA-256 of the weights and class names of the network.
        left_out: id of each image that could not be read, and why.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open an index.

        Raises:
            SaveError: there is none, it is not finished, damaged, or was written by another version.
        """
        self.folder = Path(folder).expanduser().absolute()
        manifest = read_manifest(self.folder)
        if not manifest["parts"]:
            raise SaveError(f"the index in '{folder}' is not finished; run cnnviz index build again, and it goes on")
        self.recipe = Recipe.from_json(manifest["recipe"])
        self.about: dict[str, Any] = manifest["model"]
        broken = [told["file"] for told in (*manifest["parts"], manifest["summary"]) if not intact(self.folder, told)]
        if broken:
            raise SaveError(
                f"the index in '{folder}' is damaged: {broken[0]} is missing or not of the size that was written; "
                "build it again with the same images, and what is missing is made anew"
            )
        self._parts = [Part.open(self.folder / told["file"]) for told in manifest["parts"]]
        self._begins = [0]
        for part in self._parts:
            self._begins.append(self._begins[-1] + len(part.entries))
        self._summary = self.folder / manifest["summary"]["file"]
        self.left_out: dict[str, str] = manifest["left_out"]

    def __len__(self) -> int:
        return self._begins[-1]

    def __repr__(self) -> str:
        return f"<index of {len(self)} images, {self.about['name']}, layers {', '.join(self.layers)}>"

    @property
    def layers(self) -> tuple[str, ...]:
        """Full names of its layers."""
        return self.recipe.layers

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Id of each image."""
        return tuple(entry.item.id for entry in self._entries)

    @cached_property
    def labels(self) -> tuple[str | None, ...]:
        """Label of each image, None where it has none."""
        return tuple(entry.item.label for entry in self._entries)

    @property
    def _entries(self) -> Iterator[Entry]:
        return (entry for part in self._parts for entry in part.entries)

    def entry(self, row: int) -> Entry:
        """Return where an image is, and its digest.

        Raises:
            InputError: there is no such row.
        """
        part, inside = self._place(row)
        return self._parts[part].entries[inside]

    def _place(self, row: int) -> tuple[int, int]:
        """Return the part that holds a row, and its number there.

        Raises:
            InputError: there is no such row.
        """
        if not 0 <= row < len(self):
            raise InputError(f"the index has no row {row}; its {len(self)} images are rows 0 to {len(self) - 1}")
        part = bisect_right(self._begins, row) - 1
        return part, row - self._begins[part]

    def row(self, name: str) -> int:
        """Return the row of the image with this id.

        Raises:
            InputError: there is none.
        """
        try:
            return self.ids.index(name)
        except ValueError:
            known = self.ids if len(self) <= _NAMES else ()
            raise InputError(f"the index has no image '{name}'{nearest(name, known)}") from None

    def number(self, layer: str | None) -> int:
        """Return the place of a layer among the index's; of the last one where None is named.

        Raises:
            LayerError: the index does not have it.
        """
        if layer is None:
            return len(self.layers) - 1
        if layer not in self.layers:
            raise LayerError(
                f"the index has the layers {', '.join(self.layers)}, got '{layer}'; name one of them as the layer, or "
                "build an index with it"
            )
        return self.layers.index(layer)

    def check(self, model: Model) -> None:
        """Refuse a network that the index was not made with.

        Raises:
            SaveError: weights or preprocessing differ.
        """
        refuse_other(self.about, about(model), f"the index in '{self.folder}'")

    def predicted(self) -> tuple[str, ...] | None:
        """Return each image's most probable class, in words, or None where the network has none."""
        predictions, classes = self.predictions(), self.about["classes"] or ()
        if predictions is None:
            return None
        return tuple(classes[i] if i < len(classes) else f"class {i}" for i in predictions.tolist())

    def rows(self, name: str) -> Iterator[Tensor]:
        """Yield the rows of a tensor, such as "thumbnails" or "features.0", part by part."""
        for part in self._parts:
            if part.entries:
                yield part.tensors([name])[name]

    def has(self, name: str) -> bool:
        """Whether all parts have such a tensor."""
        return all(name in part.names for part in self._parts if part.entries)

    def features(self, layer: str | None = None) -> Tensor:
        """Return each image's features at a layer, its maps' means: (N, C)."""
        return torch.cat(list(self.rows(f"features.{self.number(layer)}")))

    def thumbnails(self) -> Tensor:
        """Return small pictures, (N, 3, side, side) uint8."""
        return torch.cat(list(self.rows("thumbnails")))

    def predictions(self) -> Tensor | None:
        """Return each image's most probable class, (N,), or None where the network has none."""
        return torch.cat(list(self.rows("predictions"))) if self.has("predictions") else None

    def strongest(self, layer: str | None = None) -> Strongest:
        """Return the units that each channel of a layer was most active in."""
        number = self.number(layer)
        return Strongest(*self._tallies([f"strongest.{number}", f"places.{number}"]).values())

    def _tallies(self, names: Sequence[str]) -> dict[str, Tensor]:
        if not self._summary.is_file():  # each time that images are added it is another one
            raise SaveError(f"the index in '{self.folder}' has changed since it was opened; open it again")
        return read_tensors(self._summary, names)

    def threshold(self, q: float, layer: str | None = None) -> Tensor:
        """Return the value, (C,), that a share `q` of a channel's values, over all images and places, do not exceed.

        Exact for layers all of whose values were kept (`Recipe.exact`), otherwise within 1 % of it.

        Raises:
            OptionError: the share is not between 0 and 1.
        """
        if not 0 < q < 1:
            raise OptionError(f"quantile: got {q}, expected a share between 0 and 1")
        number = self.number(layer)
        if self.has(f"values.{number}"):
            return exact_quantile(torch.cat(list(self.rows(f"values.{number}")), 1), q)
        tensors = self._tallies([f"bins.{number}", f"counts.{number}", f"strongest.{number}"])
        histogram = Histogram.none(tensors[f"strongest.{number}"].shape[1])
        histogram.add_packed(tensors[f"bins.{number}"], tensors[f"counts.{number}"])
        return histogram.quantile(q)

    def points(
        self, method: str, layer: str | None = None, *, perplexity: float = 30.0, seed: int = 0
    ) -> Tensor | None:
        """Return where `lay_out` put the images, (N, 2), with these settings; None where it did not.

        There are fewer points than images where some were added since.
        """
        kept = self.kept_map(method, layer, perplexity=perplexity, seed=seed)
        return None if kept is None else kept["points"]

    def kept_map(
        self, method: str, layer: str | None = None, *, perplexity: float = 30.0, seed: int = 0
    ) -> dict[str, Tensor] | None:
        """Return what `lay_out` kept, points and axes; None where it did not, or where that cannot be read any more."""
        try:
            return read_tensors(self.points_file(method, layer, perplexity=perplexity, seed=seed))
        except SaveError:
            return None

    def points_file(self, method: str, layer: str | None, *, perplexity: float, seed: int) -> Path:
        """Return the file in which `lay_out` keeps points."""
        settings = f"-{perplexity:g}" if method == "tsne" else ""
        return self.folder / f"map-{method}-{self.number(layer)}{settings}-{seed}.safetensors"

    def vectors(self, rows: Sequence[int], layer: str | None = None, *, pixels: bool = False) -> Tensor:
        """Return what some of the images are compared by: features, (Q, C), or values of thumbnails in [0, 1].

        Raises:
            InputError: there is no such row, or none was named.
        """
        if not len(rows):
            raise InputError("rows: got none, expected those of one image or more")
        name = "thumbnails" if pixels else f"features.{self.number(layer)}"
        inside: dict[int, list[int]] = {}
        for row in dict.fromkeys(rows):
            part, place = self._place(row)
            inside.setdefault(part, []).append(place)
        found = {
            self._begins[part] + place: values
            for part, places in inside.items()
            for place, values in zip(places, self._parts[part].rows(name, places), strict=True)
        }
        made = torch.stack([found[row] for row in rows])
        return made.flatten(1) / 255 if pixels else made

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        metric: Metric = "cosine",
        layer: str | None = None,
        pixels: bool = False,
        skip: Sequence[int] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the images nearest to each query, exactly: distances (Q, k) and rows (Q, k), nearest first.

        Args:
            queries: (Q, C) features, or (Q, 3 · side · side) values of thumbnails in [0, 1].
            k: how many.
            metric: "cosine" (1 minus it) or "euclidean" distance of features; pixels are euclidean.
            layer: which of the index's layers; its last where None is named.
            pixels: search thumbnails in place of features.
            skip: a row that is left out for each query, -1 for none.

        Raises:
            InputError: the queries have another number of values than the images, or some that are not finite.
        """
        name = "thumbnails" if pixels else f"features.{self.number(layer)}"

        def vectors() -> Iterator[Tensor]:
            return (rows.flatten(1) / 255 if pixels else rows for rows in self.rows(name))

        check_queries(queries, next(iter(vectors())).shape[1])
        left = None if skip is None else torch.as_tensor(skip, device="cpu")
        return nearest_vectors(queries.cpu(), vectors, k, "euclidean" if pixels else metric, skip=left)

    def find(self, queries: Tensor, k: int, **given: Any) -> list[list[Found]]:
        """Return the images nearest to each query in words; see `search`."""
        predicted = self.predicted()
        return [
            [
                Found(self.ids[row], self.labels[row], predicted[row] if predicted else None, distance)
                for distance, row in zip(distances, rows, strict=True)
            ]
            for distances, rows in zip(*(values.tolist() for values in self.search(queries, k, **given)), strict=True)
        ]

    def agreement(self, k: int, *, metric: Metric = "cosine", layer: str | None = None, pixels: bool = False) -> float:
        """Return the share of the k nearest neighbours that have the label of their image, over all that have one.

        Raises:
            InputError: no image has a label.
        """
        labelled = [row for row, label in enumerate(self.labels) if label is not None]
        if not labelled:
            raise InputError(f"the images of the index in '{self.folder}' have no labels; build it with --labels")
        numbers = {label: number for number, label in enumerate(dict.fromkeys(self.labels))}
        label = torch.tensor([numbers[name] for name in self.labels], device="cpu")
        queries = self.vectors(labelled, layer, pixels=pixels)
        _, rows = self.search(queries, k, metric=metric, layer=layer, pixels=pixels, skip=labelled)
        return float((label[rows] == label[labelled, None]).double().mean())

    def picture(self, row: int, model: Model) -> Image.Image:
        """Return what the network saw of an image.

        Raises:
            InputError: there is no such row, or its file is gone or is another one than was looked at.
        """
        entry = self.entry(row)
        raw = entry.item.read()
        if hashlib.sha256(raw).hexdigest() != entry.digest:
            raise InputError(f"image '{entry.item.id}' has changed since the index was made; build another one")
        image = open_image(raw)
        return image if model.preprocess is None else model.preprocess.picture(image)

    def thumbnail(self, row: int) -> Image.Image:
        """Return the small picture of an image.

        Raises:
            InputError: there is no such row.
        """
        part, inside = self._place(row)
        (small,) = self._parts[part].rows("thumbnails", [inside])
        return Image.fromarray(small.permute(1, 2, 0).contiguous().numpy())


def verify(folder: str | Path) -> list[str]:
    """Return what is wrong with the files of an index, [] where nothing is: each is read and its SHA-256 compared.

    Raises:
        SaveError: there is no finished index.
    """
    place = Path(folder).expanduser().absolute()
    manifest = read_manifest(place)
    if not manifest["parts"]:
        raise SaveError(f"the index in '{folder}' is not finished; run cnnviz index build again, and it goes on")
    return [
        f"{told['file']} is {'not what was written' if (place / told['file']).is_file() else 'missing'}"
        for told in (*manifest["parts"], manifest["summary"])
        if not intact(place, told) or sha256(place / told["file"]) != told["sha256"]
    ]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an index, finished or not.

    Raises:
        SaveError: there is none, or one of another version.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["kind"] != "cnnviz index" or manifest["format"] != FORMAT:
            raise SaveError(f"'{folder}' holds an index of another version; this one reads format {FORMAT}")
        if missing := {"model", "recipe", "datasets", "parts", "summary", "left_out", "pending"} - manifest.keys():
            raise SaveError(f"{MANIFEST} in '{folder}' has no {min(missing)}; build the index in another folder")
    except FileNotFoundError:
        raise SaveError(f"'{folder}' holds no index; cnnviz index build makes one") from None
    except SaveError:  # an OSError too
        raise
    except NotADirectoryError:
        raise SaveError(f"'{folder}' is a file; give the folder of an index") from None
    except OSError as error:
        raise SaveError(f"the index in '{folder}' cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SaveError(
            f"{MANIFEST} in '{folder}' is damaged or was not written by cnnviz; put back a copy of it, or delete the "
            "folder and build the index anew"
        ) from error
    return manifest


def about(model: Model) -> dict[str, Any]:
    """Return what tells a network from others, and its class names, as JSON values."""
    return {
        "name": model.name,
        "source": model.source,
        "digest": model.digest,
        "preprocess": repr(model.preprocess),
        "classes": None if model.labels is None else list(model.labels),
    }


def refuse_other(known: dict[str, Any], mine: dict[str, Any], what: str) -> None:
    """Refuse a network that features are not of; both as `about` tells them.

    Raises:
        SaveError: weights or preprocessing differ.
    """
    for name in ("digest", "preprocess"):
        if mine[name] != known[name]:
            raise SaveError(
                f"{what} was made with other {'weights' if name == 'digest' else name}: {known['name']} "
                f"{known[name][:60]}, got {mine['name']} {mine[name][:60]}; give the network that it was made with"
            )
