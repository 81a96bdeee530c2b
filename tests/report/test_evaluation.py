"""The page of an evaluation, and the folder that it lies in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnviz import SaveError
from cnnviz.metric import Measurement, Metric
from cnnviz.metrics import available
from cnnviz.metrics.evaluation import Evaluation
from cnnviz.report import save_evaluation


@pytest.fixture
def made() -> Evaluation:
    """Two techniques by two metrics with curves, over three images."""
    metrics: dict[str, Metric] = {name: available()[name] for name in ("deletion", "insertion")}
    draw = torch.Generator().manual_seed(0)

    def measured() -> Measurement:
        curves = torch.rand(3, 5, generator=draw)
        return Measurement(curves.mean(1), curves, torch.linspace(0, 1, 5), ("share", "score"))

    techniques = ("saliency", "grad-cam")
    return Evaluation(
        items=("a", "b", "c"),
        metrics=metrics,
        techniques=techniques,
        measurements={(technique, metric): measured() for technique in techniques for metric in metrics},
        provenance=dict.fromkeys(techniques),
        options={name: {} for name in metrics},
        seconds={},
    )


@pytest.mark.parametrize("name", ["index.html", "values.csv", "evaluation.json", "deletion.png"])
def test_files_that_are_called_as_ours_are_are_not_taken_for_ours(made: Evaluation, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("dear")
    with pytest.raises(SaveError, match=f"than an evaluation: {name} without evaluation.json of cnnviz; give a new"):
        save_evaluation(made, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "dear"}


def test_the_page_can_be_read_in_any_way(made: Evaluation, browser: Any, tmp_path: Path) -> None:
    """The plots are parts of it, without ids of each other's, and the table is one for those who hear it."""
    folder = save_evaluation(made, tmp_path / "out")
    source = (folder / "index.html").read_text(encoding="utf-8")
    assert source.count("<svg") == 2
    assert "<?xml" not in source
    assert source.count("<!DOCTYPE") == 1
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(set(ids)) == len(ids) > 50
    asked = page.evaluate("[...document.querySelectorAll('svg use')].map(use => use.href.baseVal.slice(1))")
    asked += re.findall(r"url\(#([^)]*)\)", source)
    assert asked
    assert set(asked) <= set(ids)
    assert page.locator("thead th[scope=col]").all_inner_texts() == [
        "technique",
        "deletion ↓",
        "insertion ↑",
        "s / image",
    ]
    assert page.locator("tbody th[scope=row]").all_inner_texts() == ["saliency", "grad-cam"]
    best = [[made.best(metric) == technique for metric in made.metrics] for technique in made.techniques]
    rows = page.locator("tbody tr").all()
    assert [["★" in cell for cell in row.locator("td").all_inner_texts()] for row in rows] == [
        [*row, False] for row in best
    ]
    assert page.locator("td [role=img][aria-label=best]").count() == 2
    headings = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => [h.tagName, h.textContent])")
    assert headings[1:] == [["H2", "Metrics"], ["H3", "deletion"], ["H3", "insertion"], ["H2", "Provenance"]]
    page.close()
