"""What comes out when techniques are compared."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import Any

from ..explanation import Provenance
from ..metric import Measurement, Metric


@dataclass(frozen=True)
class Cell:
    """A technique's mean by one metric.

    Attributes:
        mean: over the images that the metric says something about; NaN where there are none.
        error: standard error of the mean; NaN for fewer than two images.
        count: how many images.
    """

    mean: float
    error: float
    count: int


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What came out of `evaluate`.

    Attributes:
        items: the images, by name or number.
        metrics: the metrics, by name.
        techniques: the techniques, as they were labelled.
        measurements: by technique and metric; rows are the items, NaN where a technique or metric failed.
        provenance: of each technique's explanations; None where it failed on every image.
        options: of each metric.
        seconds: of explaining one image, by technique.
        failures: what could not be done, and why, by technique and metric ("" where the technique itself failed).
        left_out: images that could not be read, and why.
    """

    items: tuple[str, ...]
    metrics: dict[str, Metric]
    techniques: tuple[str, ...]
    measurements: dict[tuple[str, str], Measurement]
    provenance: dict[str, Provenance | None]
    options: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def cell(self, technique: str, metric: str) -> Cell:
        """Return a technique's mean by a metric, its standard error, and the number of images."""
        values = self.measurements[technique, metric].values.double()
        known = values[~values.isnan()]
        count = len(known)
        error = float(known.std()) / math.sqrt(count) if count > 1 else math.nan
        return Cell(float(known.mean()) if count else math.nan, error, count)

    def best(self, metric: str) -> str | None:
        """Return the technique with the best mean by a metric, or None where there is nothing to compare."""
        means = {name: self.cell(name, metric).mean for name in self.techniques}
        means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        if len(means) < 2:
            return next(iter(means)) if means and len(self.techniques) > 1 else None
        pick = max if self.metrics[metric].better == "higher" else min
        return pick(means, key=means.__getitem__)

    def __repr__(self) -> str:
        head, rows = self.table()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
        return "\n".join(line.rstrip() for line in lines)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows of the comparison as text: mean ± standard error, seconds for one image."""
        arrows = {"higher": "↑", "lower": "↓"}
        head = ["technique", *(f"{name} {arrows[metric.better]}" for name, metric in self.metrics.items()), "s / image"]
        rows = []
        for name in self.techniques:
            cells = [self.cell(name, metric) for metric in self.metrics]
            rows.append([name, *map(told, cells), f"{self.seconds[name]:.3g}" if name in self.seconds else "–"])
        return head, rows

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data; numbers that are not known are None."""
        return {
            "images": list(self.items),
            "left_out": self.left_out,
            "metrics": {
                name: {"better": metric.better, "summary": metric.summary, "options": self.options[name]}
                for name, metric in self.metrics.items()
            },
            "techniques": {
                name: {
                    "provenance": made.to_json() if (made := self.provenance[name]) else None,
                    "seconds": self.seconds.get(name),
                    "metrics": {metric: self._numbers(name, metric) for metric in self.metrics},
                }
                for name in self.techniques
            },
            "failures": [{"technique": t, "metric": m, "reason": why} for (t, m), why in self.failures.items()],
        }

    def _numbers(self, technique: str, metric: str) -> dict[str, Any]:
        cell, made = self.cell(technique, metric), self.measurements[technique, metric]
        numbers: dict[str, Any] = {"mean": _plain(cell.mean), "standard_error": _plain(cell.error), "count": cell.count}
        numbers["values"] = [_plain(value) for value in made.values.tolist()]
        if made.curves is not None and made.places is not None:
            numbers["places"] = made.places.tolist()
            numbers["curves"] = [[_plain(value) for value in row] for row in made.curves.tolist()]
        return numbers

    def figure(self, metric: str) -> Any:
        """Return a matplotlib figure of a metric: each technique's mean, and its mean curve where there are curves."""
        from .plot import figure

        return figure(self, metric)

    def _repr_html_(self) -> str:
        head, rows = self.table()
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def told(cell: Cell) -> str:
    """Return a mean and its standard error as text."""
    if math.isnan(cell.mean):
        return "–"
    return f"{cell.mean:.3g}" if math.isnan(cell.error) else f"{cell.mean:.3g} ± {cell.error:.1g}"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
