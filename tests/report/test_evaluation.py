"""The page of an evaluation, and the folder that it lies in."""

from __future__ import annotations

from pathlib import Path

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
