"""What a technique is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from .errors import PluginError
from .explanation import Explanation
from .options import Options, check_declaration
from .request import Request

Function: TypeAlias = Callable[[Request, Any], "Tensor | Explanation"]


@dataclass(frozen=True)
class Technique:
    """A visualisation or explanation technique, as a plugin registers it.

    Attributes:
        name: lower-case words joined by hyphens, the same as its entry point's.
        function: ``function(request, options)``: a pure function that returns a tensor, which becomes a `Heatmap`,
            or an explanation. Its docstring's first line is the summary shown to users.
        options: its `Options` class.
        family: "attribution", "inspection", "behaviour", "synthesis", "texture", "style", or one of its own.
        inputs: "each" sample by itself (batched by the framework within the memory budget), "all" at once, or "none".
        layers: whether it takes "none", "one" or "many" layers; many are computed one by one and fused by their mean.
        default_layer: what is taken where no layer is named: the last spatial output before the head that is no
            pooling, or the first convolution.
        thousands: whether it takes a thousand forward passes and more by default; reports leave it out unless it is
            named.

    Raises:
        PluginError: a malformed declaration.
        OptionError: an option with a reserved name or without a description.
    """

    name: str
    function: Function
    options: type[Options] = Options
    family: str = "attribution"
    inputs: Literal["each", "all", "none"] = "each"
    layers: Literal["none", "one", "many"] = "none"
    default_layer: Literal["last-spatial", "first-convolution"] = "last-spatial"
    thousands: bool = False

    def __post_init__(self) -> None:
        check_registered("technique", self.name, self.function, self.options)
        for key in ("inputs", "layers", "default_layer"):
            known = get_args(inspect.get_annotations(type(self), eval_str=True)[key])
            if getattr(self, key) not in known:
                raise PluginError(f"technique '{self.name}': {key}={getattr(self, key)!r}, expected one of {known}")

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return summary_of(self.function)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of its options."""
        return self.options.model_json_schema()


def check_registered(kind: str, name: str, function: object, options: type[Options]) -> None:
    """Refuse a technique or metric whose name, function or options are not what they should be.

    Raises:
        PluginError: a malformed name, no function, or no options class.
        OptionError: an option with a reserved name or without a description.
    """
    if not re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*\+*", name):
        raise PluginError(f"{kind} name {name!r}: expected lower-case words joined by hyphens, as 'grad-cam'")
    if not callable(function):
        raise PluginError(f"{kind} '{name}': its function is {function!r}, expected a callable")
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise PluginError(f"{kind} '{name}': options {options!r} is no subclass of cnnviz.Options")
    check_declaration(name, options)


def summary_of(function: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]
