"""A database finds what the index finds, with conditions, and takes each image once."""

from __future__ import annotations

from pathlib import Path

import lancedb
import pyarrow
import pytest
import torch

from cnnviz import InputError, Model, OptionError, SaveError
from cnnviz.engines import build_index
from cnnviz.index import Database, Index
from tests.index.conftest import COUNT, fill, small_model


@pytest.fixture
def index(model: Model, images: Path, tmp_path: Path) -> Index:
    return build_index(model, images, tmp_path / "index", layer=("1", "4"), workers=0)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "database")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_it_finds_what_the_index_finds(index: Index, place: str, metric: str) -> None:
    made = Database.fill(index, place, layer="1")
    queries = index.features("1")[:4] + 0.01
    theirs = Database(place).search(queries, 5, metric=metric, exact=True)
    mine = index.find(queries, 5, metric=metric, layer="1")
    assert len(made) == COUNT
    for row, expected in zip(theirs, mine, strict=True):
        assert [one.id for one in row] == [one.id for one in expected]
        assert [one.distance for one in row] == pytest.approx([one.distance for one in expected], rel=1e-3, abs=1e-6)
        assert [(one.label, one.prediction) for one in row] == [(one.label, one.prediction) for one in expected]


def test_conditions_choose_among_the_images(index: Index, place: str) -> None:
    found = Database.fill(index, place).search(index.features()[:1], COUNT, where="label = 'red'")
    assert {one.id for one in found[0]} == {name for name in index.ids if name.startswith("red")}
    with pytest.raises(OptionError, match="where: 'label === 1' cannot be searched for"):
        Database(place).search(index.features()[:1], 3, where="label === 1")
    with pytest.raises(InputError, match=r"got \(1, 3\), expected \(Q, 5\)"):
        Database(place).search(torch.ones(1, 3), 3)


def test_images_are_there_once(index: Index, model: Model, images: Path, place: str) -> None:
    Database.fill(index, place)
    assert len(Database.fill(index, place)) == COUNT
    fill(images, 4, first=COUNT)
    more = build_index(model, images, index.folder, add=True, workers=0)
    assert len(Database.fill(more, place)) == COUNT + 4


def test_another_network_or_table_is_refused(index: Index, model: Model, place: str) -> None:
    with pytest.raises(SaveError, match="has no table 'images'"):
        Database(place)
    Database.fill(index, place, layer="1").check(index, "1")
    with pytest.raises(SaveError, match="is of another layer"):
        Database.fill(index, place, layer="4")
    with pytest.raises(SaveError, match=r"is of another layer \(Sequential, 1\)"):
        Database(place).check(index, "4")
    other = build_index(small_model(seed=1), index.entry(0).item.place.rpartition("/")[0], place + "-other", layer="1")
    with pytest.raises(SaveError, match="is of another network"):
        Database(place).check(other, "1")
    lancedb.connect(place).create_table("foreign", pyarrow.table({"id": ["a"]}))
    with pytest.raises(SaveError, match="was not written by cnnviz"):
        Database(place, "foreign")
