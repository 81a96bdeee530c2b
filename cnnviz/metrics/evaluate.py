"""Techniques compared by metrics over many images."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from .. import targets
from ..data import open_image
from ..errors import InputError, PluginError, TargetError
from ..explainer import Explainer, Inputs, attempt
from ..explanation import Heatmap, Provenance
from ..metric import Measurement, Metric
from ..models import Model
from ..registry import metrics as known_metrics
from ..registry import techniques as known_techniques
from ..request import Progress
from ..technique import Technique
from .measure import Boxes, Judge, explainer_of, heatmap_of

_GROUP = 16  # images that are held in memory
_STEPS = 1000  # of progress, for each technique or metric on a group

Techniques: TypeAlias = "Sequence[str | Technique | Explainer] | Mapping[str, str | Technique | Explainer]"
Metrics: TypeAlias = "Sequence[str | Metric] | Mapping[str, Mapping[str, Any]]"
Started: TypeAlias = Callable[[str], None]


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


@dataclass(frozen=True, eq=False)
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
        """Return the technique with the best mean by a metric, or None where there is none."""
        means = {name: self.cell(name, metric).mean for name in self.techniques}
        means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        pick = max if self.metrics[metric].better == "higher" else min
        return pick(means, key=means.__getitem__) if means else None

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
    return None if math.isnan(value) else value


def evaluate(
    model: nn.Module | Model,
    inputs: Inputs,
    techniques: Techniques | None = None,
    metrics: Metrics | None = None,
    *,
    target: targets.Target = None,
    boxes: Boxes | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Progress | None = None,
    started: Started | None = None,
) -> Evaluation:
    """Compare techniques by metrics over many images.

    What fails on some images is recorded, and takes nothing else down; images that cannot be read are left out.

    Args:
        model: as for `explain`.
        inputs: as for `explain`; of paths, no more than 16 images are held at a time.
        techniques: names, `Technique` or `Explainer` objects, or these by labels of your own; None takes all installed
            ones of the family "attribution" that take no thousands of forward passes.
        metrics: names or `Metric` objects, or names with their options; None takes all installed ones that do not
            explain again and, without `boxes`, need none.
        target: as for `explain`, one for each input.
        boxes: as for `measure`.
        seed: as for `measure`.
        memory: as for `explain`.
        progress: called with steps done and their total; may raise to cancel.
        started: called with the name of each technique and metric before it runs.

    Raises:
        CnnvizError: nothing can be evaluated: no readable image, unknown names, wrong options.

    Example:
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        >>> made = cnnviz.metrics.evaluate(net, torch.rand(4, 3, 8, 8), ["saliency", "grad-cam"], ["deletion"])
        >>> made.cell("saliency", "deletion").count
        4
    """
    explainers = _explainers(model, techniques, memory)
    judges = _judges(model, metrics, memory, boxed=boxes is not None)
    items = _items(inputs)
    wanted = _wanted(target, len(items), model)
    if boxes is not None and len(boxes) != len(items):
        raise InputError(f"boxes: got those of {len(boxes)} inputs, expected {len(items)}")
    record = _Record(explainers, judges)
    groups = range(0, len(items), _GROUP)
    rounds = (1 + len(judges)) * len(explainers)
    for number, start in enumerate(groups):
        part = items[start : start + _GROUP]
        images, places = _opened(part, record)
        given = _Group(
            images,
            [wanted[start + i] for i in places] if isinstance(wanted, list) else wanted,
            None if boxes is None else [boxes[start + i] for i in places],
            seed,
        )
        for turn, label in enumerate(explainers if places else ()):
            before = number * rounds + turn * (1 + len(judges))
            _run(record, label, given, _Steps(progress, started, before, len(groups) * rounds))
    if not record.items:
        raise InputError(f"none of the {len(items)} images can be read: {next(iter(record.left_out.values()))}")
    return record.evaluation()


@dataclass(frozen=True)
class _Group:
    """Images that are explained at once, with their targets and boxes."""

    images: Any
    target: Any
    boxes: Any
    seed: int


@dataclass
class _Steps:
    """Progress within one of many rounds, in thousandths of a round."""

    progress: Progress | None
    started: Started | None
    done: int
    total: int

    def begin(self, what: str) -> Progress:
        """Begin another round; return its progress."""
        before, self.done = self.done, self.done + 1
        if self.started is not None:
            self.started(what)

        def step(done: int, total: int) -> None:
            if self.progress is not None:
                share = min(done * _STEPS // max(total, 1), _STEPS)
                self.progress(before * _STEPS + share, self.total * _STEPS)

        return step


def _run(record: _Record, label: str, group: _Group, steps: _Steps) -> None:
    """Explain a group of images by one technique, and measure the maps by every metric."""
    count = len(group.images)
    explainer = record.explainers[label]
    heatmap, why = attempt(
        lambda step: heatmap_of(explainer, group.images, group.target, seed=group.seed, progress=step),
        steps.begin(label),
    )
    record.explained(label, heatmap, why, count)
    for name, judge in record.judges.items():
        step = steps.begin(f"{label}, {name}")
        if heatmap is None:
            record.measured(label, name, None, "", count)
            continue
        goal = group.target if heatmap.target is None else heatmap.target
        work = partial(_judged, judge, group, heatmap.values, goal, explainer)
        record.measured(label, name, *attempt(work, step), count)


def _judged(
    judge: Judge, group: _Group, values: Tensor, target: Any, explainer: Explainer, progress: Progress
) -> Measurement:
    return judge(
        group.images, values, target, boxes=group.boxes, explainer=explainer, seed=group.seed, progress=progress
    )


class _Record:
    """What was found so far."""

    def __init__(self, explainers: dict[str, Explainer], judges: dict[str, Judge]) -> None:
        self.explainers = explainers
        self.judges = judges
        self.items: list[str] = []
        self.left_out: dict[str, str] = {}
        self._failures: dict[tuple[str, str], str] = {}
        self._provenance: dict[str, Provenance | None] = dict.fromkeys(explainers)
        self._seconds: dict[str, tuple[float, int]] = {}
        self._parts: dict[tuple[str, str], list[Measurement]] = {}

    def explained(self, label: str, heatmap: Heatmap | None, why: str, count: int) -> None:
        """Take in what a technique made of a group of images, or why it failed."""
        if heatmap is None:
            self._failures.setdefault((label, ""), why)
            return
        assert heatmap.provenance is not None
        self._provenance[label] = heatmap.provenance
        seconds, images = self._seconds.get(label, (0.0, 0))
        self._seconds[label] = (seconds + heatmap.provenance.seconds, images + count)

    def measured(self, label: str, metric: str, made: Measurement | None, why: str, count: int) -> None:
        """Take in what a metric made of the explanations of a group of images, or why it failed."""
        if why:
            self._failures.setdefault((label, metric), why)
        made = made or Measurement(torch.full((count,), math.nan))
        self._parts.setdefault((label, metric), []).append(made)

    def evaluation(self) -> Evaluation:
        """Return all of it."""
        return Evaluation(
            items=tuple(self.items),
            metrics={name: judge.metric for name, judge in self.judges.items()},
            techniques=tuple(self.explainers),
            measurements={key: _joined(parts) for key, parts in self._parts.items()},
            provenance=self._provenance,
            options={n: judge.explainer.options.model_dump(mode="json") for n, judge in self.judges.items()},
            seconds={label: seconds / images for label, (seconds, images) in self._seconds.items()},
            failures=self._failures,
            left_out=self.left_out,
        )


def _joined(parts: list[Measurement]) -> Measurement:
    """Join the measurements of consecutive groups; one that failed has no curves."""
    values = torch.cat([part.values.cpu() for part in parts])
    model = next((part for part in parts if part.curves is not None), None)
    if model is None or model.places is None:
        return Measurement(values)
    width = len(model.places)
    blank = (torch.full((len(part.values), width), math.nan) for part in parts)
    curves = [none if part.curves is None else part.curves.cpu() for part, none in zip(parts, blank, strict=True)]
    return Measurement(values, torch.cat(curves), model.places.cpu(), model.axes)


def _explainers(
    model: nn.Module | Model, techniques: Techniques | None, memory: int | str | None
) -> dict[str, Explainer]:
    if techniques is None:
        techniques = [
            technique
            for technique in known_techniques().usable().values()
            if technique.family == "attribution" and technique.inputs == "each" and not technique.thousands
        ]
    if not isinstance(techniques, Mapping):
        techniques = {_label(technique): technique for technique in techniques}
    if not techniques:
        raise PluginError("there is no technique to evaluate; name one")
    return {label: explainer_of(model, technique, memory) for label, technique in techniques.items()}


def _label(technique: str | Technique | Explainer) -> str:
    named = technique.technique if isinstance(technique, Explainer) else technique
    return named.name if isinstance(named, Technique) else str(named)


def _judges(
    model: nn.Module | Model, metrics: Metrics | None, memory: int | str | None, *, boxed: bool
) -> dict[str, Judge]:
    if metrics is None:
        metrics = [m for m in known_metrics().usable().values() if not m.explains and (boxed or not m.boxes)]
    named = metrics.items() if isinstance(metrics, Mapping) else [(metric, {}) for metric in metrics]
    made = {}
    for metric, options in named:
        judge = Judge(model, metric, memory=memory, **options)
        if judge.metric.boxes and not boxed:
            raise InputError(f"metric '{judge.metric.name}' compares with boxes; give boxes=… for each input")
        made[judge.metric.name] = judge
    return made


def _items(inputs: Any) -> list[tuple[str, Any]]:
    """Return each input with its name."""
    if isinstance(inputs, Tensor):
        return [(str(i), row) for i, row in enumerate(inputs)]
    given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    return [(str(item) if isinstance(item, (str, Path)) else str(i), item) for i, item in enumerate(given)]


def _opened(items: list[tuple[str, Any]], record: _Record) -> tuple[Any, list[int]]:
    """Return what can be read of some inputs, as `explain` takes it, and their places."""
    images: list[Any] = []
    places: list[int] = []
    for place, (name, item) in enumerate(items):
        try:
            images.append(open_image(item) if isinstance(item, (str, Path, Image.Image)) else item)
        except InputError as error:
            record.left_out[name] = str(error)
            continue
        places.append(place)
        record.items.append(name)
    return torch.stack(images) if images and isinstance(images[0], Tensor) else images, places


def _wanted(target: targets.Target, count: int, model: nn.Module | Model) -> Any:
    """Return a class index for each input, or what all have in common."""
    resolved = targets.resolve(target, count, model.labels if isinstance(model, Model) else None)
    if targets.columns(resolved) > 1:
        raise TargetError(f"target: got {targets.columns(resolved)} for each input; evaluate them one by one")
    return resolved[:, 0].tolist() if isinstance(resolved, Tensor) else resolved
