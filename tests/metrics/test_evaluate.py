"""Techniques compared over many images, by call and by command."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz import InputError, PluginError, TargetError
from cnnviz.data import demo_picture, open_image
from cnnviz.metrics import Evaluation, available, evaluate, measure
from cnnviz.report import save_evaluation
from cnnviz.testing import SmallNet
from tests.conftest import Run

METRICS = {"deletion": {"steps": 3}, "insertion": {"steps": 3, "sigma": 1.0}}


def some(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def net() -> nn.Module:
    return SmallNet().eval()


def test_each_cell_is_the_mean_of_what_measure_says(net: nn.Module) -> None:
    x = some(19)  # more than are held at a time
    made = evaluate(net, x, ["saliency", "grad-cam"], METRICS, target=[i % 5 for i in range(19)])
    assert made.items == tuple(map(str, range(19)))
    assert made.techniques == ("saliency", "grad-cam")
    for technique in made.techniques:
        for metric, options in METRICS.items():
            alone = measure(net, x, technique, metric, target=[i % 5 for i in range(19)], **options)
            found = made.measurements[technique, metric]
            torch.testing.assert_close(found.values, alone.values, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.curves, alone.curves, rtol=1e-4, atol=1e-5)
            cell = made.cell(technique, metric)
            assert cell.count == 19
            assert cell.mean == pytest.approx(float(alone.values.mean()), rel=1e-4)
            assert cell.error == pytest.approx(float(alone.values.std()) / math.sqrt(19), rel=1e-3)
    best = max(made.techniques, key=lambda name: made.cell(name, "insertion").mean)
    assert made.best("insertion") == best
    assert made.best("deletion") == min(made.techniques, key=lambda name: made.cell(name, "deletion").mean)
    assert made.failures == {}


def test_labels_name_techniques_with_options_of_their_own(net: nn.Module) -> None:
    smooth = cnnviz.Explainer(net, "saliency", samples=3, noise=0.1)
    made = evaluate(net, some(2), {"rough": "saliency", "smooth": smooth}, ["deletion"])
    assert made.techniques == ("rough", "smooth")
    assert made.provenance["smooth"].options["samples"] == 3
    assert not torch.equal(
        made.measurements["rough", "deletion"].values, made.measurements["smooth", "deletion"].values
    )


def test_by_default_all_that_take_seconds_are_compared(net: nn.Module) -> None:
    made = evaluate(net, some(1))
    assert {"saliency", "grad-cam", "occlusion", "cam"} <= set(made.techniques)
    assert not {"rise", "score-cam", "filters", "activations"} & set(made.techniques)
    assert set(made.metrics) == {"deletion", "insertion", "average-drop", "increase-in-confidence", "infidelity"}
    assert {technique for technique, _ in made.failures} == {"occlusion"}, "whose window is larger than these images"
    assert all(made.provenance[name].distribution == "cnnviz" for name in made.techniques if name != "occlusion")
    boxed = evaluate(net, some(1), ["saliency"], boxes=[[[0, 0, 5, 5]]])
    assert set(boxed.metrics) == {*made.metrics, "pointing-game", "box-energy"}


class Demanding(cnnviz.Options):
    """An option that nobody can guess."""

    power: float = cnnviz.Field(description="to what power")


def test_what_cannot_run_unasked_is_left_out(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    technique = cnnviz.Technique("demanding", lambda request, options: request.gradient(), Demanding)
    metric = cnnviz.Metric("demanding", lambda case, options: case.maps.sum((1, 2)), Demanding)
    for known, item in ((cnnviz.techniques(), technique), (available(), metric)):
        found = {"demanding": item, **{name: known[name] for name in ("saliency", "deletion") if name in known}}
        monkeypatch.setattr(type(known), "usable", lambda _, found=found: found)
    made = evaluate(net, some(1))
    assert (made.techniques, tuple(made.metrics)) == (("saliency",), ("deletion",))


class Fails(cnnviz.Options):
    """How it fails."""

    on: int = cnnviz.Field(0, description="the class that it fails on")


def fails(request: cnnviz.Request, options: Fails) -> Tensor:
    """Fail on a class."""
    if (request.classes() == options.on).any():
        raise RuntimeError("bad luck")
    return request.gradient()


def test_a_failure_takes_nothing_else_down(net: nn.Module) -> None:
    x = some(20)
    technique = cnnviz.Technique("fails", fails, Fails)
    made = evaluate(net, x, [technique, "saliency"], ["deletion"], target=[1] * 16 + [0] * 4)
    values = made.measurements["fails", "deletion"].values
    assert values.isnan().tolist() == [False] * 16 + [True] * 4
    assert made.measurements["fails", "deletion"].curves.isnan().any(1).tolist() == [False] * 16 + [True] * 4
    assert made.cell("fails", "deletion").count == 16
    assert not made.measurements["saliency", "deletion"].values.isnan().any()
    assert made.failures == {("fails", ""): "RuntimeError('bad luck')"}
    with pytest.raises(PluginError, match=r"nothing could be measured: RuntimeError.'bad luck'"):
        evaluate(net, x[:2], [technique], ["deletion"], target=0)
    alone = evaluate(net, x[:2], [technique, "saliency"], ["deletion"], target=0)
    assert alone.best("deletion") == "saliency"
    assert math.isnan(alone.cell("fails", "deletion").mean)


def test_one_image_takes_no_other_of_its_group_down(net: nn.Module) -> None:
    x = some(20)
    bad = cnnviz.Technique("fails", fails, Fails)

    def odd(case: cnnviz.Case, options: cnnviz.Options) -> Tensor:
        """Fail on bright images."""
        if bool((case.request.inputs > 5).any()):
            raise ValueError("too bright")
        return case.values.sum((1, 2, 3))

    x[7] += 9
    metric = cnnviz.Metric("odd", odd)
    made = evaluate(net, x, [bad, "saliency"], ["deletion", metric], target=[0 if i == 2 else 1 for i in range(20)])
    assert [i for i in range(20) if made.measurements["fails", "deletion"].values[i].isnan()] == [2]
    assert [i for i in range(20) if made.measurements["fails", "odd"].values[i].isnan()] == [2, 7]
    assert [i for i in range(20) if made.measurements["saliency", "odd"].values[i].isnan()] == [7]
    assert made.failures == {
        ("fails", ""): "2: RuntimeError('bad luck')",
        ("fails", "odd"): "7: ValueError('too bright')",
        ("saliency", "odd"): "7: ValueError('too bright')",
    }
    alone = evaluate(net, x, ["saliency"], ["deletion"], target=[0 if i == 2 else 1 for i in range(20)])
    for name in ("values", "curves"):
        mine, right = (getattr(one.measurements["saliency", "deletion"], name) for one in (made, alone))
        assert torch.equal(mine, right)
    groups = made.measurements["fails", "deletion"].curves
    torch.testing.assert_close(
        groups[3], evaluate(net, x[3:4], [bad], ["deletion"], target=1).measurements["fails", "deletion"].curves[0]
    )


def test_cancelling_goes_through_where_images_are_tried_one_by_one(net: nn.Module) -> None:
    technique = cnnviz.Technique("fails", fails, Fails)
    seen: list[float] = []

    def stop(done: int, total: int) -> None:
        seen.append(done / total)
        if len(seen) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(net, some(4), [technique], ["deletion"], target=[0, 1, 1, 1], progress=stop)
    assert seen == sorted(seen)


def test_a_failing_metric_is_recorded(net: nn.Module) -> None:
    def breaks(case: cnnviz.Case, options: cnnviz.Options) -> Tensor:
        """Break."""
        raise ValueError("no")

    def leaves(case: cnnviz.Case, options: cnnviz.Options) -> Tensor:
        """Leave."""
        raise SystemExit(3)

    def grows(case: cnnviz.Case, options: cnnviz.Options) -> cnnviz.Measurement:
        """Return curves of as many points as there are samples."""
        count = len(case.values)
        return cnnviz.Measurement(case.values.sum((1, 2, 3)), torch.ones(count, count), torch.arange(count))

    own = [cnnviz.Metric(function.__name__, function) for function in (breaks, leaves, grows)]
    made = evaluate(net, some(18), ["saliency"], [*own, "deletion"])
    assert made.failures == {
        ("saliency", "breaks"): "ValueError('no')",
        ("saliency", "leaves"): "metric 'leaves' called sys.exit(3)",
        ("saliency", "grows"): "its curves have 2 points here, and 16 on other images",
    }
    assert [made.cell("saliency", name).count for name in made.metrics] == [0, 0, 16, 18]
    assert made.table()[1][0][1:3] == ["–", "–"]


class Cancelled(Exception):
    """Nobody wants it any more."""


def test_progress_counts_up_to_the_end_and_may_cancel(net: nn.Module) -> None:
    steps: list[tuple[int, int]] = []
    names: list[str] = []
    given: dict[str, Any] = {"techniques": ["saliency", "grad-cam"], "metrics": ["deletion", "average-drop"]}
    evaluate(net, some(17), **given, progress=lambda done, total: steps.append((done, total)), started=names.append)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    assert len({done for done, _ in steps}) >= 12
    assert names[:3] == ["saliency", "saliency, deletion", "saliency, average-drop"]

    def cancel(done: int, total: int) -> None:
        if done > total / 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        evaluate(net, some(17), **given, progress=cancel)


def test_bad_input_is_told(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    other = cnnviz.Explainer(SmallNet().eval(), "saliency")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (PluginError, "no technique 'salience'", {"techniques": ["salience"]}),
        (PluginError, "no metric 'delete'", {"metrics": ["delete"]}),
        (PluginError, "no technique to evaluate", {"techniques": []}),
        (cnnviz.OptionError, "'steps' of 'deletion': got 0", {"metrics": {"deletion": {"steps": 0}}}),
        (InputError, "'box-energy' compares with boxes", {"metrics": ["box-energy"]}),
        (InputError, "boxes: got those of 1 inputs, expected 2", {"boxes": [[]]}),
        (TargetError, "got 3 for each input", {"target": cnnviz.top(3)}),
        (TargetError, "got 3 targets for 2 inputs", {"target": [1, 2, 3]}),
        (TargetError, "class 5000 is out of range", {"target": 5000}),
        (InputError, r"\(3, 16, 16\).*expected float \(N, C, H, W\)", {"inputs": some(2)[0]}),
        (InputError, "boxes of input 0: .* left, top, right and bottom", {"boxes": [[[9, 9, 1, 1]], []]}),
        (InputError, "technique 'saliency' is named twice", {"techniques": ["saliency", "saliency"]}),
        (InputError, "metric 'deletion' is named twice", {"metrics": ["deletion", "deletion"]}),
        (PluginError, "no metric to evaluate by", {"metrics": []}),
        (InputError, "no preprocessing", {"inputs": [demo_picture()]}),
        (InputError, "torch.stack them", {"inputs": list(some(2))}),
        (
            cnnviz.ModelError,
            "made for another network",
            {"techniques": [other]},
        ),
    ]
    for error, told, changed in cases:
        with pytest.raises(error, match=told):
            evaluate(net, **{"inputs": some(2), "techniques": ["saliency"], **changed})
    with pytest.raises(InputError, match=r"none of the 1 images can be read: .* is empty"):
        evaluate(cnnviz.load_model(net, preprocess=cnnviz.Preprocess()), [tmp_path / "empty.png"], ["saliency"])


def test_pictures_of_several_sizes_are_measured_in_groups() -> None:
    model = cnnviz.load_model(SmallNet().eval(), preprocess=cnnviz.Preprocess())
    pictures = [demo_picture().resize(size) for size in ((20, 16), (20, 16), (24, 30))]
    made = evaluate(model, pictures, ["saliency"], ["deletion"])
    for i, picture in enumerate(pictures):
        alone = measure(model, picture, "saliency", "deletion")
        assert float(made.measurements["saliency", "deletion"].values[i]) == pytest.approx(
            float(alone.values), rel=1e-4
        )


@pytest.fixture
def made(net: nn.Module) -> Evaluation:
    def breaks(case: cnnviz.Case, options: cnnviz.Options) -> Tensor:
        """Break with <b>."""
        raise ValueError("<b>")

    metrics = [cnnviz.Metric("breaks", breaks), "deletion", "average-drop"]
    return evaluate(net, some(2), ["saliency", "grad-cam"], metrics)


def test_it_is_saved_with_every_number(made: Evaluation, tmp_path: Path) -> None:
    folder = save_evaluation(made, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        *("index.html", "evaluation.json", "values.csv", "breaks.png", "deletion.png", "average-drop.png")
    }
    told = json.loads((folder / "evaluation.json").read_text())
    deletion = told["techniques"]["grad-cam"]["metrics"]["deletion"]
    assert deletion["values"] == made.measurements["grad-cam", "deletion"].values.tolist()
    assert deletion["curves"] == made.measurements["grad-cam", "deletion"].curves.tolist()
    assert deletion["mean"] == made.cell("grad-cam", "deletion").mean
    assert told["techniques"]["grad-cam"]["metrics"]["breaks"]["values"] == [None, None]
    rows = list(csv.DictReader((folder / "values.csv").read_text().splitlines()))
    assert [(row["image"], row["technique"]) for row in rows[:3]] == [
        ("0", "saliency"),
        ("0", "grad-cam"),
        ("1", "saliency"),
    ]
    assert float(rows[1]["deletion"]) == deletion["values"][0]
    assert rows[0]["breaks"] == ""
    page = (folder / "index.html").read_text()
    assert "ValueError(&#39;&lt;b&gt;&#39;)" in page
    assert "<b>" not in page
    assert page.count("<svg") == 3
    assert open_image(folder / "deletion.png").width > 800
    again = save_evaluation(made, folder)  # an evaluation is replaced, anything else is not
    assert (again / "deletion.png").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    for place in (tmp_path / "other", folder):
        (place / "thesis.txt").touch()
        with pytest.raises(cnnviz.SaveError, match=r"holds something else than an evaluation: thesis\.txt"):
            save_evaluation(made, place)
        assert (place / "thesis.txt").exists()
    assert (folder / "index.html").exists()


def test_labels_are_written_as_they_are(net: nn.Module, tmp_path: Path) -> None:
    """Also where matplotlib would read a formula, or where they are no UTF-8."""
    label, name = r"saliency $\alpha_{smooth$ vs $x$", os.fsdecode(b"caf\xe9")
    folder = save_evaluation(
        evaluate(net, some(2), {label: "saliency", name: "saliency"}, ["deletion"]), tmp_path / "a"
    )
    assert list(json.loads((folder / "evaluation.json").read_text())["techniques"]) == [label, name]
    assert r"caf\udce9" in (folder / "values.csv").read_text()
    assert label in (folder / "index.html").read_text()


def test_it_shows_itself_in_a_notebook(made: Evaluation) -> None:
    shown = made._repr_html_()
    assert "<th>deletion ↓</th>" in shown
    assert "<td>grad-cam</td>" in shown


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs in folders, one file that is none, one that is damaged, one that is hidden."""
    cat = demo_picture()
    (tmp_path / "cats").mkdir()
    cat.save(tmp_path / "cats" / "cat.png")
    cat.crop((0, 0, 300, 300)).save(tmp_path / "cats" / "face.JPG")
    cat.save(tmp_path / "cats" / ".hidden.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "cats" / "cat.png").read_bytes()[:60_000])
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_command_compares_techniques_over_a_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    code, told, errors = run(
        *("evaluate", str(folder), "--technique", "grad-cam", "--technique", "saliency:samples=2:noise=0.1"),
        *("--metric", "deletion:steps=2", "--out", str(tmp_path / "out"), "--json"),
    )
    assert code == 0, errors
    made = json.loads(told)
    assert [Path(name).name for name in made["images"]] == ["cat.png", "face.JPG"]
    assert list(made["techniques"]) == ["grad-cam", "saliency:samples=2:noise=0.1"]
    assert made["techniques"]["saliency:samples=2:noise=0.1"]["provenance"]["options"]["samples"] == 2
    assert made["metrics"]["deletion"]["options"]["steps"] == 2
    assert "damaged or truncated" in made["left_out"][str(folder / "damaged.png")]
    assert (tmp_path / "out" / "index.html").exists()


def test_command_reads_boxes_in_pixels_of_the_photograph(run: Run, folder: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,left,top,right,bottom,label\ncat.png,30,0,370,300,Egyptian cat\nface.JPG,0,0,5,5,tabby\n")
    arguments = ("evaluate", str(folder / "cats"), "--boxes", str(boxes), "--technique", "grad-cam", "--json")
    code, told, errors = run(*arguments, "--metric", "pointing-game", "--out", str(tmp_path / "out"))
    assert code == 0, errors
    made = json.loads(told)["techniques"]["grad-cam"]
    assert made["metrics"]["pointing-game"]["values"] == [1.0, None]  # the second box lies outside of the crop
    assert made["provenance"]["target"] == "class 285 Egyptian cat, 281 tabby"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image,left,top,right\n", "has no column bottom"),
        ("image,left,top,right,bottom\ndog.png,1,2,3,4\n", "'dog.png' is none of the images"),
        ("image,left,top,right,bottom\ncat.png,1,2,3,x\n", "could not convert string to float: 'x'"),
        ("image,left,top,right,bottom\ncat.png,1,2,3\n", "expected four numbers"),
        ("image,left,top,right,bottom\ncat.png,30,40,20,10\n", "expected left, top, right, bottom, in this order"),
        ("image,left,top,right,bottom\ncat.png,nan,40,200,100\n", "expected left, top, right, bottom, in this order"),
        ("image,left,top,right,bottom,label\ncat.png,1,2,3,4,tabby\n", "face.JPG' has no label or several"),
    ],
)
def test_command_says_what_is_wrong_with_boxes(run: Run, folder: Path, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    code, _, errors = run("evaluate", str(folder / "cats"), "--boxes", str(tmp_path / "boxes.csv"))
    assert code == 2
    assert told in errors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "nowhere' does not exist"),
        (("cats", "--technique", "saliency:samples"), "expected option=value"),
        (("cats", "--technique", "saliency:samples=x"), "'samples' of 'saliency': got 'x'"),
        (("cats", "--technique", "saliency:sample=3"), "nearest: 'samples'"),
        (("cats", "--metric", "box-energy"), "compares with boxes"),
        (("cats", "--metric", "deletion", "--metric", "deletion:steps=3"), "--metric deletion is named twice"),
        (("cats", "--technique", "grad-cam:memory=1"), "'memory' is no option of 'grad-cam'"),
        (("cats", "--metric", "delete"), "cnnviz list --metrics shows all"),
        (("cats", "--target", "5000", "--technique", "saliency", "--metric", "deletion"), "class 5000 is out of range"),
        (("cats", "--out", ".."), "holds something else than an evaluation"),
    ],
)
def test_command_says_what_is_wrong(run: Run, folder: Path, arguments: tuple[str, ...], told: str) -> None:
    code, _, errors = run("evaluate", str(folder / arguments[0]), *arguments[1:])
    assert code == 2
    assert told in errors


def test_folder_without_images_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, errors = run("evaluate", str(tmp_path))
    assert code == 2
    assert "has no images" in errors


def test_each_input_may_have_a_channel_of_its_own(net: nn.Module) -> None:
    targets = [cnnviz.channel("conv2", 0), cnnviz.channel("conv2", 1)]
    made = evaluate(net, some(2), ["saliency"], {"deletion": {"steps": 3}}, target=targets)
    assert not made.failures
    expected = [measure(net, some(2)[i : i + 1], "saliency", "deletion", target=targets[i], steps=3) for i in (0, 1)]
    torch.testing.assert_close(
        torch.cat([one.values for one in expected]), made.measurements["saliency", "deletion"].values, rtol=0, atol=1e-6
    )


def test_a_reversed_array_is_a_map(net: nn.Module) -> None:
    heat = some(1).mean(1, keepdim=True).numpy()
    given = {"metric": "deletion", "target": 0, "steps": 3}
    mirrored = measure(net, some(1), heat[..., ::-1], **given)
    assert torch.equal(mirrored.values, measure(net, some(1), heat[..., ::-1].copy(), **given).values)
