"""What is explained: a class, a label, the top class, something inside the network, or what a callable makes of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy
import torch
from torch import Tensor

from .errors import LayerError, OptionError, TargetError, nearest
from .models import fingerprint


@dataclass(frozen=True)
class Channel:
    """A channel of a layer; made by `channel`."""

    layer: str
    index: int
    reduce: Literal["mean", "max"] = "mean"

    def score(self, output: Any) -> Tensor:
        """Return the channel's mean or maximum over space: (rows, C, …) -> (rows,)."""
        picked = _channel(output, self.layer, self.index)
        picked = picked.reshape(len(picked), -1)  # a vector's channel is one number
        return picked.mean(1) if self.reduce == "mean" else picked.amax(1)

    def __str__(self) -> str:
        return f"channel {self.index} of {self.layer} ({self.reduce})"


@dataclass(frozen=True)
class Neuron:
    """One unit of a layer; made by `neuron`."""

    layer: str
    index: int
    y: int
    x: int

    def score(self, output: Any) -> Tensor:
        """Return the unit's activation: (rows, C, h, w) -> (rows,)."""
        picked = _channel(output, self.layer, self.index)
        if picked.dim() != 3:
            raise TargetError(
                f"neuron of layer '{self.layer}': its output {tuple(output.shape)} is no map; use cnnviz.channel"
            )
        height, width = picked.shape[1:]
        if not (-height <= self.y < height and -width <= self.x < width):
            raise TargetError(
                f"neuron ({self.y}, {self.x}) of layer '{self.layer}' lies outside of its {height} x {width} map"
            )
        return picked[:, self.y, self.x]

    def __str__(self) -> str:
        return f"neuron ({self.y}, {self.x}) of channel {self.index} of {self.layer}"


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the space of a layer's channels; made by `direction`."""

    layer: str
    vector: Tensor

    def score(self, output: Any) -> Tensor:
        """Return the channels' mean over space times the direction: (rows, C, …) -> (rows,)."""
        _channel(output, self.layer, 0)
        if output.shape[1] != len(self.vector):
            told = f"got {len(self.vector)} numbers, but layer '{self.layer}' has {output.shape[1]} channels"
            raise TargetError(f"direction: {told}")
        scored: Tensor = output.reshape(*output.shape[:2], -1).mean(2) @ self.vector.to(output)
        return scored

    def __str__(self) -> str:
        return f"direction {fingerprint(self.vector)[:8]} in {self.layer}"


Selector: TypeAlias = Channel | Neuron | Direction
"""Selects a number inside the network."""


@dataclass(frozen=True)
class Several:
    """A selector for each sample, all in one layer."""

    parts: tuple[Selector, ...]

    @property
    def layer(self) -> str:
        """The layer of all."""
        return self.parts[0].layer

    def score(self, output: Any, rows: Tensor) -> Tensor:
        """Return what the selector of each row's sample makes of it: (rows, C, …), (rows,) -> (rows,)."""
        _channel(output, self.layer, 0)
        return torch.cat([self.parts[row].score(output[i : i + 1]) for i, row in enumerate(rows.tolist())])

    def __str__(self) -> str:
        return ", ".join(map(str, self.parts))


@dataclass(frozen=True)
class Top:
    """The classes with the highest scores; made by `top`."""

    k: int

    def __str__(self) -> str:
        return f"top {self.k} classes"


def _channel(output: Any, layer: str, index: int) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise LayerError(f"layer '{layer}' returns {describe(output)}, expected a tensor (N, C, …); name another layer")
    if not -output.shape[1] <= index < output.shape[1]:
        raise TargetError(f"channel {index} of layer '{layer}': it has channels 0 to {output.shape[1] - 1}")
    return output[:, index]


def _layer(name: Any) -> str:
    if not isinstance(name, str):
        raise OptionError(f"layer: got {describe(name)}, expected a layer's name (cnnviz.layers shows them)")
    return name


def channel(layer: str, c: int, reduce: Literal["mean", "max"] = "mean") -> Channel:
    """Select a channel of a layer as target: its mean or its maximum over space.

    Args:
        layer: dotted module name, ``name#k`` for the k-th call.
        c: channel number.
        reduce: "mean" or "max".
    """
    if reduce not in ("mean", "max"):
        raise OptionError(f"channel(reduce=…): got {reduce!r}, expected 'mean' or 'max'")
    return Channel(_layer(layer), _whole(c), reduce)


def neuron(layer: str, c: int, y: int, x: int) -> Neuron:
    """Select one unit of a layer as target: channel `c` at row `y`, column `x` of its map."""
    return Neuron(_layer(layer), _whole(c), _whole(y), _whole(x))


def direction(layer: str, vector: Sequence[float] | Tensor) -> Direction:
    """Select a direction in the space of a layer's channels: the mean over space of the product with `vector`, (C,)."""
    try:
        held = vector if isinstance(vector, Tensor) else numpy.array(vector, dtype=numpy.float64)
        made = torch.as_tensor(held, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError) as error:
        raise TargetError(f"direction: got {describe(vector)}, expected one number for each channel") from error
    if made.dim() != 1 or not bool(torch.isfinite(made).all()):
        raise TargetError(f"direction: got {tuple(made.shape)}, expected one finite number for each channel")
    return Direction(layer, made)


def top(k: int) -> Top:
    """Select the `k` classes with the highest scores of each sample as targets.

    The result has k rows for each sample, best class first: row ``i * k + j`` is sample i's class j. Techniques of the
    CAM and gradient families and sweeps of occluded or masked images run the network once for all k.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> cnnviz.explain(net, torch.rand(2, 3, 8, 8), "saliency", target=cnnviz.top(3)).values.shape
        torch.Size([6, 1, 8, 8])
    """
    if _whole(k) < 1:
        raise TargetError(f"top(k): got {k}, expected 1 or more")
    return Top(_whole(k))


ScoreFunction: TypeAlias = Callable[[Any], Tensor]
Target: TypeAlias = (
    "int | str | Sequence[int | str | Sequence[int | str]] | Tensor | Selector | Sequence[Selector] | Top "
    "| ScoreFunction | None"
)
"""What callers may give."""

Resolved: TypeAlias = "Tensor | Selector | Several | Top | ScoreFunction | None"
"""What it becomes: class indices (N, K), one or several selectors, a callable, or None for each sample's top class."""


def columns(target: Resolved) -> int:
    """Return how many targets each sample has."""
    match target:
        case Tensor():
            return target.shape[1]
        case Top():
            return target.k
        case _:
            return 1


def resolve(target: Any, count: int | None, labels: Sequence[str] | None) -> Resolved:
    """Check a target as far as is possible without running the model.

    Args:
        target: what was given.
        count: how many samples there are; None where there are as many as targets are given.
        labels: names of the classes.

    Raises:
        TargetError: an unknown or ambiguous label, a wrong number of targets, or something that is no target.
    """
    if target is None or isinstance(target, (Channel, Neuron, Direction, Top)):
        return target
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool or target.dim() > 2:
            told = f"{tuple(target.shape)} {target.dtype}"
            raise TargetError(f"target: got a tensor {told}, expected class indices (N,) or (N, K) of an integer type")
        target = target.tolist()
    elif hasattr(target, "tolist") and not isinstance(target, str):  # numpy
        target = target.tolist()
    if isinstance(target, (list, tuple, range)):
        target = [_plain(item) for item in target]
        count = max(len(target), 1) if count is None else count
        if len(target) != count:
            told = f"got {len(target)} targets for {count} inputs; give one for each, or one for all"
            raise TargetError(f"target: {told}")
        if any(isinstance(item, Selector) for item in target):
            return _several(target)
        rows = [
            [_class_index(one, labels) for one in (item if isinstance(item, (list, tuple, range)) else [item])]
            for item in target
        ]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1 or lengths == [0]:
            raise TargetError(f"target: got {' and '.join(map(str, lengths))} classes, expected as many for each input")
        return torch.tensor(rows, dtype=torch.long, device="cpu")
    if callable(target):
        return target  # type: ignore[no-any-return]  # what it returns is checked when it is called
    return torch.full((count or 1, 1), _class_index(target, labels), dtype=torch.long, device="cpu")


def _plain(item: Any) -> Any:
    """Return a tensor or array of whole numbers among targets as numbers, anything else as it is."""
    whole = isinstance(item, Tensor) and not (item.is_floating_point() or item.is_complex() or item.dtype == torch.bool)
    kind = getattr(getattr(item, "dtype", None), "kind", "")  # numpy's
    return item.tolist() if whole or kind in ("i", "u") else item


def _several(parts: Sequence[Any]) -> Several:
    if not all(isinstance(part, Selector) for part in parts) or len({part.layer for part in parts}) > 1:
        raise TargetError(
            f"target: got {', '.join(map(str, parts))}; a list of channels, neurons and directions is of one layer"
        )
    return Several(tuple(parts))


def _class_index(target: Any, labels: Sequence[str] | None) -> int:
    if isinstance(target, str):
        return _label_index(target, labels)
    index = _whole(target)
    if abs(index) > _MOST:
        raise TargetError(f"class {index} is out of range: no model has so many")
    return index


_MOST = 2**62  # what a tensor holds


def _whole(value: Any) -> int:
    try:
        truth = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
        whole = None if truth else operator.index(value)
    except TypeError:  # as tensors of several raise too
        whole = None
    if whole is None:
        raise TargetError(
            f"target: got {describe(value)}, expected a class index, a label, one of these for each input, "
            "cnnviz.top(k), cnnviz.channel(…), cnnviz.neuron(…), cnnviz.direction(…), or a callable from output to "
            "(rows,)"
        )
    return whole


def _label_index(label: str, labels: Sequence[str] | None) -> int:
    if labels is None:
        raise TargetError(f"target '{label}': this model has no labels; give a class index, or load_model(…, labels=…)")
    found = [i for i, name in enumerate(labels) if name == label]
    found = found or [i for i, name in enumerate(labels) if name.casefold() == label.casefold()]
    if not found:
        raise TargetError(
            f"no label '{label}' among the model's {len(labels)}{nearest(label, labels)}; or give an index"
        )
    if len(found) > 1:
        raise TargetError(f"label '{label}' stands for classes {', '.join(map(str, found))}; give the index")
    return found[0]


def class_scores(output: Any, indices: Tensor, *, probability: bool = False) -> Tensor:
    """Return each row's scores of its classes, or their softmax: (rows, classes), (rows, K) -> (rows, K).

    Raises:
        TargetError: the output is not (rows, classes), or a class is out of range, or the only one where its
            probability is asked for.
    """
    output = class_output(output)
    classes = output.shape[1]
    wrong = indices[(indices < 0) | (indices >= classes)]
    if len(wrong):
        raise TargetError(f"class {int(wrong[0])} is out of range: the model has classes 0 to {classes - 1}")
    if probability and classes == 1:
        raise TargetError(
            "the model returns one score for each input, whose softmax is 1 whatever it is; give a callable, such as "
            "target=lambda output: output[:, 0].sigmoid()"
        )
    if probability:
        output = output.softmax(1)
    picked: Tensor = output.gather(1, indices.to(output.device))
    return picked


def class_output(output: Any) -> Tensor:
    """Return `output` if it holds class scores, (rows, K).

    Raises:
        TargetError: it does not; shows how to give a callable.
    """
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    raise TargetError(
        f"the model returns {describe(output)}, but a class target needs scores (N, K); give a callable that reduces "
        f"the output to one number for each row, such as target=lambda output: {_reduction(output, 'output')}"
    )


def _reduction(output: Any, place: str) -> str:
    """Return an expression that reduces such an output to one number for each row."""
    match output:
        case Tensor():
            return place + {1: "", 2: "[:, 0]", 4: "[:, 0].mean((1, 2))"}.get(output.dim(), ".flatten(1)[:, 0]")
        case [dict() as first, *_]:
            made = (key for key, item in first.items() if isinstance(item, Tensor) and item.is_floating_point())
            key = "scores" if "scores" in first else next(made, "scores")
            return f"torch.stack([found[{key!r}].sum() for found in {place}])"
        case dict() | list() | tuple() if output:
            items = output.items() if isinstance(output, dict) else enumerate(output)
            key, item = next(((key, item) for key, item in items if isinstance(item, Tensor)), (0, None))
            return _reduction(item, f"{place}[{key!r}]")
        case _:
            return f"{place}.scores"


def called(function: ScoreFunction, output: Any, rows: int) -> Tensor:
    """Return what a callable target makes of the output, checked to be (rows,).

    Raises:
        TargetError: it is not.
    """
    score = function(output)
    if not isinstance(score, Tensor) or tuple(score.shape) != (rows,):
        raise TargetError(
            f"the target callable returned {describe(score)} for {rows} rows, expected a tensor ({rows},): one number "
            "for each row, rows treated independently"
        )
    return score


def describe(value: Any) -> str:
    """Return a value's type and shape in words: ``dict with 'out' (1, 21, 8, 8), 'aux' …``."""
    match value:
        case Tensor():
            return f"a tensor {tuple(value.shape)}"
        case dict():
            return "a dict with " + ", ".join(f"{key!r} {_shape(item)}" for key, item in list(value.items())[:4])
        case list() | tuple():
            return f"a {type(value).__name__} of " + ", ".join(_shape(item) for item in value[:4])
        case _ if hasattr(value, "shape"):
            return f"{type(value).__name__} {tuple(value.shape)}"
        case _:
            return f"{type(value).__name__} {value!r}"[:80]


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def part(target: Resolved, start: int, stop: int) -> Resolved:
    """Return the target of samples start to stop - 1."""
    match target:
        case Tensor():
            return target[start:stop]
        case Several():
            return Several(target.parts[start:stop])
        case _:
            return target


def stable(target: Resolved) -> str:
    """Return a target in words by which a later run knows it again.

    Raises:
        TargetError: it is a callable that has no name of its own.
    """
    if not callable(target):
        return words(target, None)
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '<object>')}"
    if "<" in name:
        raise TargetError(
            f"target: got {words(target, None)}; a later run cannot tell it from others, as a checkpoint needs it; "
            "give a class, a channel or a function of a module"
        )
    return f"callable {name}"


def words(target: Resolved, labels: Sequence[str] | None) -> str:
    """Return a target in words, for provenance."""
    match target:
        case None:
            return "top class"
        case Tensor():
            classes = target.flatten().tolist()
            names = [f"{i} {labels[i]}" if labels and 0 <= i < len(labels) else str(i) for i in classes]
            return "class " + (names[0] if len(set(names)) == 1 else ", ".join(names))
        case Channel() | Neuron() | Direction() | Several() | Top():
            return str(target)
        case _:
            return f"callable {getattr(target, '__qualname__', type(target).__name__)}"
