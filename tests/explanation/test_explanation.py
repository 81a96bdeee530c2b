"""Results: frozen, comparable, saved whole or not at all, read back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import cnnviz
from cnnviz import Gallery, Heatmap, Neighbours, Projection, Provenance, SaveError
from cnnviz.explanation.saving import FOLDER
from cnnviz.explanation.types import Explanation

PROVENANCE = Provenance(technique="grad-cam", options={"relu": True, "window": [3, 4]}, layer=["a", "b#1"], seconds=1.5)


def examples() -> list[Explanation]:
    draw = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draw)

    return [
        Heatmap(
            values=rand(2, 1, 7, 7) - 0.5,
            scores=rand(2),
            target=torch.tensor([3, 4]),
            pictures=rand(2, 3, 32, 48),
            captions=("first", "zweites é"),
            provenance=PROVENANCE,
        ),
        Heatmap(values=rand(1, 3, 32, 32) - 0.5, pictures=rand(1, 3, 32, 32), provenance=PROVENANCE),
        Heatmap(values=rand(1, 70, 5, 6).half(), provenance=PROVENANCE),
        Gallery(images=rand(12, 3, 5, 5), rows=torch.arange(12), values=rand(12, 3, 5, 5), captions=("filters",)),
        Gallery(images=rand(2, 3, 128, 128), history=rand(2, 10).double(), captions=("one", "two")),
        Gallery(images=rand(2, 3, 8, 8), sources=torch.tensor([0, 0]), pictures=rand(1, 3, 8, 8)),
        Projection(points=rand(9, 2) * 40, pictures=rand(9, 3, 16, 16), items=tuple("abcdefghi"), marked=(0, 3)),
        Projection(points=rand(4, 2)),
        Neighbours(
            indices=torch.tensor([[3, 1]]), distances=rand(1, 2), pictures=rand(1, 3, 8, 8), found=rand(1, 2, 3, 8, 8)
        ),
        Neighbours(indices=torch.tensor([[3, 1]]), distances=rand(1, 2)),
    ]


@pytest.mark.parametrize("made", examples(), ids=repr)
def test_saved_and_loaded_equals_what_was_written(made: Explanation, tmp_path: Path) -> None:
    folder = made.save(tmp_path / "deep" / "result")
    loaded = cnnviz.load(folder)
    assert type(loaded) is type(made)
    assert loaded.equals(made)
    assert made.equals(loaded)
    for field in dataclasses.fields(made):
        kept, given = getattr(loaded, field.name), getattr(made, field.name)
        assert torch.equal(kept, given) if isinstance(given, torch.Tensor) else kept == given, field.name
    if made.provenance is not None:
        assert loaded.provenance is not None
        assert loaded.provenance.seconds == 1.5
    figures = sorted(folder.glob("figure-*.png"))
    assert figures
    for figure in figures:
        with Image.open(figure) as image:
            image.verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert [path.name for path in folder.parent.iterdir()] == ["result"], "no scratch folder is left"


@pytest.mark.parametrize("made", examples(), ids=repr)
def test_it_shows_itself(made: Explanation) -> None:
    assert made._repr_html_().count("data:image/png;base64,") == len(made.draw())
    figure = made.figure()
    assert len(figure.axes) >= 1


def test_a_notebook_is_told_what_each_picture_is_and_that_there_are_more() -> None:
    few = examples()[0]._repr_html_()
    assert 'alt="Heatmap: first"' in few
    assert 'alt="Heatmap: zweites é"' in few
    assert "The first" not in few
    many = Heatmap(values=torch.rand(17, 1, 4, 4), captions=("<b>",) * 17)
    shown = many._repr_html_()
    assert shown.count("<img") == 16
    assert "<p>The first 16; save(folder) writes all.</p>" in shown
    assert 'alt="Heatmap: &lt;b&gt;"' in shown
    assert many.figure().get_suptitle() == "The first 16; save(folder) writes all."
    assert dataclasses.replace(many, values=many.values[:16]).figure().get_suptitle() == ""


@pytest.mark.parametrize(
    "made",
    [
        Gallery(images=torch.rand(0, 3, 8, 8)),
        Heatmap(values=torch.rand(0, 1, 8, 8), pictures=torch.rand(0, 3, 8, 8)),
        Heatmap(values=torch.rand(1, 0, 8, 8)),
        Projection(points=torch.rand(0, 2)),
        Projection(points=torch.rand(0, 2), pictures=torch.rand(0, 3, 8, 8)),
        Neighbours(indices=torch.zeros(0, 3, dtype=torch.long), distances=torch.zeros(0, 3)),
    ],
    ids=repr,
)
def test_nothing_is_shown_as_nothing_and_kept(made: Explanation, tmp_path: Path) -> None:
    assert made.draw() == []
    assert f"{made!r}: nothing to show" in made._repr_html_()
    assert [text.get_text() for text in made.figure().texts] == ["nothing to show"]
    folder = made.save(tmp_path / "out")
    assert cnnviz.load(folder).equals(made)
    assert sorted(path.name for path in folder.iterdir()) == ["explanation.json", "tensors.safetensors"]


def test_large_gallery_pictures_are_saved_plain_too(tmp_path: Path) -> None:
    made = examples()[4]
    made.save(tmp_path / "out")
    with Image.open(tmp_path / "out" / "image-001.png") as image:
        assert image.size == (128, 128)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 5]), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    fill=st.sampled_from([0.0, -1.0, 1e-30, 3e4]),
    data=st.data(),
)
def test_any_heatmap_survives_saving_and_drawing(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    fill: float,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    values = torch.full(shape, fill).to(dtype)
    values.view(-1)[0] = data.draw(st.floats(-1e4, 1e4, width=16))
    made = Heatmap(values=values)
    assert cnnviz.load(made.save(tmp_path_factory.mktemp("any") / "x")).equals(made)


def test_equality_is_of_bits_shape_type_and_provenance_but_not_of_time() -> None:
    made = examples()[0]
    assert isinstance(made, Heatmap)
    assert made.equals(dataclasses.replace(made, provenance=dataclasses.replace(PROVENANCE, seconds=9.0)))
    assert not made.equals(dataclasses.replace(made, provenance=dataclasses.replace(PROVENANCE, seed=9)))
    assert not made.equals(dataclasses.replace(made, values=made.values.double()))
    assert not made.equals(dataclasses.replace(made, values=made.values.reshape(2, 1, 49, 1)))
    assert not made.equals(dataclasses.replace(made, values=torch.nextafter(made.values, made.values + 1)))
    assert not made.equals(dataclasses.replace(made, target=None))
    assert not made.equals(dataclasses.replace(made, captions=("first", "second")))
    assert not made.equals("a heatmap")
    nan = Heatmap(values=torch.full((1, 1, 2, 2), math.nan))
    assert nan.equals(nan)


def test_equality_is_of_every_field() -> None:
    made = examples()[6]
    assert isinstance(made, Projection)
    assert made.equals(dataclasses.replace(made))
    assert not made.equals(dataclasses.replace(made, items=tuple("ABCDEFGHI")))
    assert not made.equals(dataclasses.replace(made, marked=(0,)))
    film = Gallery(images=torch.zeros(2, 3, 8, 8), frame_rate=25.0)
    assert film.equals(dataclasses.replace(film, frame_rate=25))
    assert not film.equals(dataclasses.replace(film, frame_rate=24.0))
    assert not film.equals(dataclasses.replace(film, frame_rate=None))


@pytest.mark.parametrize("rate", [25, 12.5])
def test_the_rate_of_a_film_is_kept(rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    loaded = cnnviz.load(Gallery(images=torch.zeros(2, 3, 8, 8), frame_rate=rate).save(tmp_path / "out"))
    assert isinstance(loaded, Gallery)
    assert loaded.frame_rate == rate


@pytest.mark.parametrize("script", ["echo half >animation.mp4; echo no such codec >&2; exit 1", None])
def test_a_film_that_cannot_be_made_takes_no_picture_down(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text(f"#!/bin/sh\n{script}\n" if script else "no program")
    ffmpeg.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _: str(ffmpeg))
    made = Gallery(images=torch.rand(2, 3, 8, 8), frame_rate=25)
    with pytest.warns(UserWarning, match=f"saved without it: {'no such codec' if script else 'Exec format error'}"):
        folder = made.save(tmp_path / "out")
    assert cnnviz.load(folder).equals(made)
    assert not (folder / "animation.mp4").exists()


def test_results_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        examples()[0].captions = ()  # type: ignore[misc]


def test_saving_again_replaces_the_result(tmp_path: Path) -> None:
    first, second = examples()[0], examples()[3]
    first.save(tmp_path / "out")
    second.save(tmp_path / "out")
    assert cnnviz.load(tmp_path / "out").equals(second)
    assert not (tmp_path / "out" / "figure-001.png").exists(), "nothing of the old one is left"


@pytest.mark.parametrize("name", ["cat.png", "cat.JPG"])
def test_a_folder_called_as_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=f"'.*{name}' is called as a file is; give a folder .* such as '.*cat'"):
        examples()[0].save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_things_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(SaveError, match="holds something else than an explanation"):
        examples()[0].save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize("names", [("image-000.png", "image-001.png"), ("figure-cover.png",), ("tensors.safetensors",)])
def test_files_that_are_called_as_ours_are_are_not_taken_for_ours(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("dear")
    for check in (FOLDER.check, examples()[0].save):
        with pytest.raises(SaveError, match=f"an explanation: {names[0]} without explanation.json of cnnviz; give a"):
            check(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, "dear")


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveError, match="cannot be written"):
        examples()[0].save(tmp_path / "file" / "out")
    with pytest.raises(SaveError, match="cannot be written"):
        examples()[0].save("/proc/nowhere/out")


def test_failing_while_writing_keeps_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = examples()[0]
    old.save(tmp_path / "out")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(SaveError, match="No space left on device"):
        examples()[3].save(tmp_path / "out")
    assert cnnviz.load(tmp_path / "out").equals(old)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupting_between_the_renames_keeps_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before or after any of them."""
    old, new = examples()[0], examples()[3]
    old.save(tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    rename = Path.rename
    left = [0, False]

    def interrupted(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            if left[1]:
                rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    for number in range(1, len(before) + 4):
        for afterwards in (False, True):
            left[:] = [number, afterwards]
            with pytest.raises(KeyboardInterrupt):
                new.save(tmp_path / "out")
            assert cnnviz.load(tmp_path / "out").equals(old)
            assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    left[0] = 0
    new.save(tmp_path / "out")
    assert cnnviz.load(tmp_path / "out").equals(new)


def test_a_folder_that_is_there_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mount, a link, or where the process works."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    same = real.stat().st_ino
    monkeypatch.chdir(real)
    for place in (".", real, link):
        for made in (examples()[0], examples()[3]):
            assert made.save(place) == real
            assert cnnviz.load(real).equals(made)
            assert (real.stat().st_ino, Path.cwd()) == (same, real)
    assert link.is_symlink()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    examples()[0].save(tmp_path / "gone")
    assert cnnviz.load(tmp_path / "nowhere").equals(examples()[0])
    (real / ".cnnviz-killed").mkdir()  # what a process left that was killed meanwhile
    examples()[0].save(real)
    assert not (real / ".cnnviz-killed").exists()


def test_a_folder_that_may_not_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "closed"
    place.mkdir()
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != place)  # root may write to anything
    for folder in (place, place / "inside" / "further"):
        with pytest.raises(SaveError, match=r"cannot be written, for '.*closed' may not; give a folder"):
            FOLDER.check(folder)


def test_names_that_are_no_utf_8_are_kept(tmp_path: Path) -> None:
    """On Linux a file may be called by any bytes, which Python has as halves of surrogate pairs."""
    name = os.fsdecode(b"caf\xe9.jpg")
    made = cnnviz.Gallery(images=torch.rand(1, 3, 8, 8), captions=(name,))
    assert cnnviz.load(made.save(tmp_path / "out")).equals(made)


def test_damage_is_noticed_on_loading(tmp_path: Path) -> None:
    folder = examples()[0].save(tmp_path / "out")
    with pytest.raises(SaveError, match="holds no explanation"):
        cnnviz.load(tmp_path)
    raw = (folder / "tensors.safetensors").read_bytes()
    (folder / "tensors.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(SaveError, match="is damaged: its SHA-256"):
        cnnviz.load(folder)
    (folder / "tensors.safetensors").write_bytes(raw)
    sidecar = json.loads((folder / "explanation.json").read_text())
    (folder / "explanation.json").write_text(json.dumps({**sidecar, "format": 99}))
    with pytest.raises(SaveError, match="another version of cnnviz"):
        cnnviz.load(folder)
    (folder / "explanation.json").write_text(json.dumps(sidecar)[:-40])
    with pytest.raises(SaveError, match="cannot be read"):
        cnnviz.load(folder)
    del sidecar["fields"]
    (folder / "explanation.json").write_text(json.dumps(sidecar))
    with pytest.raises(SaveError, match="is damaged"):
        cnnviz.load(folder)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    folder = examples()[0].save(tmp_path / "out")
    assert {path.suffix for path in folder.iterdir()} == {".png", ".safetensors", ".json"}
