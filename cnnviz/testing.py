"""Conformance checks for techniques: what a plugin author runs, and what the built-ins pass too."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .errors import CnnvizError, OptionError
from .explainer import Explainer
from .explanation import Explanation, Heatmap
from .registry import techniques
from .technique import Technique

_THREADS = 8
_SIZE = 32


class ConformanceError(CnnvizError, AssertionError):
    """A technique breaks the contract; says which check failed and how."""


class SmallNet(nn.Module):
    """A convolutional network of a few thousand weights with what techniques trip over.

    Functional and module ReLUs, in place and reused ones, batch normalisation, max pooling and a linear head.
    """

    def __init__(self, *, channels: int = 3, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, classes)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * (0.3 if parameter.dim() > 1 else 0.1))
            self.norm1.weight.add_(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        x = self.relu(self.conv2(x))
        x = torch.relu(self.conv3(x) + x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def check_technique(
    name: str | Technique,
    *,
    model: nn.Module | None = None,
    inputs: Tensor | None = None,
    **options: Any,
) -> list[str]:
    """Run the conformance suite on a technique.

    It checks: documentation, validation of options, the shape and finiteness of the result, that the same seed gives
    the same bits, that a batch gives what its samples give alone, that saving and loading gives the same, that 8
    threads on one shared model get what each gets alone, that progress can cancel, and that model, inputs and the
    global random state are as they were after success and after an exception.

    Args:
        name: a registered technique, or a `Technique`.
        model: the network to run on; a small one by default.
        inputs: (N, C, H, W) with N of at least 2 for it; random by default.
        **options: values of its options, for techniques that need some or are slow with their defaults.

    Returns:
        The names of the checks that were run.

    Raises:
        ConformanceError: a check failed.

    Example:
        >>> check_technique("saliency")[:2]
        ['documentation', 'options']
    """
    technique = name if isinstance(name, Technique) else techniques()[name]
    network = SmallNet() if model is None else model
    if inputs is None:
        inputs = torch.rand(3, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(1))
    suite = _Suite(technique, network, None if technique.inputs == "none" else inputs, options)
    checks: dict[str, Callable[[], None]] = {
        "documentation": suite.documentation,
        "options": suite.options_validated,
        "unchanged": suite.unchanged_after_success,  # first of those that run it: a seed set twice shows no change
        "result": suite.result,
        "determinism": suite.determinism,
        "batch": suite.batch_equals_singles,
        "saving": suite.saving,
        "unchanged after an exception": suite.unchanged_after_exception,
        "threads": suite.threads,
    }
    with warnings.catch_warnings():
        # The network is in training mode to see that it is left so.
        warnings.filterwarnings("ignore", message="the model is in training mode")
        for label, check in checks.items():
            try:
                check()
            except ConformanceError:
                raise
            except Exception as error:  # whatever a stranger's technique raises
                raise ConformanceError(f"technique '{technique.name}', check '{label}': {error!r}") from error
    return list(checks)


class _Suite:
    def __init__(self, technique: Technique, model: nn.Module, inputs: Tensor | None, options: dict[str, Any]) -> None:
        self.technique = technique
        self.model = model
        self.inputs = inputs
        self.original = None if inputs is None else inputs.clone()
        self.options = options

    def run(self, inputs: Tensor | None = None, **given: Any) -> Explanation:
        explainer = Explainer(self.model, self.technique, **self.options)
        return explainer(self.inputs if inputs is None else inputs, **given)

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise ConformanceError(f"technique '{self.technique.name}': {message}")

    def documentation(self) -> None:
        self.require(bool(self.technique.summary), "its function has no docstring, whose first line is shown to users")
        self.require(
            len(self.technique.summary) <= 120, "its summary, the docstring's first line, is over 120 characters"
        )

    def options_validated(self) -> None:
        self.require(self.technique.schema()["type"] == "object", "its options have no JSON schema")
        try:
            Explainer(self.model, self.technique, **self.options, no_such_option=1)
        except OptionError as error:
            self.require("no_such_option" in str(error), "the error about an unknown option does not name it")
        else:
            self.require(False, "an unknown option was accepted")
        for name, described in self.technique.schema()["properties"].items():
            for value in (described.get("minimum", 0) - 1, described.get("maximum", 0) + 1):
                if value < described.get("minimum", value) or value > described.get("maximum", value):
                    self._refused(name, value)

    def _refused(self, name: str, value: float) -> None:
        try:
            Explainer(self.model, self.technique, **{**self.options, name: value})
        except OptionError as error:
            self.require(name in str(error), f"the error about option '{name}' does not name it")
        else:
            self.require(False, f"option '{name}' accepted {value}, which is out of its bounds")

    def result(self) -> None:
        made = self.run()
        for key, tensor in made.tensors().items():
            finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
            self.require(finite, f"{key} has values that are not finite")
            self.require(not tensor.requires_grad, f"{key} still asks for gradients and so keeps the graph alive")
        if self.inputs is not None and isinstance(made, Heatmap):
            shape = tuple(made.values.shape)
            self.require(len(shape) == 4 and shape[0] == len(self.inputs), f"values are {shape}, expected (N, C, h, w)")

    def determinism(self) -> None:
        self.require(self.run(seed=7).equals(self.run(seed=7)), "the same seed gave different results")

    def batch_equals_singles(self) -> None:
        if self.technique.inputs != "each" or self.inputs is None:
            return
        together = self.run(seed=3).tensors()
        alone = [self.run(row[None], seed=3).tensors() for row in self.inputs]
        for key, tensor in together.items():
            apart = torch.cat([one[key] for one in alone])
            # A convolution's rounding depends on the batch size; what a sample gets must not.
            self.require(apart.shape == tensor.shape, f"{key} of a batch have another shape than those of its samples")
            gap = float((apart.double() - tensor.double()).abs().max())
            close = gap <= 1e-4 * float(tensor.double().abs().max())
            self.require(close, f"{key} of a batch are not those of its samples alone; draw random numbers per call")

    def saving(self) -> None:
        import tempfile

        from .explanation import load

        made = self.run()
        with tempfile.TemporaryDirectory() as folder:
            self.require(load(made.save(f"{folder}/saved")).equals(made), "what was loaded differs from what was saved")

    def unchanged_after_success(self) -> None:
        with self._watched():
            self.run()

    def unchanged_after_exception(self) -> None:
        class Planned(Exception):  # noqa: N818  # no error of the program
            pass

        def fail(*_: Any) -> None:
            raise Planned

        with self._watched():
            try:
                self.run(progress=fail)
            except Planned:
                pass
            else:
                self.require(False, "an exception raised by progress did not reach the caller")
        # In the middle of a forward pass: the model itself fails.
        broken = copy.deepcopy(self.model)
        last = list(broken.modules())[-1]
        kind = type("Broken", (type(last),), {"forward": fail})
        last.__class__ = kind
        with self._watched(broken), suppress(Planned, CnnvizError):
            Explainer(broken, self.technique, **self.options)(self.inputs)

    def threads(self) -> None:
        inputs = [None if self.inputs is None else self.inputs * (1 - i / (2 * _THREADS)) for i in range(_THREADS)]
        seeds = list(range(_THREADS))
        explainer = Explainer(self.model, self.technique, **self.options)
        alone = [explainer(given, seed=seed) for given, seed in zip(inputs, seeds, strict=True)]
        with self._watched(), ThreadPoolExecutor(_THREADS) as pool:
            together = list(pool.map(lambda given, seed: explainer(given, seed=seed), inputs, seeds))
        same = all(a.equals(b) for a, b in zip(alone, together, strict=True))
        self.require(same, f"{_THREADS} threads on one model got other results than one after the other")

    @contextmanager
    def _watched(self, model: nn.Module | None = None) -> Iterator[None]:
        watched = model or self.model
        before = _snapshot(watched)
        yield
        changed = [key for key, value in _snapshot(watched).items() if not _equal(value, before.get(key))]
        self.require(not changed, f"it changed the model or the process: {', '.join(changed[:3])}")
        untouched = self.original is None or self.inputs is None or torch.equal(self.original, self.inputs)
        self.require(untouched, "it changed its inputs")


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that a technique might change, and the state of the process's generator."""
    numbers: Any = numpy.random.get_state()  # noqa: NPY002  # the global one is what a technique must leave alone
    state: dict[str, Any] = {
        "global random state of torch": torch.get_rng_state(),
        "global random state of Python": random.getstate(),
        "global random state of NumPy": (*numbers[:1], numbers[1].tolist(), *numbers[2:]),
        "grad mode": torch.is_grad_enabled(),
    }
    for name, module in model.named_modules():
        state[f"{name}.training"] = module.training
        for key, value in vars(module).items():
            if key.endswith(("_hooks", "_hooks_with_kwargs")):
                state[f"{name}.{key}"] = list(value)
        state[f"{name}.attributes"] = sorted(vars(module))
        state[f"{name}.class"] = type(module)
    for name, parameter in model.named_parameters():
        state[f"{name}.identity"] = (id(parameter), parameter.data_ptr(), parameter.requires_grad, parameter._version)
        state[f"{name}.value"] = parameter.detach().clone()
        state[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
    for name, buffer in model.named_buffers():
        state[f"{name}.identity"] = (id(buffer), buffer.data_ptr(), buffer._version)
        state[f"{name}.value"] = buffer.clone()
    return state


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return bool(a == b)
