"""What a technique is."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from torch import Tensor

from .errors import PluginError
from .explanation import Explanation
from .options import Options, check_declaration
from .request import Request

Function: TypeAlias = Callable[[Request, Any], "Tensor | Explanation"]

_SECTION: Final = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Warns|Examples?|Notes?):\s*$", re.MULTILINE)


def description(function: Any) -> str:
    """Return a function's docstring up to its first section, such as ``Args:``."""
    while isinstance(function, functools.partial) and "__doc__" not in vars(function):
        function = function.func  # or the docstring were that of `partial`
    return _SECTION.split(inspect.getdoc(function) or "", maxsplit=1)[0].rstrip()


class Declared:
    """What a plugin registers: a name, a documented function, and its options."""

    name: str
    function: Callable[..., Any]
    options: type[Options]

    def check(self, kind: str) -> None:
        """Refuse a malformed declaration.

        Raises:
            PluginError: a malformed name, no function, or no options class.
            OptionError: an option with a reserved name or without a description.
        """
        if not re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*\+*", self.name):
            raise PluginError(f"{kind} name {self.name!r}: expected lower-case words joined by hyphens, as 'grad-cam'")
        told = f"{kind} '{self.name}'"
        if not callable(self.function):
            raise PluginError(f"{told}: its function is {self.function!r}, expected a callable")
        if not (isinstance(self.options, type) and issubclass(self.options, Options)):
            raise PluginError(f"{told}: options {self.options!r} is no subclass of cnnviz.Options")
        check_declaration(self.name, self.options)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return self.description.partition("\n")[0]

    @property
    def description(self) -> str:
        """The function's docstring as far as it is for users: without arguments, errors and examples."""
        return description(self.function)

    @property
    def ready(self) -> bool:
        """Whether every option has a default, so that it can run without being told any."""
        return not any(info.is_required() for info in self.options.model_fields.values())

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of its options."""
        return self.options.model_json_schema()


@dataclass(frozen=True)
class Technique(Declared):
    """A visualisation or explanation technique, as a plugin registers it.

    Attributes:
        name: lower-case words joined by hyphens, the same as its entry point's.
        function: ``function(request, options)``: a pure function that returns a tensor, which becomes a `Heatmap`,
            or an explanation. Its docstring's first line is the summary shown to users.
        options: its `Options` class.
        family: "attribution", "inspection", "behaviour", "synthesis", "texture", "style", or one of its own.
        inputs: "each" sample by itself (batched by the framework within the memory budget), "all" at once, "none", or
            "any": all at once, or none where its options name something else to look at.
        layers: whether it takes "none", "one", "many" or "all" layers. Many are computed one by one, and heatmaps fused
            by their mean; all are handed over together, as `Request.layers`, and none need be named.
        default_layer: what is taken where no layer is named: the last spatial output before the head that is no
            pooling, or the first convolution; or a function of the options that returns a layer's name, or None for
            the former.
        on_request: whether reports leave it out unless it is named: it takes minutes, or a network of its own.
        whole: whether pictures are handed over as they are, neither resized nor cropped, and without a model too.

    Raises:
        PluginError: a malformed declaration.
        OptionError: an option with a reserved name or without a description.
    """

    name: str
    function: Function
    options: type[Options] = Options
    family: str = "attribution"
    inputs: Literal["each", "all", "none", "any"] = "each"
    layers: Literal["none", "one", "many", "all"] = "none"
    default_layer: Literal["last-spatial", "first-convolution"] | Callable[[Any], str | None] = "last-spatial"
    on_request: bool = False
    whole: bool = False

    @property
    def quick(self) -> bool:
        """Whether it runs with its defaults, and by itself."""
        return self.ready and not self.on_request

    def __post_init__(self) -> None:
        self.check("technique")
        for key in ("inputs", "layers", "default_layer"):
            if callable(got := getattr(self, key)) and key == "default_layer":
                continue
            words = get_args(inspect.get_annotations(type(self), eval_str=True)[key])
            known = get_args(words[0]) or words  # those of a union are its first part's
            if got not in known:
                raise PluginError(f"technique '{self.name}': {key}={got!r}, expected one of {known}")
