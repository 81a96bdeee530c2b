"""What every plugin is checked for, whatever it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CnnvizError, InputError, OptionError
from ..metric import Metric
from ..targets import describe
from ..technique import Technique
from .snapshot import changed, snapshot
from .watched import Failing, Planned, Watched

_THREADS = 8
_SIZE = (24, 40)  # no square, which could be transposed unseen


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
        if inputs is not None and (inputs.dim() != 4 or len(inputs) < 2):
            raise InputError(
                f"inputs: got {describe(inputs)}, expected (N, C, H, W) with N of at least 2; a batch is compared with "
                "its samples alone"
            )
        self.subject = subject
        self.model = model
        self.inputs = inputs
        self.original = None if inputs is None else inputs.clone()
        self.options = options

    def prepare(self, subject: Any, model: nn.Module, /, **options: Any) -> Callable[..., Any]:
        """Return a callable from inputs, with a seed and progress, to the result of a technique or metric."""
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
            "unchanged after the model failed": self.unchanged_after_failure,
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
        ready = self.prepare(self.subject, self.model, **self.options)
        return ready(self.inputs if inputs is None else inputs, **given)

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
            self.prepare(self.subject, self.model, **self.options, no_such_option=1)
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
            self.prepare(self.subject, self.model, **{**self.options, name: value})
        except OptionError as error:
            self.require(name in str(error), f"the error about option '{name}' does not name it")
        else:
            self.require(False, f"option '{name}' accepted {value}, which is out of its bounds")

    def determinism(self) -> None:
        """The same seed gives the same bits."""
        self.require(self.same(self.run(seed=7), self.run(seed=7)), "the same seed gave different results")

    def unchanged_after_success(self) -> None:
        """Model, inputs and the process are as they were, and nobody holds the inputs."""
        watched = Watched(self.subject)
        with self._unchanged():
            ready = self.prepare(watched.subject, self.model, **self.options)
            ready(self.inputs)
        self.require(not watched.wrote, "it writes to request.inputs, which other targets and layers get too; clone it")
        self.require(not watched.keeps_inputs(), "it keeps the memory of request.inputs alive after the call")

    def unchanged_after_exception(self) -> None:
        """They are, also after an exception."""

        def fail(*_: Any) -> None:
            raise Planned

        with self._unchanged():
            try:
                self.run(progress=fail)
            except Planned:
                pass
            else:
                self.require(False, "an exception raised by progress did not reach the caller")

    def unchanged_after_failure(self) -> None:
        """They are, also after the model failed, on real data and in the middle of what the plugin does."""
        passes = self._failing(None)
        reached = self._failing(passes // 2) if passes else 1
        self.require(reached > passes // 2, f"the same seed ran the model {passes} times, then {reached} times")

    def _failing(self, allowed: int | None) -> int:
        """Run it on a network that fails after so many passes, or never; return how many it asked for."""
        watched = Watched(self.subject)
        failing = Failing(self.model, watched, allowed)
        with self._unchanged(failing.module):
            try:
                self.prepare(watched.subject, failing.module, **self.options)(self.inputs)
            except (Planned, CnnvizError):
                if allowed is None:
                    raise
            else:
                failed = allowed is not None and failing.passes > allowed
                self.require(not failed, "an exception raised by the model did not reach the caller")
        return failing.passes

    def threads(self) -> None:
        """Threads on one model get what each gets alone."""
        inputs = [None if self.inputs is None else self.inputs * (1 - i / (2 * _THREADS)) for i in range(_THREADS)]
        seeds = list(range(_THREADS))
        ready = self.prepare(self.subject, self.model, **self.options)
        alone = [ready(given, seed=seed) for given, seed in zip(inputs, seeds, strict=True)]
        with self._unchanged(), ThreadPoolExecutor(_THREADS) as pool:
            together = list(pool.map(lambda given, seed: ready(given, seed=seed), inputs, seeds))
        same = all(self.same(a, b) for a, b in zip(alone, together, strict=True))
        self.require(same, f"{_THREADS} threads on one model got other results than one after the other")

    @contextmanager
    def _unchanged(self, model: nn.Module | None = None) -> Iterator[None]:
        watched = self.model if model is None else model
        before = snapshot(watched)
        yield
        found = changed(before, snapshot(watched))
        self.require(not found, f"it changed the model or the process: {', '.join(found[:3])}")
        untouched = self.original is None or self.inputs is None or torch.equal(self.original, self.inputs)
        self.require(untouched, "it changed its inputs")


def random_images() -> Tensor:
    """Return three small images, (3, 3, H, W), the same ones every time."""
    return torch.rand(3, 3, *_SIZE, generator=torch.Generator().manual_seed(1))
