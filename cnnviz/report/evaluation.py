"""An evaluation as a folder: a page with table and plots, the plots, and every number."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ..explanation import Provenance
from ..metrics import Evaluation, available
from ..writing import UNENCODABLE, Kind
from .template import render_page

PAGE: Final = "index.html"
NUMBERS: Final = "evaluation.json"
VALUES: Final = "values.csv"
_DOTS = 150  # per inch


def save_evaluation(evaluation: Evaluation, folder: str | Path) -> Path:
    """Write ``index.html``, a PNG for each metric, ``evaluation.json`` and ``values.csv``; return the folder's path.

    All of it or nothing. An evaluation that is there already is replaced; a folder with anything else is refused.

    Raises:
        SaveError: the folder cannot be written, or holds something else.
    """
    import matplotlib as mpl  # slow to import, and needed only here

    def write(place: Path) -> None:
        drawn: dict[str, str] = {}
        for name in evaluation.metrics:
            figure = evaluation.figure(name)
            figure.savefig(place / f"{name}.png", dpi=_DOTS)
            drawing = io.StringIO()
            with mpl.rc_context({"svg.hashsalt": name}):  # the same numbers give the same file
                figure.savefig(drawing, format="svg", metadata={"Date": None})
            drawn[name] = drawing.getvalue()
        (place / PAGE).write_text(evaluation_page(evaluation, drawn), encoding="utf-8", errors=UNENCODABLE)
        numbers = json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        (place / NUMBERS).write_text(numbers + "\n", encoding="utf-8", errors=UNENCODABLE)
        with (place / VALUES).open("w", encoding="utf-8", errors=UNENCODABLE, newline="") as file:
            csv.writer(file).writerows(_rows(evaluation))

    return evaluation_folder(evaluation.metrics).write(folder, write)


def evaluation_folder(metrics: Iterable[str]) -> Kind:
    """Return what a folder with an evaluation by these metrics, or any that are installed, may hold."""
    owned = (PAGE, NUMBERS, VALUES, *(f"{name}.png" for name in {*metrics, *available()}))
    return Kind("an evaluation", owned, sidecar=NUMBERS, keys=("metrics", "techniques"))


def evaluation_page(evaluation: Evaluation, drawn: dict[str, str]) -> str:
    """Return the page; `drawn` has each metric's plot as SVG."""
    head, rows = evaluation.table()
    made_by = next((p for p in evaluation.provenance.values() if p is not None), None)
    best = [evaluation.best(name) for name in evaluation.metrics]
    return render_page(
        "evaluation.html.j2",
        evaluation=evaluation,
        counts=[
            (len(evaluation.techniques), "technique"),
            (len(evaluation.metrics), "metric"),
            (len(evaluation.items), "image"),
        ],
        head=head,
        rows=rows,
        best=best,
        cards=[
            {
                "name": name,
                "metric": metric,
                "options": evaluation.options[name],
                "drawing": _inline(drawn[name], number),
            }
            for number, (name, metric) in enumerate(evaluation.metrics.items())
        ],
        failures=[(" by ".join(filter(None, reversed(key))), why) for key, why in evaluation.failures.items()],
        provenance=made_by,
        options={name: _options(p) for name, p in evaluation.provenance.items()},
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _inline(drawing: str, number: int) -> str:
    """Return an SVG document as a part of a page, its ids unlike those of the other ones."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1plot-{number}-", drawing[drawing.index("<svg") :])


def _options(provenance: Provenance | None) -> str:
    options = {} if provenance is None else provenance.options
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _rows(evaluation: Evaluation) -> list[list[Any]]:
    """Return a row for each image and technique, with its values by all metrics."""
    rows: list[list[Any]] = [["image", "technique", *evaluation.metrics]]
    for number, item in enumerate(evaluation.items):
        for name in evaluation.techniques:
            values = [evaluation.measurements[name, metric].values[number].item() for metric in evaluation.metrics]
            rows.append([item, name, *("" if math.isnan(value) else value for value in values)])
    return rows
