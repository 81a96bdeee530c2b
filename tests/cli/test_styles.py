"""``cnnviz train-style`` and what it trains, on folders, films and files that are none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import cnnviz
from cnnviz.synthesis import StyleNetwork
from tests.conftest import Run

TRAIN = ("--steps", "3", "--size", "32", "--style-size", "64", "--batch", "2", "--width", "2", "--blocks", "1")
MODEL = ("--model", "extractor:features", "--weights", "none")

EXTRACTOR = """
import cnnviz, torch
from torch import nn

def features():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU())
    return cnnviz.load_model(net, preprocess=cnnviz.Preprocess())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with frames of two sizes, a style, and a network of its own."""
    (tmp_path / "extractor.py").write_text(EXTRACTOR)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "frames" / "b").mkdir(parents=True)
    for name, size in {"1.png": (40, 30), "2.jpg": (30, 44), "b/1.png": (40, 30), "b/1.jpg": (33, 33)}.items():
        Image.radial_gradient("L").resize(size).convert("RGB").save(tmp_path / "frames" / name)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "ramp.png")
    return tmp_path


@pytest.fixture
def trained(here: Path) -> str:
    made = StyleNetwork(["waves", "stars"], width=2, blocks=1)
    made.initialise(torch.Generator().manual_seed(0))
    return str(made.save(here / "waves.safetensors"))


def test_train_and_paint(run: Run, here: Path) -> None:
    (here / "frames" / "broken.png").write_bytes(b"no image")
    code, out, err = run("train-style", "frames", "--styles", "ramp.png", *MODEL, *TRAIN, "--out", "ramp")
    assert code == 0, err
    assert Path(out.strip()) == here / "ramp" / "style.safetensors"
    assert err.count("\n") == 1
    assert "broken.png is left out: image" in err
    told = json.loads(
        run("train-style", "frames", "--styles", "ramp.png", *MODEL, *TRAIN, "--out", "ramp", "--json")[1]
    )
    assert told["steps"] == 3
    code, out, err = run("explain", "fast-style", "ramp.png", "--model", "ramp/style.safetensors", "--json")
    assert code == 0, err
    folder = Path(json.loads(out)["folder"])
    assert cnnviz.load(folder).tensors()["images"].shape == (1, 3, 256, 256)


def test_frames_become_files_of_their_names(run: Run, here: Path, trained: str) -> None:
    (here / "frames" / "z-broken.png").write_bytes(b"no image")
    command = ("explain", "fast-style", "frames", "--model", trained, "--style-weights", "1,1", "--out", "painted")
    code, out, err = run(*command)
    assert code == 0, err
    assert Path(out.strip()) == here / "painted"
    assert "z-broken.png is left out: image" in err
    sizes = {"1.png": (40, 30), "2.png": (30, 44), "b-1-png.png": (40, 30), "b-1-jpg.png": (33, 33)}
    assert sorted(path.name for path in (here / "painted").iterdir()) == sorted([*sizes, "pictures.json"])
    for name, size in sizes.items():
        with Image.open(here / "painted" / name) as image:
            assert image.size == size
            assert json.loads(image.text["cnnviz"])["options"]["style_weights"] == [1.0, 1.0]
    told = json.loads((here / "painted" / "pictures.json").read_text())
    assert told["pictures"]["b-1-jpg"].endswith("b/1.jpg")
    assert list(told["left_out"]) == ["frames/z-broken.png"]
    assert run(*command)[0] == 0, "what was painted before is replaced"


def test_no_two_pictures_get_one_name(run: Run, here: Path, trained: str) -> None:
    places = [here / "frames" / name for name in ("b-1.png", "1.jpg", "1-png.webp", "1.png", "b/1.png")]
    for place in places:
        Image.new("RGB", (16, 16)).save(place)
    (here / "other").mkdir()
    Image.new("RGB", (16, 16)).save(here / "other" / "1.png")
    named = [str(place) for place in places] + ["frames/../other/1.png"]
    assert run("explain", "fast-style", *named, "--model", trained, "--out", "painted")[0] == 0
    made = sorted(path.name for path in (here / "painted").glob("*.png"))
    assert len(made) == len(named)
    assert sorted(json.loads((here / "painted" / "pictures.json").read_text())["pictures"].values()) == sorted(named)


def test_a_folder_of_one_frame_is_a_folder_of_pictures(run: Run, here: Path, trained: str) -> None:
    Image.new("RGB", (16, 16)).save(here / "frames" / "b" / "1.png")
    (here / "frames" / "b" / "1.jpg").unlink()
    command = ("explain", "fast-style", "--model", trained)
    assert run(*command, "frames/b")[0] == 0
    assert (here / "cnnviz-out" / "fast-style-pictures" / "1.png").is_file()
    assert run(*command, "frames/b/1.png")[0] == 0, "its folder is another one"


def test_each_picture_has_a_checkpoint_of_its_own(run: Run, here: Path) -> None:
    options = ("--steps", "1", "--octaves", "1", "--jitter", "0", "--layer", "1", "--checkpoint", "dream.safetensors")
    code, _, err = run("explain", "deep-dream", "frames/1.png", "frames/2.jpg", *MODEL, *options, "--out", "dreams")
    assert code == 0, err
    assert sorted(path.name for path in here.glob("dream-*")) == ["dream-1.safetensors", "dream-2.safetensors"]
    assert cnnviz.load(here / "dreams" / "1").tensors()["history"].shape == (1, 1), "nothing of a result is lost"


@pytest.mark.parametrize("frames", [["frames/1.png"], ["frames/1.png", "frames/2.jpg"]])
def test_interrupting_tells_what_a_checkpoint_kept(
    run: Run, here: Path, frames: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: object, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr("cnnviz.cli.common.Bar._step", step)
    command = ("explain", "deep-dream", *frames, *MODEL, "--steps", "9", "--octaves", "1", "--jitter", "0")
    command += ("--layer", "1", "--out", "dreams")
    assert run(*command)[::2] == (130, "cnnviz: interrupted; nothing was written\n")
    kept = "dream.safetensors" if len(frames) == 1 else "dream-1.safetensors"
    told = f"cnnviz: interrupted; the same command goes on from {kept}\n"
    assert run(*command, "--checkpoint", "dream.safetensors")[::2] == (130, told)
    assert (here / kept).is_file()
    assert not (here / "dreams").exists()


def test_the_frames_themselves_are_never_written_over(run: Run, here: Path, trained: str) -> None:
    before = {path: path.read_bytes() for path in (here / "frames").rglob("*.*")}
    code, _, err = run("explain", "fast-style", "frames", "--model", trained, "--out", "frames")
    assert code == 2
    assert "holds something else than pictures made by cnnviz" in err
    assert {path: path.read_bytes() for path in (here / "frames").rglob("*.*")} == before


def test_pictures_whose_names_have_two_endings_have_folders_too(run: Run, here: Path) -> None:
    (here / "frames" / "1.png").rename(here / "frames" / "1.jpg.png")
    options = ("--frames", "2", "--steps", "1", "--octaves", "1", "--jitter", "0", "--layer", "1")
    code, _, err = run("explain", "deep-dream", "frames/1.jpg.png", "frames/2.jpg", *MODEL, *options, "--out", "dreams")
    assert code == 0, err
    assert cnnviz.load(here / "dreams" / "1.jpg").tensors()["images"].shape == (2, 3, 30, 40)


def test_animations_of_several_pictures_have_folders(run: Run, here: Path) -> None:
    options = ("--frames", "2", "--steps", "1", "--octaves", "1", "--jitter", "0", "--layer", "1")
    code, _, err = run("explain", "deep-dream", "frames/1.png", "frames/2.jpg", *MODEL, *options, "--out", "dreams")
    assert code == 0, err
    assert cnnviz.load(here / "dreams" / "1").tensors()["images"].shape == (2, 3, 30, 40)
    assert cnnviz.load(here / "dreams" / "2").tensors()["images"].shape == (2, 3, 44, 30)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["explain", "fast-style", "ramp.png"], "got MobileNetV2, expected a network that cnnviz train-style wrote"),
        (["explain", "fast-style", "ramp.png", "--model", "no.safetensors"], "style network 'no.safetensors' does not"),
        (["explain", "fast-style", "frames/1.png", "ramp.png"], "got MobileNetV2"),
        (["train-style", "frames", *MODEL], "option 'styles' of 'train-style': got nothing"),
        (["train-style", "nowhere", "--styles", "ramp.png", *MODEL], "image 'nowhere' does not exist"),
        (
            ["train-style", "frames", "--styles", "ramp.png", "--steps", "no", *MODEL],
            "'steps' of 'train-style': got 'no'",
        ),
        (["train-style", "frames", "--styles", "ramp.png", "--out", "frames", *MODEL], "holds something else"),
    ],
)
def test_bad_input_is_one_line(run: Run, here: Path, arguments: list[str], told: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not (here / "cnnviz-out").exists()


def test_help_shows_options_and_bounds(run: Run) -> None:
    out = " ".join(run("train-style", "--help")[1].replace("│", " ").split())
    for part in ("--style-weight", "--precision", "default: 10000", "a whole number from 1 to 10000000"):
        assert part in out


def test_an_interrupted_training_goes_on(here: Path) -> None:
    command = [sys.executable, "-m", "cnnviz", "train-style", "frames", "--styles", "ramp.png", *MODEL]
    command += ["--size", "32", "--style-size", "64", "--batch", "1", "--width", "2", "--blocks", "0", "--out", "ramp"]
    process = subprocess.Popen(
        [*command, "--steps", "1000000", "--sample-every", "20", "--log-every", "5"],
        cwd=here, stderr=subprocess.PIPE, text=True, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    waited = time.monotonic() + 100
    wanted = [here / "ramp" / name for name in ("checkpoint.safetensors", "log.csv")]
    while not all(path.exists() for path in wanted) and time.monotonic() < waited:
        time.sleep(0.2)
    try:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing goes on where a signal was not heard
    assert process.returncode == 130
    assert "interrupted; the same command goes on from the last step in ramp" in err
    assert "Traceback" not in err
    done = int((here / "ramp" / "log.csv").read_text().splitlines()[-1].partition(",")[0])
    assert done >= 5
    more = subprocess.run(
        [*command, "--steps", str(done + 100), "--json"], cwd=here, capture_output=True, text=True, check=True
    )
    assert json.loads(more.stdout)["steps"] == done + 100
    steps = [int(line.partition(",")[0]) for line in (here / "ramp" / "log.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps)), "no line of the log stands there twice"


def test_a_home_folder_is_told_as_it_is(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))

    def interrupted(*_: object, **__: object) -> None:
        (here / "ramp").mkdir()
        (here / "ramp" / "checkpoint.safetensors").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr("cnnviz.cli.train_style.train_style", interrupted)
    code, _, err = run("train-style", "frames", "--styles", "ramp.png", *MODEL, *TRAIN, "--out=~/ramp")
    assert code == 130
    assert f"the same command goes on from the last step in {here / 'ramp'}" in err
