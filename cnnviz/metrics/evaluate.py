"""Techniques compared by metrics over many images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from .. import targets
from ..data import open_image
from ..errors import CnnvizError, InputError, PluginError, TargetError, reason
from ..explainer import Explainer, Inputs, attempt, prepare
from ..explanation import Heatmap, Provenance
from ..metric import Measurement, Metric
from ..models import Model
from ..registry import metrics as known_metrics
from ..registry import techniques as known_techniques
from ..request import Progress, within
from ..technique import Technique
from .evaluation import Evaluation
from .measure import Boxes, Judge, checked_boxes, explainer_of, heatmap_of

_GROUP = 16  # images that are explained at once

Techniques: TypeAlias = "Sequence[str | Technique | Explainer] | Mapping[str, str | Technique | Explainer]"
Metrics: TypeAlias = "Sequence[str | Metric] | Mapping[str, Mapping[str, Any]]"
Made = TypeVar("Made")
Started: TypeAlias = Callable[[str], None]


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
            ones of the family "attribution" that take seconds.
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
    techniques = [techniques] if isinstance(techniques, str) else techniques
    metrics = [metrics] if isinstance(metrics, str) else metrics
    explainers = _explainers(model, techniques, memory)
    judges = _judges(model, metrics, memory, boxed=boxes is not None)
    described = model if isinstance(model, Model) else Model(model)
    items = _items(inputs, described)
    wanted = _wanted(target, len(items), described)
    near = None if boxes is None else checked_boxes(boxes, len(items))
    record = _Record(explainers, judges)
    rounds = len(explainers) * (1 + len(judges))
    for group in _groups(items, described, record):
        numbers = [number for number, _ in group]
        chosen = _Group(
            names=[items[i][0] for i in numbers],
            images=torch.stack([row for _, row in group]),
            target=[wanted[i] for i in numbers] if isinstance(wanted, list) else wanted,
            boxes=None if near is None else [near[i] for i in numbers],
        )
        begin, end = numbers[0] / len(items), (numbers[-1] + 1) / len(items)
        for turn, (label, name) in enumerate((t, m) for t in explainers for m in ("", *judges)):
            if started is not None:
                started(f"{label}, {name}" if name else label)
            width = (end - begin) / rounds
            share = begin + turn * width, begin + (turn + 1) * width
            step = None if progress is None else within(progress, share)
            if not name:
                record.explain(label, chosen, seed, step)
            else:
                record.measure(label, name, chosen, seed, step)
    return record.evaluation(len(items))


@dataclass(frozen=True)
class _Group:
    """Images that are explained at once.

    Attributes:
        names: theirs.
        images: (k, C, H, W).
        target: a list with one for each, or what they have in common.
        boxes: of each, or None.
    """

    names: list[str]
    images: Tensor
    target: Any
    boxes: list[Tensor] | None

    def told(self, part: slice) -> str:
        """Return in words, for an error, which image a part is; "" where it is several."""
        return f"{self.names[part.start]}: " if part.stop - part.start == 1 else ""


class _Record:
    """What was found so far."""

    def __init__(self, explainers: dict[str, Explainer], judges: dict[str, Judge]) -> None:
        self.explainers = explainers
        self.judges = judges
        self.items: list[str] = []
        self.left_out: dict[str, str] = {}
        self._explained: list[tuple[slice, Heatmap | None]] = []  # what of the group, and how
        self._errors: dict[tuple[str, str], tuple[str, Exception]] = {}
        self._provenance: dict[str, Provenance | None] = dict.fromkeys(explainers)
        self._seconds: dict[str, tuple[float, int]] = {}
        self._parts: dict[tuple[str, str], list[Measurement]] = {}

    def explain(self, label: str, group: _Group, seed: int, step: Progress | None) -> None:
        """Explain a group of images by one technique."""
        explainer = self.explainers[label]

        def explained(part: slice, watched: Progress) -> Heatmap:
            return heatmap_of(explainer, group.images[part], _of(group.target, part), seed=seed, progress=watched)

        self._explained = []
        for part, heatmap, error in _attempted(explained, slice(0, len(group.images)), step):
            self._explained.append((part, heatmap))
            if error is not None:
                self._errors.setdefault((label, ""), (group.told(part), error))
            if heatmap is not None and heatmap.provenance is not None:
                self._provenance[label] = heatmap.provenance
                seconds, count = self._seconds.get(label, (0.0, 0))
                self._seconds[label] = (seconds + heatmap.provenance.seconds, count + len(heatmap.values))

    def measure(self, label: str, name: str, group: _Group, seed: int, step: Progress | None) -> None:
        """Measure what was explained last by one metric."""
        judge, explainer = self.judges[name], self.explainers[label]
        parts = self._parts.setdefault((label, name), [])
        for whole, heatmap in self._explained:
            if heatmap is None:
                parts.append(_nothing(whole))
                continue

            def measured(part: slice, watched: Progress, heatmap: Heatmap = heatmap, first: int = whole.start) -> Any:
                known = slice(part.start - first, part.stop - first)  # in the heatmap
                goal = _of(group.target, part) if heatmap.target is None else heatmap.target[known]
                given = {"boxes": _of(group.boxes, part), "explainer": explainer, "seed": seed, "progress": watched}
                return _like(judge(group.images[part], heatmap.values[known], goal, **given), parts)

            for part, made, error in _attempted(measured, whole, step):
                if error is not None:
                    self._errors.setdefault((label, name), (group.told(part), error))
                parts.append(made or _nothing(part))

    def evaluation(self, count: int) -> Evaluation:
        """Return all of it.

        Raises:
            CnnvizError: nothing could be read, or measured.
        """
        if not self.items:
            raise InputError(f"none of the {count} images can be read: {next(iter(self.left_out.values()))}")
        if self._errors and all(part.values.isnan().all() for parts in self._parts.values() for part in parts):
            first = next(iter(self._errors.values()))[1]
            raise first if isinstance(first, CnnvizError) else PluginError(f"nothing could be measured: {first!r}")
        return Evaluation(
            items=tuple(self.items),
            metrics={name: judge.metric for name, judge in self.judges.items()},
            techniques=tuple(self.explainers),
            measurements={key: _joined(parts) for key, parts in self._parts.items()},
            provenance=self._provenance,
            options={n: judge.explainer.options.model_dump(mode="json") for n, judge in self.judges.items()},
            seconds={label: seconds / images for label, (seconds, images) in self._seconds.items()},
            failures={key: self._told(key) for key in self._errors},
            left_out=self.left_out,
        )

    def _told(self, key: tuple[str, str]) -> str:
        """Return why something failed, and on which image first, where it did not on all."""
        where, error = self._errors[key]
        some = any(not part.values.isnan().all() for part in self._parts[key]) if key[1] else key[0] in self._seconds
        return f"{where if some else ''}{reason(error)}"


def _of(values: Any, part: slice) -> Any:
    """Return what belongs to a part of a group: of a list that part, otherwise what all have in common."""
    return values[part] if isinstance(values, list) else values


def _nothing(part: slice) -> Measurement:
    return Measurement(torch.full((part.stop - part.start,), math.nan, dtype=torch.float32, device="cpu"))


def _attempted(
    work: Callable[[slice, Progress], Made], whole: slice, step: Progress | None
) -> list[tuple[slice, Made | None, Exception | None]]:
    """Attempt work on a part of a group and, where that fails, on each image of it by itself."""
    made, error = attempt(partial(work, whole), step)
    if error is None or whole.stop - whole.start == 1:
        return [(whole, made, error)]

    def ended(*_: int) -> None:  # the share has passed already; it may be cancelled
        if step is not None:
            step(1, 1)

    found: list[tuple[slice, Made | None, Exception | None]] = []
    for number in range(whole.start, whole.stop):
        one = slice(number, number + 1)
        found.append((one, *attempt(partial(work, one), ended)))
    return found if any(error is None for *_, error in found) else [(whole, None, error)]


def _like(made: Measurement, parts: list[Measurement]) -> Measurement:
    """Return a measurement on the CPU, after checking that its curves can stand beside those of other groups."""
    before = next((part.curves for part in parts if part.curves is not None), made.curves)
    if before is not None and made.curves is not None and made.curves.shape[1] != before.shape[1]:
        raise PluginError(f"its curves have {made.curves.shape[1]} points here, and {before.shape[1]} on other images")
    curves, places = (None if x is None else x.cpu() for x in (made.curves, made.places))
    return Measurement(made.values.cpu(), curves, places, made.axes)


def _joined(parts: list[Measurement]) -> Measurement:
    """Join the measurements of consecutive groups; one that failed has no curves."""
    values = torch.cat([part.values for part in parts])
    model = next((part for part in parts if part.curves is not None), None)
    if model is None or model.places is None or model.curves is None:
        return Measurement(values)
    width = len(model.places)
    curves = [
        model.curves.new_full((len(part.values), width), math.nan) if part.curves is None else part.curves
        for part in parts
    ]
    return Measurement(values, torch.cat(curves), model.places, model.axes)


def _explainers(
    model: nn.Module | Model, techniques: Techniques | None, memory: int | str | None
) -> dict[str, Explainer]:
    if techniques is None:
        techniques = [
            name  # which, unlike the technique itself, tells who brings it
            for name, technique in known_techniques().usable().items()
            if technique.family == "attribution" and technique.inputs == "each" and technique.quick
        ]
    if not isinstance(techniques, Mapping):
        labels = [_label(technique) for technique in techniques]
        double = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
        if double is not None:
            raise InputError(f"technique '{double}' is named twice; give a dictionary with labels of your own")
        techniques = dict(zip(labels, techniques, strict=True))
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
        usable = known_metrics().usable().values()
        metrics = [m for m in usable if m.ready and not m.explains and (boxed or not m.boxes)]
    named = metrics.items() if isinstance(metrics, Mapping) else [(metric, {}) for metric in metrics]
    made: dict[str, Judge] = {}
    for metric, options in named:
        judge = Judge(model, metric, memory=memory, **options)
        if judge.metric.name in made:
            raise InputError(f"metric '{judge.metric.name}' is named twice; evaluate it once more by itself")
        if judge.metric.boxes and not boxed:
            raise InputError(f"metric '{judge.metric.name}' compares with boxes; give boxes=… for each input")
        made[judge.metric.name] = judge
    if not made:
        raise PluginError("there is no metric to evaluate by; name one")
    return made


def _items(inputs: Any, model: Model) -> list[tuple[str, Any]]:
    """Return each input with its name: rows of a tensor, or pictures that are opened later.

    Raises:
        InputError: neither a float tensor that the model can take, nor pictures that it can be fed.
    """
    given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if isinstance(inputs, Tensor):
        return [(str(i), row) for i, row in enumerate(prepare(inputs, model)[0])]
    if not given or model.preprocess is None or not all(isinstance(item, (str, Path, Image.Image)) for item in given):
        prepare(inputs, model)  # which tells what is wrong
    return [(str(item) if isinstance(item, (str, Path)) else str(i), item) for i, item in enumerate(given)]


def _groups(items: list[tuple[str, Any]], model: Model, record: _Record) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield numbers and rows, (C, H, W), of consecutive inputs of one size; what cannot be read is left out."""
    group: list[tuple[int, Tensor]] = []
    for number, (name, item) in enumerate(items):
        try:
            row = item if isinstance(item, Tensor) else model.prepare([open_image(item)])[0]
        except InputError as error:
            record.left_out[name] = str(error)
            continue
        record.items.append(name)
        if len(group) == _GROUP or (group and group[0][1].shape != row.shape):
            yield group
            group = []
        group.append((number, row))
    if group:
        yield group


def _wanted(target: targets.Target, count: int, model: Model) -> Any:
    """Return a class index or a selector for each input, or what all have in common."""
    resolved = targets.resolve(target, count, model.labels)
    if targets.columns(resolved) > 1:
        raise TargetError(f"target: got {targets.columns(resolved)} for each input; evaluate them one by one")
    if isinstance(resolved, targets.Several):
        return list(resolved.parts)
    return resolved[:, 0].tolist() if isinstance(resolved, Tensor) else resolved
