"""``cnnviz index`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnnviz.data import demo_picture
from cnnviz.errors import SaveError
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
        (("query", "cats", "pictures", "--pixels", "--metric", "cosine"), "compared by euclidean distance"),
        (("query", "cats", "pictures", "--pixels", "--layer", "features"), "small pictures are of no layer"),
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


def test_of_a_folder_what_cannot_be_read_is_left_out(run: Run, pictures: Path) -> None:
    assert run("index", "build", "cats", "pictures", "--workers", "0")[0] == 0
    (pictures / "face" / "broken.png").write_bytes((pictures / "face" / "0.png").read_bytes()[:900])
    code, out, err = run("index", "query", "cats", "pictures/face", "-k", "1", "--json")
    assert (code, len(json.loads(out))) == (0, 2)
    assert "broken.png is left out: " in err
    code, _, err = run("explain", "occlusion", "pictures/face", "--window", "112", "--stride", "112")
    assert code == 0
    assert "broken.png is left out: " in err
    code, _, err = run("index", "query", "cats", "pictures/face/broken.png")
    assert (code, "broken.png" in err, "left out" in err) == (2, True, False)
    for name in ("0.png", "1.png"):
        (pictures / "face" / name).write_bytes(b"")
    code, _, err = run("index", "query", "cats", "pictures/face")
    assert (code, "none of 3 images can be read" in err) == (2, True)


def test_what_to_install_is_told_in_whole(run: Run) -> None:
    assert "cnnviz[index]" in " ".join(run("index", "export", "--help")[1].split())
    assert "cnnviz[maps]" in "".join(run("index", "map", "--help")[1].replace("│", " ").split())


def test_an_interrupted_export_goes_on(run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert run("index", "build", "cats", "pictures", "--workers", "0")[0] == 0
    monkeypatch.setattr("cnnviz.cli.index.Database.fill", fill)
    told = "cnnviz: interrupted; the same command goes on with the images that are not in cats.lance\n"
    assert run("index", "export", "cats", "cats.lance")[::2] == (130, told)


def test_where_a_map_cannot_be_written_none_is_made(run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("index", "build", "cats", "pictures", "--workers", "0")[0] == 0
    monkeypatch.setattr("cnnviz.cli.index.lay_out", lambda *_, **__: pytest.fail("the work was begun"))
    code, _, err = run("index", "map", "cats", "--out", "pictures")
    assert (code, "pictures' is a folder; give a file" in err) == (2, True)


def test_a_database_that_is_not_there_is_not_made(run: Run, pictures: Path) -> None:
    assert run("index", "build", "cats", "pictures", "--workers", "0")[0] == 0
    code, _, err = run("index", "query", "cats", "--id", "face/0.png", "--database", "nowhere")
    assert (code, "nor is there such a folder; cnnviz index export writes one" in err) == (2, True)
    assert not Path("nowhere").exists()


def test_a_map_is_made_where_the_index_may_not_be_written_to(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("index", "build", "cats", "pictures", "--workers", "0")[0] == 0

    def refuse(path: Path, *_: object) -> None:
        raise SaveError(f"'{path}' cannot be written (Read-only file system)")

    monkeypatch.setattr("cnnviz.index.maps.write_tensors", refuse)
    with pytest.warns(UserWarning, match="images that are added later will move the others"):
        code, out, _ = run("index", "map", "cats", "--method", "pca", "--out", "map.html")
    assert code == 0
    assert Path(out.strip()).exists()


@pytest.mark.parametrize("content", ['{"a": 1}', '{"kind": "cnn', "[]"])
def test_a_damaged_manifest_says_what_to_do(run: Run, pictures: Path, content: str) -> None:
    assert run("index", "build", "cats", "pictures", "--workers", "0")[0] == 0
    Path("cats", "index.json").write_text(content)
    for command in (("build", "cats", "pictures"), ("query", "cats", "--id", "face/0.png"), ("verify", "cats")):
        code, _, err = run("index", *command)
        assert (code, "delete the folder and build the index anew" in err) == (2, True)
    code, _, err = run("index", "query", "pictures/face/0.png", "--id", "x")
    assert (code, "is a file; give the folder of an index" in err) == (2, True)
