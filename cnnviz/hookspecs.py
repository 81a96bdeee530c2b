"""The hooks that plugins implement; pluggy calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import pluggy

from .metric import Metric
from .technique import Technique

PROJECT: Final = "cnnviz"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register: TypeAlias = Callable[[Technique], None]
RegisterMetric: TypeAlias = Callable[[Metric], None]


@hookspec
def cnnviz_techniques(register: Register) -> None:
    """Offer techniques: call ``register(cnnviz.Technique(…))`` for each.

    Called when one of the plugin's techniques is first used, for each of them again. Each technique has an entry point
    of its own name in the group ``cnnviz`` that names the module (or object) with this hook.
    """


@hookspec
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer metrics of explanations: call ``register(cnnviz.Metric(…))`` for each.

    As `cnnviz_techniques`, with entry points in the group ``cnnviz.metrics``.
    """
