"""One metric, applied to the explanations of some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy
import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError, PluginError, TargetError
from ..explainer import Explainer, Inputs
from ..explanation import Heatmap
from ..metric import Case, Measurement, Metric
from ..models import Model, unwrap
from ..registry import metrics
from ..request import Progress, Request, within
from ..targets import Target, describe
from ..technique import Technique

Explained: TypeAlias = "Heatmap | Tensor | numpy.ndarray[Any, Any] | str | Technique | Explainer"
"""Finished maps, or what makes them."""

Boxes: TypeAlias = "Sequence[Tensor | Sequence[Sequence[float]]]"
"""For each input its boxes, (k, 4): left, top, right and bottom in pixels of the input."""


def measure(
    model: nn.Module | Model,
    inputs: Inputs,
    explained: Explained,
    metric: str | Metric,
    *,
    target: Target = None,
    boxes: Boxes | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Measurement:
    """Measure explanations by a metric. The model is borrowed, and left exactly as it was.

    Args:
        model: as for `explain`.
        inputs: as for `explain`.
        explained: the inputs' `Heatmap`, or (N, C, h, w) tensor or array from anywhere, or what makes it: a technique's
            name, a `Technique`, or an `Explainer` with options and layers of its own.
        metric: a name from `available()`, or a `Metric` of your own.
        target: as for `explain`; None is what a `Heatmap` explains, else each sample's top class.
        boxes: for each input its boxes, (k, 4) as left, top, right and bottom in pixels of the input, for metrics that
            compare with them.
        seed: of explanation and metric; every sample draws the same numbers, so that batches equal singles.
        memory: as for `explain`.
        progress: called with steps done and their total, first for the explanation; may raise to cancel.
        **options: the metric's own.

    Raises:
        CnnvizError: one of its subclasses; says what was got, what is expected and what to do next.

    Example:
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        >>> cnnviz.metrics.measure(net, torch.rand(2, 3, 8, 8), "saliency", "deletion", steps=4).curves.shape
        torch.Size([2, 5])
    """
    judge = Judge(model, metric, memory=memory, **options)
    if isinstance(explained, numpy.ndarray):
        explained = torch.as_tensor(numpy.ascontiguousarray(explained), device="cpu")
    explainer = None if isinstance(explained, (Heatmap, Tensor)) else explainer_of(model, explained, memory)
    if explainer is not None:
        explained = heatmap_of(explainer, inputs, target, seed=seed, progress=progress)
    if isinstance(explained, Heatmap):
        target, explained = _target_of(explained, target), explained.values
    assert isinstance(explained, Tensor)
    return judge(inputs, explained, target, boxes=boxes, explainer=explainer, seed=seed, progress=progress)


def _target_of(heatmap: Heatmap, target: Target) -> Target:
    """Return what a heatmap explains, unless a target was named."""
    if target is not None:
        return target
    if heatmap.target is None:
        raise TargetError("the heatmap explains no class; give the target that it explains as target=…")
    return heatmap.target


def explainer_of(model: nn.Module | Model, made_by: Any, memory: int | str | None) -> Explainer:
    """Return the explainer for what names one."""
    if not isinstance(made_by, Explainer):
        return Explainer(model, made_by, memory=memory)
    module = model.module if isinstance(model, Model) else model
    if made_by.model is None or unwrap(made_by.model.module) is not unwrap(module):
        raise ModelError("the Explainer was made for another network than the one that is given; make it for this one")
    return made_by


def heatmap_of(
    explainer: Explainer, inputs: Inputs, target: Target, *, seed: int, progress: Progress | None
) -> Heatmap:
    """Explain, for techniques that return heatmaps of a target."""
    made = explainer(inputs, target, seed=seed, progress=progress)
    if not isinstance(made, Heatmap) or made.scores is None:
        raise PluginError(
            f"technique '{explainer.technique.name}' explains no target by a heatmap; metrics measure those that do"
        )
    return made


class Judge:
    """A metric prepared for one model, with its options; call it many times, from any thread."""

    def __init__(
        self, model: nn.Module | Model, metric: str | Metric, *, memory: int | str | None, **options: Any
    ) -> None:
        self.metric = metric if isinstance(metric, Metric) else metrics()[metric]
        # A metric is given what a technique is given, and takes options as a technique does.
        function: Any = self.metric.function
        technique = Technique(self.metric.name, function, self.metric.options, family="metric", inputs="all")
        self.explainer = Explainer(model, technique, memory=memory, **options)

    def __call__(
        self,
        inputs: Inputs,
        values: Tensor,
        target: Target,
        *,
        boxes: Boxes | None,
        explainer: Explainer | None,
        seed: int,
        progress: Progress | None,
    ) -> Measurement:
        """Measure explanations `values`, (N, C, h, w); see `measure`."""
        metric = self.metric
        if metric.explains and explainer is None:
            raise InputError(
                f"metric '{metric.name}' explains again, and got maps alone; give a technique's name or an Explainer"
            )
        if metric.boxes and boxes is None:
            raise InputError(f"metric '{metric.name}' compares with boxes; give boxes=… for each input")
        with self.explainer.request(inputs, target, seed=seed, progress=progress) as request:
            images = request.inputs
            if values.dim() != 4 or len(values) != len(images) or values.numel() == 0:
                raise InputError(
                    f"explanations: got {describe(values)} for inputs {tuple(images.shape)}, expected (N, C, h, w), "
                    "a row for each input; explain one target for each"
                )
            if not values.is_floating_point():
                raise InputError(f"explanations: got {values.dtype}, expected floating point; convert them")
            if not bool(torch.isfinite(values).all()):
                raise InputError("explanations: got values that are not finite; look for NaN in what made them")
            dtype = torch.promote_types(torch.promote_types(values.dtype, images.dtype), torch.float32)
            case = Case(
                request,
                values.detach().to(images.device, dtype, copy=True),
                None if boxes is None else checked_boxes(boxes, len(images)),
                None if explainer is None else _explains(explainer, request, target, seed, dtype),
            )
            try:
                made = metric.function(case, self.explainer.options)
            except SystemExit as error:
                raise PluginError(f"metric '{metric.name}' called sys.exit({error.code!r})") from error
            request.progress(1, 1)
        if not isinstance(made, (Tensor, Measurement)):
            raise PluginError(f"metric '{metric.name}' returned {describe(made)}, expected a tensor or a Measurement")
        made = Measurement(made) if isinstance(made, Tensor) else made
        if len(made.values) != len(values):
            raise PluginError(f"metric '{metric.name}' returned {len(made.values)} values for {len(values)} samples")
        return replace(made, values=made.values.detach(), curves=None if made.curves is None else made.curves.detach())


def _explains(explainer: Explainer, request: Request, target: Target, seed: int, dtype: torch.dtype) -> Any:
    """Return a function that explains other inputs, or another network, for the targets that the request has."""

    def explain(inputs: Tensor, module: nn.Module | None, share: tuple[float, float]) -> Tensor:
        classes = request.classes()
        goal = target if classes is None else classes
        chosen = explainer if module is None else explainer.on(module)
        made = heatmap_of(chosen, inputs, goal, seed=seed, progress=within(request.progress, share))
        return made.values.to(request.inputs.device, dtype)

    return explain


def checked_boxes(boxes: Boxes, count: int) -> tuple[Tensor, ...]:
    """Return each input's boxes as a tensor (k, 4).

    Raises:
        InputError: boxes are missing, or are not left, top, right and bottom.
    """
    if not isinstance(boxes, Sequence):
        raise InputError(
            f"boxes: got {boxes!r}, expected those of each input: a list of (k, 4), [] where there are none"
        )
    if len(boxes) != count:
        raise InputError(f"boxes: got those of {len(boxes)} inputs, expected {count}; give [] where there are none")
    made = []
    for i, given in enumerate(boxes):
        told = f"boxes of input {i}: got {given!r}, expected (k, 4): left, top, right and bottom, in this order"
        try:
            box = torch.as_tensor(given, dtype=torch.float64, device="cpu")
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(told) from error
        box = box.reshape(0, 4) if box.numel() == 0 else box
        right = box.dim() == 2 and box.shape[1] == 4 and bool(torch.isfinite(box).all())
        if not (right and bool((box[:, :2] <= box[:, 2:]).all())):
            raise InputError(told)
        made.append(box)
    return tuple(made)
