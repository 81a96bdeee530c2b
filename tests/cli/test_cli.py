"""The command line, as a user types it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import cnnviz
from cnnviz.cli import main
from cnnviz.cli.common import load, show_table
from cnnviz.cli.flags import option_value
from cnnviz.options import make_options
from cnnviz.registry import Offer
from tests.conftest import Run


@pytest.fixture
def photo(tmp_path: Path) -> str:
    from cnnviz.data import demo_picture

    path = tmp_path / "cat.png"
    demo_picture().save(path)
    return str(path)


def test_list_names_every_technique_and_its_distribution(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    for name in cnnviz.techniques():
        assert name in out
    assert cnnviz.__version__ in out


def test_list_json_and_long(run: Run) -> None:
    rows = json.loads(run("list", "--json", "--long")[1])
    grad_cam = next(row for row in rows if row["name"] == "grad-cam")
    assert grad_cam["family"] == "attribution"
    assert grad_cam["summary"].startswith("Weight each activation map")


def test_info_tells_versions_and_faults(run: Run) -> None:
    told = json.loads(run("info", "--json")[1])
    assert told["torch"] == torch.__version__
    assert {row["status"] for row in told["plugins"]} == {"ok"}
    assert cnnviz.__version__ in run("info")[1]


def test_version(run: Run) -> None:
    assert run("--version")[1].strip() == f"cnnviz {cnnviz.__version__}"


def test_layers_of_the_embedded_model_and_of_another(run: Run) -> None:
    rows = json.loads(run("layers", "--json")[1])
    assert rows[0]["name"] == "features.0.0"
    assert rows[0]["shape"] == [32, 112, 112]
    assert rows[0]["receptive_field"]["size"] == [3, 3]
    code, out, _ = run("layers", "resnet18", "--size", "64,96")
    assert code == 0
    assert "layer1.0.relu#1" in out
    assert "512 x 2 x 3" in out


def test_help_of_a_technique_shows_its_flags_bounds_and_defaults(run: Run) -> None:
    out = " ".join(run("explain", "occlusion", "--help")[1].replace("│", " ").split())
    assert "--window" in out
    assert "H[,W]" in out
    assert "default: 32" in out
    assert "a whole number ≥ 1" in out
    assert "--relu" not in out
    told = " ".join(run("explain", "cam", "--help")[1].split())
    assert "Zhou 2016" in told
    assert "Raises" not in told, "errors are for those who call it from Python"


def test_explain_writes_pictures_tensors_and_provenance(run: Run, photo: str, tmp_path: Path) -> None:
    code, out, _ = run("explain", "grad-cam", photo, "--target", "tabby", "--layer", "features.14", "--out", "result")
    assert code == 0
    assert "281" in out
    loaded = cnnviz.load(tmp_path / "result")
    assert loaded.provenance is not None
    assert loaded.provenance.layer == "features.14"
    assert isinstance(loaded, cnnviz.Heatmap)
    assert loaded.target is not None
    assert loaded.target.tolist() == [281]
    with Image.open(tmp_path / "result" / "figure-000.png") as figure:
        assert figure.size[0] > 400


def test_explain_several_images_as_json(run: Run, photo: str) -> None:
    code, out, _ = run("explain", "saliency", photo, photo, "--samples", "2", "--noise", "0.1", "--json", "--seed", "4")
    told = json.loads(out)
    assert code == 0
    assert [row["label"] for row in told["results"]] == ["Egyptian cat", "Egyptian cat"]
    assert told["provenance"]["options"] == {"channels": "max", "noise": 0.1, "samples": 2, "sign": "abs"}
    assert told["provenance"]["seed"] == 4
    assert len(told["figures"]) == 2


def test_explain_several_targets_tells_each(run: Run, photo: str) -> None:
    told = json.loads(run("explain", "grad-cam", photo, photo, "--target", "top:2", "--json")[1])
    assert [row["label"] for row in told["results"]] == ["Egyptian cat", "tiger cat"] * 2
    assert len(told["figures"]) == 4
    assert "top:K" in run("explain", "grad-cam", photo, "--target", "top:many")[2]


def test_several_targets(run: Run, photo: str) -> None:
    two = ("--target", "tabby", "--target", "285", "--json")
    told = json.loads(run("explain", "grad-cam", photo, photo, *two)[1])
    assert [row["target"] for row in told["results"]] == [281, 285, 281, 285]
    quick = ("--steps", "1", "--size", "32")
    made = json.loads(run("explain", "class-visualization", *two, *quick)[1])
    assert made["provenance"]["target"] == "class 281 tabby, 285 Egyptian cat"
    assert len(made["figures"]) == 1
    code, _, error = run("explain", "class-visualization", *quick)
    assert code == 2
    assert "target: got none" in error


def test_pictures_of_any_size(run: Run, photo: str, tmp_path: Path) -> None:
    """Techniques that make pictures take them whole, and lists of them as options."""
    with Image.open(photo) as image:
        image.resize((90, 70)).save(tmp_path / "small.png")
    given = ("--styles", f"{photo},small.png", "--style-weights", "1,2", "--steps", "1", "--tile", "192")
    told = json.loads(run("explain", "style-transfer", "small.png", *given, "--json")[1])
    with Image.open(Path(told["folder"]) / "image-000.png") as painting:
        assert painting.size == (90, 70)
    assert len(told["provenance"]["options"]["styles"]) == 2
    patched = json.loads(run("explain", "texture-patch", "small.png", "--size", "12", "--window", "5", "--json")[1])
    with Image.open(Path(patched["folder"]) / "image-000.png") as texture:
        assert texture.size == (12, 12)


def test_flags_reach_the_options(run: Run, photo: str) -> None:
    arguments = ("--window", "64,48", "--stride", "64", "--baseline", "0.1,0.2,0.3", "--json")
    told = json.loads(run("explain", "occlusion", photo, *arguments)[1])
    assert told["provenance"]["options"] == {
        "baseline": [0.1, 0.2, 0.3],
        "method": "auto",
        "stride": [64, 64],
        "tolerance": None,
        "window": [64, 48],
    }
    told = json.loads(
        run("explain", "occlusion", photo, "--window", "96", "--stride", "96", "--baseline", photo, "--json")[1]
    )
    assert told["provenance"]["options"]["baseline"].startswith("ImageOption(300 x 451")
    told = json.loads(run("explain", "grad-cam", photo, "--no-relu", "--upsample", "none", "--json")[1])
    assert told["provenance"]["options"] == {"relu": False, "upsample": None}


def test_channel_and_neuron_targets(run: Run, photo: str) -> None:
    told = json.loads(run("explain", "guided-backprop", photo, "--target", "neuron:features.14:7:3:3", "--json")[1])
    assert told["provenance"]["target"] == "neuron (3, 3) of channel 7 of features.14"
    told = json.loads(run("explain", "deconvnet", photo, "--target", "channel:features.3:2:max", "--json")[1])
    assert told["provenance"]["target"] == "channel 2 of features.3 (max)"


def test_filters_need_no_image(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("explain", "filters", "--layer", "features.1.conv.0.0")
    assert code == 0
    assert (tmp_path / "cnnviz-out" / "filters" / "figure-000.png").is_file()
    assert "figure-000.png" in out


def test_a_local_architecture_with_a_weights_file(run: Run, photo: str, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "own.safetensors")
    arguments = ("--model", "resnet18", "--weights", "own.safetensors", "--target", "3", "--json")
    told = json.loads(run("explain", "grad-cam", photo, *arguments)[1])
    assert told["provenance"]["model"] == "resnet18"
    assert told["provenance"]["layer"] == "layer4"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["explain", "grad-cam", "missing.png"], "'missing.png' does not exist"),
        (["explain", "grad-cam"], "IMAGE"),
        (["explain", "grad-cam", "PHOTO", "--out", "map.png"], "is called as a file is; give a folder"),
        (["explain", "grad-can", "x.png"], "no technique 'grad-can'; nearest: 'grad-cam'"),
        (["explain", "grad-cam", "PHOTO", "--layer", "features.99"], "no layer 'features.99' in MobileNetV2"),
        (["explain", "grad-cam", "PHOTO", "--target", "1000"], "class 1000 is out of range"),
        (["explain", "grad-cam", "PHOTO", "--target", "tabi"], "no label 'tabi'"),
        (["explain", "grad-cam", "PHOTO", "--window", "3"], "No such option"),
        (["explain", "occlusion", "PHOTO", "--window", "0"], "option 'window' of 'occlusion': got '0'"),
        (["explain", "occlusion", "PHOTO", "--window", "300"], "at most the image's (224, 224)"),
        (["explain", "saliency", "PHOTO", "--samples", "x"], "expected a whole number from 1 to 10000"),
        (["explain", "saliency", "PHOTO", "--memory", "lots"], "memory: got 'lots'"),
        (["explain", "saliency", "PHOTO", "--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
        (["explain", "saliency", "PHOTO", "--model", "resnet999"], "no model 'resnet999' in torchvision; nearest"),
        (["explain", "saliency", "PHOTO", "--weights", "none.safetensors"], "weights file 'none.safetensors' does not"),
        (["explain", "guided-backprop", "PHOTO", "--target", "neuron:features.3:1"], "expected neuron:LAYER:C:Y:X"),
        (["explain", "saliency", "PHOTO", "--memory", "9" * 400], "at least 1 MiB and less than 8 EiB"),
        (["explain", "saliency", "PHOTO", "--device", "meta"], "device 'meta' cannot be used here: Cannot copy out of"),
        (["layers", "--size", "0"], "--size: got '0'"),
        (["layers", "--size", "²"], "--size: got '²', expected H or H,W in pixels"),
        (["report", "missing.png"], "'missing.png' does not exist"),
        (["report", "PHOTO", "--out", "."], "is a folder; give a file"),
        (["lst"], "No such command"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, photo: str, arguments: list[str], told: str) -> None:
    code, out, err = run(*[photo if argument == "PHOTO" else argument for argument in arguments])
    assert code == 2
    assert told in err
    assert err.startswith("cnnviz: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not Path("cnnviz-out").exists()


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cnnviz", "--debug", "explain", "grad-cam", "missing.png"])
    with pytest.raises(cnnviz.InputError, match=r"missing\.png"):
        main()


def test_a_folder_with_something_else_is_refused(run: Run, photo: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    code, _, err = run("explain", "saliency", photo, "--out", "mine")
    assert code == 2
    assert "holds something else" in err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is there")
def test_a_device_that_is_not_there_is_told_in_a_sentence(run: Run, photo: str) -> None:
    code, _, err = run("explain", "saliency", photo, "--device", "mps")
    assert code == 2
    assert "device 'mps' cannot be used here: " in err
    assert err.endswith("; try --device cpu\n")
    assert len(err) < 250


def test_what_cannot_be_written_is_told_before_the_work(
    run: Run, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(*_: object, **__: object) -> None:
        pytest.fail("the work was begun")

    monkeypatch.setattr(cnnviz.Explainer, "__call__", works)
    monkeypatch.setattr("cnnviz.cli.report.make_report", works)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "image-000.png").write_text("dear")
    code, _, err = run("explain", "saliency", photo, "--out", "mine")
    assert (code, "holds something else than an explanation: image-000.png" in err) == (2, True)
    code, _, err = run("report", photo, "--out", "mine")
    assert (code, "mine' is a folder; give a file" in err) == (2, True)
    code, _, err = run("report", photo, "--out", "cat.png/page.html")
    assert (code, "cat.png' is a file; give another place" in err) == (2, True)


def test_a_target_that_changes_nothing_is_told(run: Run, photo: str) -> None:
    code, _, err = run("explain", "filters", "--target", "tabby")
    assert (code, err) == (0, "'filters' explains no target, so that --target changes nothing\n")
    assert run("explain", "filters")[2] == ""
    assert run("explain", "grad-cam", photo, "--target", "tabby")[2] == ""


def test_of_a_folder_a_report_leaves_out_what_cannot_be_read(run: Run, photo: str, tmp_path: Path) -> None:
    place = tmp_path / "pictures"
    place.mkdir()
    (place / "cat.png").write_bytes(Path(photo).read_bytes())
    (place / "broken.png").write_bytes(b"no image")
    code, out, err = run("report", "pictures", "--technique", "filters", "--out", "page.html")
    assert code == 0
    assert out.startswith("cat.png: Egyptian cat")
    assert "pictures/broken.png is left out: image 'pictures/broken.png' is no image" in err
    told = json.loads(run("report", "pictures", "--technique", "filters", "--out", "page.html", "--json")[1])
    assert list(told["left_out"]) == ["pictures/broken.png"]
    assert [section["image"] for section in told["sections"]] == ["cat.png"]
    code, _, err = run("report", "pictures/broken.png", "--out", "page.html")
    assert (code, "left out" in err) == (2, False)


def test_tables_show_what_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["file", "[b]score"], [[":cat:.png", "[red]1[/red]"], ["a[/b].png", None]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["file", "[b]score"], [":cat:.png", "[red]1[/red]"], ["a[/b].png"]]


def test_the_current_folder_is_looked_in_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/first", "/second"])
    monkeypatch.setattr("cnnviz.cli.common.load_model", lambda name, **_: name)
    for name in (None, "resnet18", "timm:resnet10t"):
        load(name, "none", "cpu")
    assert sys.path == ["/first", "/second"]
    load("my_net:build", "none", "cpu")
    load("my_net:build", "none", "cpu")
    assert sys.path == ["/first", "/second", ""]


def test_letters_that_the_terminal_does_not_know_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnviz.cli.keep_freed_memory", lambda: False)
    offers = (Offer(name="deletion ↓", distribution="acme-viz", version="1", place="acme_viz.deletion"),)
    monkeypatch.setattr("cnnviz.cli.list_.techniques", lambda: SimpleNamespace(offers=offers))
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["cnnviz", "list"])
    with pytest.raises(SystemExit) as stop:
        main()
    sys.stdout.flush()
    assert stop.value.code == 0
    assert b"deletion \\u2193  acme-viz" in shown.getvalue()


def test_interrupting_while_torch_is_imported_is_told_in_a_line(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.argv = ['cnnviz', 'list']\n"
        "from cnnviz.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "cnnviz: interrupted; nothing was written\n")


SWEEPING = """
from pathlib import Path
from cnnviz.cli import main
from cnnviz.cli.common import Bar

def step(bar, done, total, before=Bar._step):
    Path("begun").touch()
    before(bar, done, total)

Bar._step = step
main()
"""


def test_interrupting_leaves_nothing_half_written(photo: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SWEEPING, "explain", "occlusion", photo, "--stride", "2", "--out", "out"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "TERM": "dumb"}
    )
    begun, waited = tmp_path / "begun", time.monotonic() + 100
    while not begun.exists() and process.poll() is None and time.monotonic() < waited:
        time.sleep(0.05)
    begun.unlink()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    begun.unlink(missing_ok=True)
    assert process.returncode == 130
    assert "interrupted; nothing was written" in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.png"]


class Typed(cnnviz.Options):
    """Options of every kind that a plugin may declare."""

    weights: tuple[float, ...] | None = cnnviz.Field(None, description="some, or none")
    size: Literal[1, 2, 4] = cnnviz.Field(1, description="one of these")
    mixed: Literal["auto", 8] = cnnviz.Field("auto", description="a word or a number")
    names: tuple[str, ...] = cnnviz.Field((), description="some")
    either: str | tuple[str, ...] = cnnviz.Field("", description="one or some")


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("weights", "0.1,0.2", (0.1, 0.2)),
        ("weights", "none", None),
        ("size", "2", 2),
        ("mixed", "8", 8),
        ("mixed", "auto", "auto"),
        ("names", "a, b", ("a", "b")),
        ("names", r"a\,b.png, c", ("a,b.png", "c")),
        ("either", "a,b", "a,b"),
    ],
)
def test_every_kind_of_option_can_be_written(option: str, text: str, value: Any) -> None:
    made = make_options("typed", Typed, {option: option_value(Typed, option, text)})
    assert getattr(made, option) == value
