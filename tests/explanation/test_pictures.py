"""A folder of results for many pictures is known again, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import cnnviz
from cnnviz import Gallery, Heatmap, SaveError
from cnnviz.explanation.pictures import PictureFolder

PAINTING = Gallery(images=torch.rand(1, 3, 5, 4, generator=torch.Generator().manual_seed(0)))
SOURCES = {"a": "in/a.jpg", "b": "in/b.jpg"}


def pictures(folder: Path) -> dict[str, str]:
    known: dict[str, str] = json.loads((folder / "pictures.json").read_text())["pictures"]
    return known


def test_one_picture_is_a_file_and_anything_else_a_folder(tmp_path: Path) -> None:
    made = PictureFolder(tmp_path / "out", SOURCES)
    made.add("a", PAINTING)
    made.add("b", Heatmap(values=torch.zeros(1, 1, 2, 2)))
    made.finish({})
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (4, 5)
    assert cnnviz.load(tmp_path / "out" / "b").equals(Heatmap(values=torch.zeros(1, 1, 2, 2)))
    assert pictures(tmp_path / "out") == SOURCES


def test_a_folder_whose_maker_was_killed_is_known_again(tmp_path: Path) -> None:
    PictureFolder(tmp_path / "out", SOURCES).add("a", PAINTING)
    again = PictureFolder(tmp_path / "out", {"b": "in/b.jpg"})
    again.add("b", PAINTING)
    again.finish({"in/c.jpg": "no image"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "pictures.json"]
    assert json.loads((tmp_path / "out" / "pictures.json").read_text())["left_out"] == {"in/c.jpg": "no image"}


def test_a_result_takes_the_place_of_one_in_the_other_form(tmp_path: Path) -> None:
    heatmap, sources = Heatmap(values=torch.zeros(1, 1, 2, 2)), {"a.jpg": "in/a.jpg.png"}
    for result, there in ((PAINTING, "a.jpg.png"), (heatmap, "a.jpg"), (PAINTING, "a.jpg.png")):
        made = PictureFolder(tmp_path / "out", sources)
        made.add("a.jpg", result)
        made.finish({})
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [there, "pictures.json"]
    PictureFolder(tmp_path / "out", sources).add("a.jpg", heatmap)
    (tmp_path / "out" / "a.jpg" / "thesis.txt").touch()
    with pytest.raises(SaveError, match=r"holds something else than an explanation: thesis\.txt"):
        PictureFolder(tmp_path / "out", sources).add("a.jpg", PAINTING)
    assert (tmp_path / "out" / "a.jpg" / "thesis.txt").exists()


def test_nothing_made_is_nothing_written(tmp_path: Path) -> None:
    PictureFolder(tmp_path / "out", SOURCES).finish({"in/a.jpg": "no image"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("manifest", [None, "no JSON", "[]", '{"pictures": ["mine.png"]}', '{"pictures": {"*": "x"}}'])
def test_other_folders_are_left_alone(manifest: str | None, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    if manifest is not None:
        (tmp_path / "pictures.json").write_text(manifest)
    with pytest.raises(SaveError, match="holds something else than pictures made by cnnviz"):
        PictureFolder(tmp_path, SOURCES)
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
