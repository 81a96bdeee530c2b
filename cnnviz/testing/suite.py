"""What every plugin is checked for, whatever it is."""

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

from ..errors import CnnvizError, OptionError
from ..metric import Metric
from ..technique import Technique

_THREADS = 8
_SIZE = 32


class ConformanceError(CnnvizError, AssertionError):
    """A plugin breaks the contract; says which check failed and how."""


class Suite:
    """Checks of one technique or metric.

    Subclasses say what it is to run it, and whether two results are the same.
    """

    kind: str

    def __init__(
        self, subject: Technique | Metric, model: nn.Module, inputs: Tensor | None, options: dict[str, Any]
    ) -> None:
        self.subject = subject
        self.model = model
        self.inputs = inputs
        self.original = None if inputs is None else inputs.clone()
        self.options = options

    def prepare(self, model: nn.Module, **options: Any) -> Callable[..., Any]:
        """Return a callable from inputs, with a seed and progress, to a result."""
        raise NotImplementedError

    def same(self, a: Any, b: Any) -> bool:
        """Whether two results are the same, bit for bit."""
        raise NotImplementedError

    def result(self) -> None:
        """The result has the shape that it should."""
        raise NotImplementedError

    def batch_equals_singles(self) -> None:
        """A batch gives what its samples give alone."""
        raise NotImplementedError

    def check(self, **more: Callable[[], None]) -> list[str]:
        """Run all checks, and `more` of them by name; return their names.

        Raises:
            ConformanceError: a check failed.
        """
        checks = {
            "documentation": self.documentation,
            "options": self.options_validated,
            "unchanged": self.unchanged_after_success,  # before others that run it: a seed set twice shows no change
            "result": self.result,
            "determinism": self.determinism,
            "batch": self.batch_equals_singles,
            **more,
            "unchanged after an exception": self.unchanged_after_exception,
            "threads": self.threads,
        }
        with warnings.catch_warnings():
            # The network is in training mode to see that it is left so.
            warnings.filterwarnings("ignore", message="the model is in training mode")
            for label, check in checks.items():
                try:
                    check()
                except ConformanceError:
                    raise
                except Exception as error:  # whatever a stranger's plugin raises
                    raise ConformanceError(f"{self.kind} '{self.subject.name}', check '{label}': {error!r}") from error
        return list(checks)

    def run(self, inputs: Tensor | None = None, **given: Any) -> Any:
        """Run it on the inputs."""
        return self.prepare(self.model, **self.options)(self.inputs if inputs is None else inputs, **given)

    def require(self, condition: bool, message: str) -> None:
        """Fail with a message unless a condition holds."""
        if not condition:
            raise ConformanceError(f"{self.kind} '{self.subject.name}': {message}")

    def documentation(self) -> None:
        """It says what it does, in a line."""
        self.require(bool(self.subject.summary), "its function has no docstring, whose first line is shown to users")
        self.require(
            len(self.subject.summary) <= 120, "its summary, the docstring's first line, is over 120 characters"
        )

    def options_validated(self) -> None:
        """Unknown and out-of-range options are refused by name."""
        self.require(self.subject.schema()["type"] == "object", "its options have no JSON schema")
        try:
            self.prepare(self.model, **self.options, no_such_option=1)
        except OptionError as error:
            self.require("no_such_option" in str(error), "the error about an unknown option does not name it")
        else:
            self.require(False, "an unknown option was accepted")
        for name, described in self.subject.schema()["properties"].items():
            for value in (described.get("minimum", 0) - 1, described.get("maximum", 0) + 1):
                if value < described.get("minimum", value) or value > described.get("maximum", value):
                    self._refused(name, value)

    def _refused(self, name: str, value: float) -> None:
        try:
            self.prepare(self.model, **{**self.options, name: value})
        except OptionError as error:
            self.require(name in str(error), f"the error about option '{name}' does not name it")
        else:
            self.require(False, f"option '{name}' accepted {value}, which is out of its bounds")

    def determinism(self) -> None:
        """The same seed gives the same bits."""
        self.require(self.same(self.run(seed=7), self.run(seed=7)), "the same seed gave different results")

    def unchanged_after_success(self) -> None:
        """Model, inputs and the random state are as they were."""
        with self._watched():
            self.run()

    def unchanged_after_exception(self) -> None:
        """They are, also after an exception."""

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
            self.prepare(broken, **self.options)(self.inputs)

    def threads(self) -> None:
        """Threads on one model get what each gets alone."""
        inputs = [None if self.inputs is None else self.inputs * (1 - i / (2 * _THREADS)) for i in range(_THREADS)]
        seeds = list(range(_THREADS))
        ready = self.prepare(self.model, **self.options)
        alone = [ready(given, seed=seed) for given, seed in zip(inputs, seeds, strict=True)]
        with self._watched(), ThreadPoolExecutor(_THREADS) as pool:
            together = list(pool.map(lambda given, seed: ready(given, seed=seed), inputs, seeds))
        same = all(self.same(a, b) for a, b in zip(alone, together, strict=True))
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


def random_images() -> Tensor:
    """Return three small images, (3, 3, H, W), the same ones every time."""
    return torch.rand(3, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(1))


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that a plugin might change, and the state of the process's generator."""
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
