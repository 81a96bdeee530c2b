"""A plugin that is watched while it runs, and a network that fails it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..metric import Case, Metric
from ..models import replicate
from ..request import Request
from ..technique import Technique


class Planned(Exception):  # noqa: N818  # no error of the program
    """Raised on purpose by what a plugin calls."""


class Watched:
    """A technique or metric with a function around its own that looks on.

    Attributes:
        subject: what to run in its place.
        running: whether its function is running.
        wrote: whether it wrote to its inputs.
        made: what it returned in each call, by the layer that it was given.
    """

    def __init__(self, subject: Technique | Metric) -> None:
        self._function = subject.function
        self._given: list[Callable[[], bool]] = []  # for each run, whether the memory of its inputs was let go
        self.subject: Any = replace(subject, function=self._run)
        self.running = self.wrote = False
        self.made: list[tuple[str | None, Any]] = []

    def _run(self, given: Any, options: Any) -> Any:
        request: Request = given.request if isinstance(given, Case) else given
        before = request.inputs._version if request.given else 0
        self.running = True
        try:
            made = self._function(given, options)
        finally:
            self.running = False
        if request.given:
            self.wrote |= request.inputs._version != before
            memory = StorageWeakRef(request.inputs.untyped_storage())  # type: ignore[no-untyped-call]  # torch's own
            self._given.append(memory.expired)
        self.made.append((request.layer, made))
        return made

    def keeps_inputs(self) -> bool:
        """Whether memory of its inputs is held by anyone but its results, which are let go."""
        self.made.clear()
        if not all(expired() for expired in self._given):
            gc.collect()
        return not all(expired() for expired in self._given)


class Failing:
    """A replica of a network that fails in a plugin's hands, on real data, after so many passes.

    Attributes:
        module: the network.
        passes: how many passes the plugin asked for.
    """

    def __init__(self, model: nn.Module, plugin: Watched, allowed: int | None) -> None:
        self.module = replicate(model).train(model.training)  # as the caller left it
        self.passes = 0
        kind = type(self.module)

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if plugin.running and not any(isinstance(value, Tensor) and value.is_meta for value in args):
                self.passes += 1
                if allowed is not None and self.passes > allowed:
                    raise Planned
            return kind.forward(module, *args, **kwargs)

        self.module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
