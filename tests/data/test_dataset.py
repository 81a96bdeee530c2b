"""Data sets in all their forms list the same images in the same order, and say what is wrong with them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from cnnviz import CnnvizError, InputError, Preprocess
from cnnviz.data import Item, open_dataset
from cnnviz.data.decoding import decoded


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, 255 - shade)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    for label, shades in (("bird", (10, 20)), ("ant", (30,))):
        (place / label).mkdir(parents=True)
        for shade in shades:
            (place / label / f"{shade}.png").write_bytes(png(shade))
    return place


def test_a_folder_is_listed_by_name_with_its_sub_folders_as_labels(folder: Path) -> None:
    made = open_dataset(folder)
    assert [(item.id, item.label) for item in made.items] == [
        ("ant/30.png", "ant"),
        ("bird/10.png", "bird"),
        ("bird/20.png", "bird"),
    ]
    assert made.items[1].read() == png(10)
    assert open_dataset(folder).digest == made.digest
    (folder / "bird" / "10.png").rename(folder / "bird" / "15.png")
    assert open_dataset(folder).digest != made.digest


def test_labels_come_from_a_csv_file_where_one_is_given(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\nant/30.png,insect\n20.png,gull\n")
    assert [item.label for item in open_dataset(folder, labels).items] == ["insect", None, "gull"]
    labels.write_text("other.png,insect\n")
    with pytest.raises(InputError, match=r"has none of the ids, such as 'ant/30\.png'"):
        open_dataset(folder, labels)
    labels.write_text("alone\n")
    with pytest.raises(InputError, match=r"expected an id and a label"):
        open_dataset(folder, labels)


def test_a_manifest_has_paths_uris_ids_and_labels(folder: Path, tmp_path: Path) -> None:
    places = ["pictures/bird/10.png", str(folder / "ant" / "30.png"), (folder / "bird" / "20.png").as_uri()]
    table = pyarrow.table({"uri": places, "label": [1, 0, None], "id": ["a", None, "c"]})
    parquet.write_table(table, tmp_path / "all.parquet")
    made = open_dataset(tmp_path / "all.parquet")
    assert [(item.id, item.label) for item in made.items] == [("a", "1"), (places[1], "0"), ("c", None)]
    assert [item.read() for item in made.items] == [png(10), png(30), png(20)]
    parquet.write_table(pyarrow.table({"where": places}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="columns where; expected one of path, uri"):
        open_dataset(tmp_path / "other.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(InputError, match="cannot be read"):
        open_dataset(tmp_path / "bad.parquet")


def test_tars_are_read_at_their_places(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard, keys in (("b.tar", ["x"]), ("a.tar", ["00/y", "00/z"])):
        with tarfile.open(shards / shard, "w") as archive:
            for number, key in enumerate(keys):
                files = {"cls": b"7\n"} if number else {"json": json.dumps({"label": "ant"}).encode()}
                for ending, content in {**files, "png": png(number), "txt": b"a caption"}.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    made = open_dataset(shards)
    assert [(item.id, item.label) for item in made.items] == [
        ("a.tar/00/y", "ant"),
        ("a.tar/00/z", "7"),
        ("b.tar/x", "ant"),
    ]
    assert [item.read() for item in made.items] == [png(0), png(1), png(0)]
    assert len(open_dataset(shards / "b.tar")) == 1
    (shards / "c.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"c\.tar' is damaged, compressed, or no tar file"):
        open_dataset(shards)


@pytest.mark.parametrize(
    ("place", "told"), [("none", "does not exist"), ("file.txt", "is no folder"), ("empty", "no images")]
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, place: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(InputError, match=told):
        open_dataset(tmp_path / place)


def test_what_is_doubtful_is_refused(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(folder / "old.tar", "w"):
        pass
    with pytest.raises(InputError, match=r"holds both old\.tar and ant/30\.png"):
        open_dataset(folder)
    (folder / "old.tar").unlink()
    (folder / "ant" / "10.png").write_bytes(png(10))
    labels = tmp_path / "labels.csv"
    labels.write_text("10.png,gull\n")
    with pytest.raises(InputError, match="which is the name of 2 images; give whole ids"):
        open_dataset(folder, labels)
    with tarfile.open(tmp_path / "double.tar", "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a.png")
            info.size = len(png(1))
            archive.addfile(info, io.BytesIO(png(1)))
    with pytest.raises(InputError, match=r"holds a\.png twice"):
        open_dataset(tmp_path / "double.tar")


def test_two_images_of_one_id_are_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"path": ["a.png", "b.png"], "id": ["1", "1"]}), tmp_path / "all.parquet")
    with pytest.raises(InputError, match="two images with the id '1'"):
        open_dataset(tmp_path / "all.parquet")


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_decoded_in_order_and_bad_ones_told(folder: Path, workers: int) -> None:
    (folder / "bird" / "15.png").write_bytes(png(15)[:40])
    (folder / "bird" / "17.png").symlink_to(folder / "gone.png")
    items = open_dataset(folder).items
    batches = [range(2), range(2, len(items))]
    found = [
        image
        for batch in decoded(items, batches, lambda image: image.resize((2, 2)), workers=workers)
        for image in batch
    ]
    assert [image.number for image in found] == list(range(len(items)))
    shades = {item.id: image.picture for item, image in zip(items, found, strict=True)}
    assert numpy.array_equal(shades["bird/20.png"], numpy.full((2, 2, 3), (20, 20, 235), numpy.uint8))
    assert shades["bird/15.png"] is None
    reasons = {item.id: image.why for item, image in zip(items, found, strict=True) if image.picture is None}
    assert sorted(reasons) == ["bird/15.png", "bird/17.png"]
    assert "no image" in reasons["bird/15.png"] or "damaged" in reasons["bird/15.png"]
    assert "No such file" in reasons["bird/17.png"], "a link to a file that is gone is not passed over in silence"


def _strange(image: Image.Image) -> Image.Image:
    raise ZeroDivisionError


def test_one_strange_picture_does_not_stop_the_others(folder: Path) -> None:
    (found,) = decoded(open_dataset(folder).items, [range(3)], _strange, workers=1)
    assert [image.why for image in found] == ["it cannot be resized and cropped (ZeroDivisionError())"] * 3


def test_a_picture_that_would_become_too_large_is_left_out() -> None:
    with pytest.raises(InputError, match="20000 x 1 pixels is too long"):
        Preprocess(resize=256, crop=(224, 224)).picture(Image.new("RGB", (20000, 1)))


def _killed(image: Image.Image) -> Image.Image:
    os.kill(os.getpid(), signal.SIGKILL)
    return image


def test_a_killed_process_is_an_error_that_says_so(folder: Path) -> None:
    with pytest.raises(CnnvizError, match="decodes images was killed"):
        list(decoded(open_dataset(folder).items, [range(3)], _killed, workers=1))


def test_contradictory_labels_are_refused(folder: Path, tmp_path: Path) -> None:
    name = open_dataset(folder).items[0].id
    (tmp_path / "twice.csv").write_text(f"{name},a\n{name},a\n")
    assert open_dataset(folder, tmp_path / "twice.csv").items[0].label == "a"
    (tmp_path / "other.csv").write_text(f"{name},a\n{name},b\n")
    with pytest.raises(InputError, match="the labels a and b"):
        open_dataset(folder, tmp_path / "other.csv")


DECODES = """
import sys, time
from cnnviz.data import Item, open_dataset
from cnnviz.data.decoding import decoded
items = open_dataset(sys.argv[1]).items * 500
batches = [range(n, n + 50) for n in range(0, len(items), 50)]
made = decoded(items, batches, lambda picture: picture.resize((256, 256)), workers=1)
next(made)
import multiprocessing
print(multiprocessing.active_children()[0].pid, flush=True)
time.sleep(60)
"""


def test_processes_that_decode_end_with_the_one_they_decode_for(folder: Path) -> None:
    """Even where that is killed, and the pipe between the two is full."""
    parent = subprocess.Popen([sys.executable, "-c", DECODES, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert runs(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 20
    while runs(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not runs(child)


def runs(process: int) -> bool:
    try:
        told = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return told.rpartition(")")[2].split()[0] != "Z"  # ended, and nobody has asked how


def test_what_can_never_be_read_is_told_from_what_cannot_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "file.png").write_bytes(png(10))
    for place in (tmp_path / "loop.png", tmp_path / "file.png" / "x.png", tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(InputError, match="image 'a' cannot be read: "):
            Item("a", None, str(place)).read()

    class AnswerError(Exception):
        def __init__(self, status: int) -> None:
            self.status = status

    for status, kind in ((403, InputError), (410, InputError), (429, CnnvizError), (503, CnnvizError)):

        def refused(*_: object, status: int = status) -> None:
            raise AnswerError(status)

        monkeypatch.setattr("fsspec.open", refused)
        with pytest.raises(CnnvizError, match="image 'a' cannot be read") as told:
            Item("a", None, "https://example.org/a.png").read()
        assert type(told.value) is kind
        assert ("for now" in str(told.value)) == (kind is CnnvizError)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(CnnvizError, match=r"cannot be read for now.*start again"):
        Item("a", None, str(tmp_path / "file.png")).read()
