"""Boxes of images, as ``cnnviz evaluate --boxes`` reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

import cnnviz
from cnnviz.cli.evaluate import _Marked
from cnnviz.data import demo_picture

HEAD = "image,left,top,right,bottom,label\n"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two photographs of one name, by paths from the current folder."""
    monkeypatch.chdir(tmp_path)
    made = [Path("a/cat.png"), Path("b/a/cat.png")]
    for place in made:
        place.parent.mkdir(parents=True)
        demo_picture().resize((64, 64)).save(place)
    return made


def read(text: str, places: list[Path]) -> _Marked:
    Path("boxes.csv").write_text(text)
    model = cnnviz.Model(cnnviz.load_model().module, preprocess=cnnviz.Preprocess(resize=64, crop=(64, 64)))
    return _Marked(Path("boxes.csv"), places, model)


@pytest.mark.parametrize("named", ["a/cat.png", "./a/cat.png", "b/../a/cat.png", "ABSOLUTE"])
def test_an_image_is_named_by_any_path_to_it(named: str, places: list[Path]) -> None:
    named = str(places[0].absolute()) if named == "ABSOLUTE" else named
    made = read(f"{HEAD}{named},1,2,3,4,tabby\nb/a/cat.png,5,6,7,8,3\n", places)
    assert [boxes.tolist() for boxes in made.boxes] == [[[1, 2, 3, 4]], [[5, 6, 7, 8]]]
    assert made.labels == ["tabby", 3]
    absolute = read(f"{HEAD}{named},1,2,3,4\n", [place.absolute() for place in places])
    assert [len(boxes) for boxes in absolute.boxes] == [1, 0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (",1,2,3,4", "boxes.csv, line 3: nothing in column image; expected the name of one"),
        ("a/cat.png", "boxes.csv, line 3: nothing in column left; expected four numbers"),
        ("a/cat.png,1, ,3,4", "boxes.csv, line 3: nothing in column top; expected four numbers"),
        ("a/cat.png,1,2,3,4O", "boxes.csv, line 3, column bottom: could not convert string to float: '4O'; expected"),
        ("a/cat.png,3,2,1,4", r"boxes.csv, line 3, boxes of 'a/cat.png': got \[3.0, 2.0, 1.0, 4.0\], expected left"),
        ("cat.png,1,2,3,4", "line 3: 'cat.png' may be a/cat.png or b/a/cat.png; give more of its path"),
        ("/elsewhere/a/cat.png,1,2,3,4", "line 3: '/elsewhere/a/cat.png' is none of the images"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_column(row: str, told: str, places: list[Path]) -> None:
    with pytest.raises(cnnviz.InputError, match=told):
        read(f"{HEAD}a/cat.png,1,2,3,4\n{row}\n", places)
