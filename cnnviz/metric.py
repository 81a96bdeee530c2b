"""What a metric is: a measure of how faithful, stable or well placed explanations are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.nn.functional import interpolate

from .errors import PluginError
from .options import Options
from .request import Request
from .technique import Declared

Explain: TypeAlias = Callable[[Tensor, "nn.Module | None", tuple[float, float]], Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """What a metric is given: explanations, what they explain, and the means to run the model and to explain again.

    Attributes:
        request: the samples, their targets, seeded random numbers, and the model's scores; see `Request`.
        values: (N, C, h, w), the explanations as the technique gave them, in single precision at least.
        boxes: for each sample the boxes around what is explained, (k, 4) as left, top, right and bottom in pixels of
            the input; None where none were given.
        explain_again: explains other inputs, or another network; None where only finished maps were given.
    """

    request: Request
    values: Tensor
    boxes: tuple[Tensor, ...] | None = None
    explain_again: Explain | None = None

    @property
    def maps(self) -> Tensor:
        """The explanations as one map for each sample, (N, H, W): channels added up, resized to the input."""
        return self.as_maps(self.values)

    def as_maps(self, values: Tensor) -> Tensor:
        """Return explanations (N, C, h, w) as one map for each sample, (N, H, W)."""
        size = tuple(self.request.inputs.shape[2:])
        summed = values.sum(1, keepdim=True)
        if tuple(summed.shape[2:]) != size:
            summed = interpolate(summed, size, mode="bilinear", align_corners=False)
        return summed[:, 0]

    def explain(
        self, inputs: Tensor, module: nn.Module | None = None, *, share: tuple[float, float] = (0.0, 1.0)
    ) -> Tensor:
        """Explain other inputs, (N, C, H, W), for the same targets by the same technique; return its values.

        Args:
            inputs: one for each sample.
            module: another network of the same kind to explain; None for the model itself.
            share: from where to where progress goes meanwhile, in [0, 1].
        """
        assert self.explain_again is not None  # metrics that need it are declared so
        return self.explain_again(inputs, module, share)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a metric found out.

    Attributes:
        values: (N,), one for each sample; NaN where the metric says nothing about a sample.
        curves: (N, P), what was measured on the way, or None.
        places: (P,), what the curves run over, or None.
        axes: what `places` and `curves` count, in words.
    """

    values: Tensor
    curves: Tensor | None = None
    places: Tensor | None = None
    axes: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        shape = None if self.curves is None else tuple(self.curves.shape)
        expected = None if self.places is None else (len(self.values), len(self.places))
        if self.values.dim() != 1 or shape != expected:
            got = {name: tuple(x.shape) for name, x in vars(self).items() if isinstance(x, Tensor)}
            raise PluginError(
                f"measurement: got {got}, expected values (N,), with curves (N, P) and places (P,) or none"
            )


MetricFunction: TypeAlias = Callable[[Case, Any], "Tensor | Measurement"]


@dataclass(frozen=True)
class Metric(Declared):
    """A measure of explanations, as a plugin registers it.

    Attributes:
        name: lower-case words joined by hyphens, the same as its entry point's.
        function: ``function(case, options)`` returns a number for each sample, (N,), or a `Measurement` with curves.
            Its docstring's first line is the summary shown to users.
        options: its `Options` class.
        better: whether "higher" or "lower" numbers speak for the explanation.
        boxes: whether it compares with boxes, and so needs them.
        explains: whether it explains again, and so needs a technique, not maps alone; `evaluate` leaves it out unless
            it is named, since that takes many times as long.

    Raises:
        PluginError: a malformed declaration.
        OptionError: an option with a reserved name or without a description.
    """

    name: str
    function: MetricFunction
    options: type[Options] = Options
    better: Literal["higher", "lower"] = "higher"
    boxes: bool = False
    explains: bool = False

    def __post_init__(self) -> None:
        self.check("metric")
        if self.better not in ("higher", "lower"):
            raise PluginError(f"metric '{self.name}': better={self.better!r}, expected 'higher' or 'lower'")
