"""Conformance of techniques."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError, TargetError
from ..explainer import Explainer
from ..explanation import Explanation, Heatmap, load
from ..models import layers
from ..registry import techniques
from ..targets import Target, top
from ..technique import Technique
from .network import SmallNet
from .suite import Suite, random_images
from .watched import Watched


def check_technique(
    name: str | Technique,
    *,
    model: nn.Module | None = None,
    inputs: Tensor | None = None,
    target: Target = None,
    layer: str | None = None,
    **options: Any,
) -> list[str]:
    """Run the conformance suite on a technique.

    It checks: documentation, validation of options, the shape and finiteness of the result, that the same seed gives
    the same bits, that a batch gives what its samples give alone, that each target and layer gets a result of its own,
    several at once what each gets alone, that saving and loading gives the same, that 8 threads on one shared model get
    what each gets alone, that progress can cancel, and that model, inputs and what is set for the process are as they
    were after success, after an exception, and after the model failed in the middle.

    Targets are told apart where the technique asks for a score and the model returns (N, K) of at least two classes;
    layers where the technique takes some, none is named, and the model calls at least two convolutions.

    Args:
        name: a registered technique, or a `Technique`.
        model: the network to run on; a small one by default.
        inputs: (N, C, H, W) with N of at least 2 for it; random by default.
        target: what is explained, for networks whose output holds no classes; each sample's top class by default, or
            class 0 where there are no inputs.
        layer: the layer to look at, for networks where the technique's own choice does not fit.
        **options: values of its options, for techniques that need some or are slow with their defaults.

    Returns:
        The names of the checks that were run.

    Raises:
        ConformanceError: a check failed.
        InputError: fewer than two inputs.

    Example:
        >>> check_technique("saliency")[:2]
        ['documentation', 'options']
    """
    technique = name if isinstance(name, Technique) else techniques()[name]
    given = None if technique.inputs == "none" else random_images() if inputs is None else inputs
    suite = _Suite(technique, SmallNet() if model is None else model, given, options)
    suite.target = 0 if target is None and given is None else target  # without inputs there is no top class
    suite.layer = layer
    return suite.check(targets=suite.targets, layers=suite.layers, saving=suite.saving)


class _Suite(Suite):
    kind = "technique"
    subject: Technique

    target: Target = None
    layer: str | None = None
    made: Explanation

    def prepare(self, subject: Any, model: nn.Module, /, **options: Any) -> Callable[..., Any]:
        ready = Explainer(model, subject, **{"layer": self.layer, **options})
        return partial(ready, target=self.target)

    def same(self, a: Any, b: Any) -> bool:
        return bool(a.equals(b))

    def result(self) -> None:
        watched = Watched(self.subject)
        made = self.made = self.prepare(watched.subject, self.model, **self.options)(self.inputs)
        for key, tensor in made.tensors().items():
            finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
            self.require(finite, f"{key} has values that are not finite")
            self.require(not tensor.requires_grad, f"{key} still asks for gradients and so keeps the graph alive")
        if self.inputs is None or not isinstance(made, Heatmap):
            return
        shape = tuple(made.values.shape)
        self.require(len(shape) == 4 and shape[0] == len(self.inputs), f"values are {shape}, expected (N, C, h, w)")
        for _, own in watched.made:
            (h, w), (height, width) = _values(own).shape[2:], self.inputs.shape[2:]
            turned = height != width and h * height == w * width
            self.require(
                not turned, f"values are {h} x {w} for inputs {height} x {width}: height and width are swapped"
            )

    def batch_equals_singles(self) -> None:
        if self.subject.inputs != "each" or self.inputs is None:
            return
        together = self.run(seed=3).tensors()
        alone = [self.run(row[None], seed=3, target=self._target_of(i)).tensors() for i, row in enumerate(self.inputs)]
        for key, tensor in together.items():
            if key == "sources":  # which of the batch
                continue
            apart = torch.cat([one[key] for one in alone])
            self.require(apart.shape == tensor.shape, f"{key} of a batch have another shape than those of its samples")
            same = _close(apart, tensor)
            if key == "rows":  # they may be numbers of samples, each of which is the first when alone
                same |= _close(torch.cat([one[key] + i for i, one in enumerate(alone)]), tensor)
            self.require(same, f"{key} of a batch are not those of its samples alone; draw random numbers per call")

    def _target_of(self, row: int) -> Target:
        given: Any = self.target
        several = isinstance(given, (list, tuple)) or (isinstance(given, Tensor) and given.dim() > 0)
        own: Target = given[row : row + 1] if several else given
        return own

    def targets(self) -> None:
        """Each target gets a result of its own, several at once what each gets alone."""
        known = self.made.provenance
        if known is None or known.target is None:  # it asks for no score, and so explains no target
            return
        try:
            first, second = self._one_by_one()
        except TargetError:  # the model's output holds no two classes
            return
        self._told_apart(first, second, "two classes", "request.score or request.target")
        try:
            summed = self.run(target=_summed)
        except TargetError:  # it takes classes alone, and says so
            return
        self._told_apart(first, summed, "a class and a callable target", "request.score or request.target")

    def _one_by_one(self) -> tuple[Explanation, Explanation]:
        """Return results for two targets after comparing them with those for both at once."""
        if self.inputs is None or not isinstance(self.made, Heatmap):
            return self.run(target=0), self.run(target=1)
        best = self.run(target=top(2))
        self.require(best.target is not None, "of two targets at once it scores one; keep nothing that depends on it")
        classes = best.target.reshape(-1, 2)
        named = self.run(target=classes)
        first, second = (self.run(target=classes[:, k]) for k in range(2))
        for k, alone in enumerate((first, second)):
            for made, told in ((best, "cnnviz.top(2)"), (named, "two classes for each sample")):
                same = _close(made.values[k::2], alone.values)
                self.require(
                    same, f"target={told} gives not what each class gives alone; keep nothing that depends on it"
                )
        return first, second

    def layers(self) -> None:
        """Each layer gets a result of its own, several at once what each gets alone."""
        names = [] if self.layer is not None or self.subject.layers == "none" else self._convolutions()
        if len(names) < 2:
            return
        ends = [names[0], names[-1]]
        try:
            (first, values), (second, others) = map(self._at, ends)
        except LayerError:  # it takes some layers alone, and says so
            return
        self._told_apart(first, second, f"layers {' and '.join(map(repr, ends))}", "request.layer")
        if self.subject.layers == "many":
            _, both = self._at(ends)
            same = all(_close(both[name], {**values, **others}[name]) for name in ends)
            self.require(same, "two layers give not what each gives alone; keep nothing that depends on request.layer")

    def _convolutions(self) -> list[str]:
        """Return the names of the convolutions that the model calls."""
        called = layers(self.model, self.inputs)
        return [layer.name for layer in called if layer.type == "Conv2d"]

    def _at(self, layer: str | list[str]) -> tuple[Explanation, dict[str, Tensor]]:
        """Return the result for layers, and what the function itself returned for each."""
        watched = Watched(self.subject)
        made = self.prepare(watched.subject, self.model, **self.options, layer=layer)(self.inputs)
        own: dict[str, list[Tensor]] = {}
        for name, part in watched.made:
            own.setdefault(str(name), []).append(_values(part))
        return made, {name: torch.cat(parts) for name, parts in own.items()}

    def _told_apart(self, a: Explanation, b: Explanation, what: str, ask: str) -> None:
        pairs = [(tensor, b.tensors().get(key)) for key, tensor in a.tensors().items() if key in _SHOWN]
        blank = not any(bool(tensor.any()) for tensor, _ in pairs)  # which says nothing, and may be right for both
        same = all(other is not None and torch.equal(tensor, other) for tensor, other in pairs)
        self.require(blank or not same, f"it gives the same for {what}; ask {ask}")

    def saving(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            same = load(self.made.save(f"{folder}/saved")).equals(self.made)
        self.require(same, "what was loaded differs from what was saved")


_SHOWN = ("values", "images", "points", "indices", "distances")


def _summed(output: Tensor) -> Tensor:
    """Score all classes together."""
    return output.sum(1)


def _values(made: Any) -> Tensor:
    """Return what shows in the result of a technique's function."""
    if isinstance(made, Explanation):
        made = next(tensor for key, tensor in made.tensors().items() if key in _SHOWN)
    values: Tensor = made.detach()
    return values


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same but for rounding, which depends on the batch size in convolutions."""
    if a.shape != b.shape:
        return False
    return bool((a.double() - b.double()).abs().max() <= 1e-4 * b.double().abs().max())
