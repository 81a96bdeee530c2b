"""``cnnviz index`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnnviz.data import demo_picture
from tests.conftest import Run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    for label, box in (("face", (90, 30, 300, 240)), ("whole", (0, 0, 451, 300))):
        (place / label).mkdir(parents=True)
        for turn in (0, 1):
            picture = demo_picture().crop(box)
            (picture.transpose(0) if turn else picture).save(place / label / f"{turn}.png")
    return place


def test_from_a_folder_to_neighbours_and_a_map(run: Run, pictures: Path) -> None:
    (pictures / "broken.jpg").write_bytes(b"nothing")
    code, out, err = run("index", "build", "cats", "pictures", "--workers", "0")
    assert (code, "4 images, layers features" in out) == (0, True), err
    assert "broken.jpg is left out: " in err
    code, out, _ = run("index", "query", "cats", "pictures/face/0.png", "-k", "2", "--json")
    rows = json.loads(out)
    assert [row["id"] for row in rows] == ["face/0.png", "face/1.png"]
    assert rows[0]["distance"] < 1e-6 < rows[1]["distance"]
    code, out, _ = run("index", "query", "cats", "--id", "whole/1.png", "-k", "1")
    assert "whole/0.png" in out
    code, out, _ = run("index", "agreement", "cats", "-k", "1", "--json")
    shares = json.loads(out)
    assert shares["features"] == 1.0 > shares["pixels"], "to the network a mirrored cat is the cat, to pixels it is not"
    code, out, _ = run("index", "export", "cats", "database")
    assert (code, "4 images" in out) == (0, True)
    code, out, _ = run(
        "index",
        "query",
        "cats",
        "pictures/face/0.png",
        "--database",
        "database",
        "--where",
        "label = 'whole'",
        "--json",
    )
    assert {row["label"] for row in json.loads(out)} == {"whole"}
    code, out, _ = run("index", "verify", "cats")
    assert "every file is what was written" in out
    code, out, _ = run("index", "map", "cats", "--method", "pca", "--out", "map.html")
    assert code == 0
    assert Path(out.strip()).read_text().count("data:image/jpeg") == 1
    code, out, err = run("explain", "top-patches", "--index", "cats", "--channels", "5", "--top", "3")
    assert code == 0, err
    demo_picture().rotate(90, expand=True).save(pictures / "turned.png")
    code, out, _ = run("index", "add", "cats", "pictures", "--workers", "0", "--json")
    assert json.loads(out)["images"] == 5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("query", "cats"), "holds no index"),
        (("query", "cats", "--where", "label = 'cat'"), "give --database too"),
        (("build", "cats", "nowhere"), "does not exist"),
        (("add", "cats", "pictures"), "holds no index"),
        (("build", "cats", "pictures", "--layer", "no"), "no layer 'no'"),
        (("build", "cats", "pictures", "--engine", "spark"), "expected 'local' or 'ray'"),
    ],
)
def test_bad_input_is_one_line(run: Run, pictures: Path, arguments: tuple[str, ...], told: str) -> None:
    code, _, err = run("index", *arguments)
    assert (code, err.count("\n")) == (2, 1), err
    assert told in err
