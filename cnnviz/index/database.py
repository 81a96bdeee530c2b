"""Features in a LanceDB database, on disk or in an object store: searched with conditions, if large approximately."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from ..errors import InputError, OptionError, SaveError
from .search import Metric, check, check_queries
from .store import Found, Index

_ABOUT: Final = b"cnnviz"
_COLUMNS: Final = ("id", "label", "prediction", "digest")
_TRANSACTION: Final = 20_000  # images
_PROBES: Final = 64  # partitions of an approximate index that are looked into
_REFINED: Final = 100  # times k candidates whose true distances are computed


class Database:
    """Features of an index's images at one layer, in a LanceDB table; ``pip install 'cnnviz[index]'``.

    Attributes:
        uri: a folder, or ``s3://…`` and what else LanceDB reads.
        about: of what network and layer.
    """

    def __init__(self, uri: str, table: str = "images") -> None:
        """Open a database that `fill` wrote.

        Raises:
            SaveError: there is none, or the table is not of cnnviz.
            InputError: LanceDB is not installed.
        """
        self.uri = uri
        if "://" not in uri and not Path(uri).is_dir():  # LanceDB would make it
            raise SaveError(
                f"'{uri}' has no table '{table}', nor is there such a folder; cnnviz index export writes one"
            )
        try:
            self._table: Any = _connect(uri).open_table(table)
        except (ValueError, OSError, RuntimeError) as error:
            raise SaveError(f"'{uri}' has no table '{table}' ({error}); cnnviz index export writes one") from error
        told = (self._table.schema.metadata or {}).get(_ABOUT)
        if told is None:
            raise SaveError(f"table '{table}' in '{uri}' was not written by cnnviz; give another name")
        self.about: dict[str, Any] = json.loads(told)

    def __len__(self) -> int:
        return int(self._table.count_rows())

    @classmethod
    def fill(cls, index: Index, uri: str, table: str = "images", *, layer: str | None = None) -> Database:
        """Write the images of an index to a table, or those that it does not have, by their ids.

        What was interrupted can be done again: it goes on with the images that are not there.

        Args:
            index: the images.
            uri: a folder, or ``s3://…``.
            table: its name.
            layer: whose features; the index's last by default.

        Raises:
            SaveError: the table is of another network or layer.
            InputError: LanceDB is not installed.
        """
        database = _connect(uri)
        import pyarrow as arrow  # LanceDB's

        number = index.number(layer)
        about = {
            "digest": index.about["digest"],
            "preprocess": index.about["preprocess"],
            "layer": index.layers[number],
        }
        width = next(index.rows(f"features.{number}")).shape[1]
        fields = [*((name, arrow.string()) for name in _COLUMNS), ("vector", arrow.list_(arrow.float32(), width))]
        schema = arrow.schema(fields, metadata={_ABOUT: json.dumps({**about, "name": index.about["name"]})})
        if table in database.list_tables().tables:
            there = cls(uri, table)
            other = [name for name, value in about.items() if there.about[name] != value]
            if other:
                raise SaveError(f"table '{table}' in '{uri}' is of another {other[0]}; give another name")
        else:
            database.create_table(table, schema=schema)
        made = cls(uri, table)
        for rows, vectors in _parts(index, f"features.{number}"):
            columns = [arrow.array([row[name] for row in rows], arrow.string()) for name in _COLUMNS]
            values = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.flatten().numpy()), width)
            part = arrow.Table.from_arrays([*columns, values], schema=schema)
            made._table.merge_insert("id").when_not_matched_insert_all().execute(part)
        return made

    def accelerate(self, metric: Metric = "cosine") -> None:
        """Build an approximate index (inverted file, product quantisation), which searches use from then on."""
        from lancedb.index import IvfPq

        self._table.create_index("vector", config=IvfPq(distance_type=_DISTANCES[metric]), replace=True)

    def check(self, index: Index, layer: str | None = None) -> None:
        """Refuse an index that the features are not of.

        Raises:
            SaveError: they are of another network or layer.
        """
        mine = {**index.about, "layer": index.layers[index.number(layer)]}
        other = [name for name in ("digest", "preprocess", "layer") if mine[name] != self.about[name]]
        if other:
            what = "network" if other[0] == "digest" else other[0]
            raise SaveError(
                f"the database in '{self.uri}' is of another {what} ({self.about['name']}, {self.about['layer']}) "
                f"than the index in '{index.folder}'; export this one to another table"
            )

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        metric: Metric = "cosine",
        where: str | None = None,
        exact: bool = False,
        skip: Sequence[str | None] | None = None,
    ) -> list[list[Found]]:
        """Return the images nearest to each query, (Q, C), nearest first.

        Args:
            queries: features.
            k: how many.
            metric: "cosine" or "euclidean".
            where: a condition in SQL on id, label, prediction or digest, such as ``label = 'cat'``.
            exact: do without the approximate index.
            skip: the id of an image that is left out for each query, None for none.

        Images whose features are all 0 have no cosine, and are not found by it.

        Raises:
            OptionError: the condition cannot be read, or `k` or the metric is none.
            InputError: the queries have another number of values than the features.
        """
        check(k, metric)
        check_queries(queries, self._table.schema.field("vector").type.list_size)
        found = []
        for query, own in zip(queries.float().cpu().numpy(), skip or [None] * len(queries), strict=True):
            asked = self._table.search(query).distance_type(_DISTANCES[metric]).limit(k + 1)
            asked = asked.bypass_vector_index() if exact else asked.nprobes(_PROBES).refine_factor(_REFINED)
            try:
                asked = asked if where is None else asked.where(where, prefilter=True)
                rows = asked.select([*_COLUMNS, "_distance"]).to_arrow().to_pylist()
            except (ValueError, RuntimeError) as error:
                if where is None:
                    raise
                raise OptionError(f"where: '{where}' cannot be searched for: {error}") from error
            found.append([_found(row, metric) for row in rows if row["id"] != own][:k])
        return found


_DISTANCES: Final[dict[Metric, Literal["cosine", "l2"]]] = {"cosine": "cosine", "euclidean": "l2"}


def _found(row: dict[str, Any], metric: Metric) -> Found:
    away = max(float(row["_distance"]), 0.0)  # LanceDB's euclidean distances are squares
    return Found(row["id"], row["label"], row["prediction"], away**0.5 if metric == "euclidean" else away)


def _connect(uri: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise InputError("a database needs LanceDB; pip install 'cnnviz[index]'") from error
    try:
        return lancedb.connect(uri)
    except (ValueError, OSError, RuntimeError) as error:
        raise SaveError(f"'{uri}' cannot be connected to: {error}") from error


def _parts(index: Index, name: str) -> Iterator[tuple[list[dict[str, str | None]], Tensor]]:
    """Yield the columns and features of many images at a time, since each such transaction takes its time."""
    predicted = index.predicted()
    first = 0
    for vectors in _many(index.rows(name)):
        rows: list[dict[str, str | None]] = []
        for row in range(first, first + len(vectors)):
            entry = index.entry(row)
            told = predicted[row] if predicted else None
            rows.append({"id": entry.item.id, "label": entry.item.label, "prediction": told, "digest": entry.digest})
        yield rows, vectors
        first += len(vectors)


def _many(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Join pieces to larger ones."""
    kept: list[Tensor] = []
    for piece in pieces:
        kept.append(piece)
        if sum(map(len, kept)) >= _TRANSACTION:
            yield torch.cat(kept)
            kept = []
    if kept:
        yield torch.cat(kept)
