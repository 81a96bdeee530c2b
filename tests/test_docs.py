"""The documentation is true: its examples run, and nothing is left out."""

from __future__ import annotations

import doctest
import importlib
import inspect
import itertools
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch

import cnnviz
import cnnviz.incremental
import cnnviz.testing
from cnnviz import hookspecs
from cnnviz.data import demo_picture
from cnnviz.metrics import available

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULES = [name for _, name, _ in pkgutil.walk_packages(cnnviz.__path__, "cnnviz.") if name != "cnnviz.__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    globs = {**vars(module), "cnnviz": cnnviz, "torch": torch}
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(module, name, globs=globs):
        runner.run(test)
    assert runner.failures == 0


def test_some_docstrings_have_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name), name) if t.examples]
    assert len(found) >= 8


def test_references_are_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for name in ("techniques", "metrics"):
        page = made[f"{name}_page"]()
        assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == page, "run make docs"


def test_references_hold_no_sections_of_docstrings() -> None:
    for name in ("techniques", "metrics"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert not re.findall(r"^(?:Args|Returns|Raises|Example):", text, flags=re.MULTILINE)
        lines = text.partition("\n## ")[2].splitlines()[1:]
        run_on = [line for line, after in itertools.pairwise(lines) if _is_text(line) and _is_text(after)]
        assert not run_on, "paragraphs have a blank line between them"


def _is_text(line: str) -> bool:
    return bool(line) and line[0] not in "|#"


def test_the_gallery_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "gallery.py"))["page"]()
    assert (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8") == page, "run make gallery"


def test_the_gallery_says_what_was_run() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    source = (ROOT / "docs" / "gallery.py").read_text(encoding="utf-8")
    drawn = source[source.index("def _classes") : source.index("EXHIBITS = {")]
    for given in re.findall(r"(?<=[ ,{\"])(size|steps|seed|style_weight|sample_every)(?:=|\": )([0-9.]+)", drawn):
        assert "=".join(given) in text, f"{given} is not told"
    for prepared in re.findall(r"\.crop\(.*?\)\)\.resize\(.*?\)\)", drawn):
        assert prepared in text, f"{prepared} is not told"


@pytest.mark.parametrize("offer", [o for o in cnnviz.techniques().offers if o.distribution == "cnnviz"], ids=str)
def test_readme_names_every_technique(offer: object) -> None:
    assert f"| `{offer.name}` |" in README  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(available()))
def test_readme_names_every_metric(name: str) -> None:
    assert f"`{name}`" in README


def test_every_hook_is_documented() -> None:
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "cnnviz_spec")]
    assert 1 <= len(hooks) <= 6
    for name in hooks:
        assert getattr(hookspecs, name).__doc__
        assert name in CONTRIBUTING


def test_every_reserved_option_name_is_documented() -> None:
    from cnnviz.options import RESERVED

    for name in RESERVED:
        assert f"`{name}`" in CONTRIBUTING


@pytest.mark.parametrize("name", [name for name in cnnviz.__all__ if name != "__version__"])
def test_public_names_have_docstrings(name: str) -> None:
    if name in ("Pair", "Field"):  # an annotation and pydantic's own
        return
    assert getattr(cnnviz, name).__doc__


def test_readme_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    for turn in range(3):
        demo_picture().rotate(10 * turn).save(tmp_path / "photographs" / f"{turn}.png")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace("window=48", "window=64, stride=32"), "README.md", "exec"), scope)
    told = capsys.readouterr().out
    assert "grad-cam at features: Egyptian cat, score 18.8" in told
    assert (tmp_path / "cat-grad-cam" / "figure-000.png").is_file()
    assert scope["near"].indices[:, 0].tolist() == [0, 0]  # type: ignore[attr-defined]
    assert scope["batch"].target.tolist() == [285, 281]  # type: ignore[attr-defined]


def test_examples_of_targets_run() -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "targets.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(blocks) == 7
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/targets.md", "exec"), scope)
    assert len(scope["three"].values) == 6  # type: ignore[attr-defined]


def test_the_examples_of_other_changes_run() -> None:
    own, boxes = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "occlusion.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    for block, size in ((own, 224), (boxes, 7)):
        scope: dict[str, object] = {}
        exec(compile(block, "docs/occlusion.md", "exec"), scope)
        heat = scope["heat"]
        assert heat.values.shape == (1, 1, size, size)  # type: ignore[attr-defined]
        row, column = (7 * place // size for place in divmod(int(heat.values.argmax()), size))  # type: ignore[attr-defined]
        assert 1 <= row <= 5
        assert column <= 5, "on the cat's face"


def test_contributing_shows_the_example_plugin_as_it_is() -> None:
    source = (ROOT / "plugins" / "acme-viz" / "acme_viz" / "energy.py").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    assert len(blocks) == 3
    wanted = [line.strip() for line in source.splitlines() if line.strip()]
    for block in blocks:
        for line in filter(None, map(str.strip, block.splitlines())):
            assert line in wanted, line


def test_contributing_names_arguments_that_sweeps_have() -> None:
    told = CONTRIBUTING.partition("`request.sweep(make")[2].partition("`request.batched")[0]
    sweep, scores = told.split("`cnnviz.incremental.Changes")
    for text, function in ((sweep, cnnviz.Request.sweep), (scores, cnnviz.incremental.Changes.scores)):
        named = re.findall(r"[`(](\w+)=", text)
        assert named
        assert set(named) <= inspect.signature(function).parameters.keys()


def test_import_contract_of_the_readme_example_matches_the_plugin() -> None:
    source = (ROOT / "plugins" / "acme-viz" / "acme_viz" / "energy.py").read_text(encoding="utf-8")
    body = source[source.index("def energy") :].strip()
    assert body.split("\n\n\n")[0] in README
