"""Conformance of metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..explainer import Explainer
from ..metric import Metric
from ..metrics import available
from ..metrics.measure import Judge
from ..options import Options
from ..request import Request
from ..technique import Technique
from .network import SmallNet
from .suite import Suite, random_images


def check_metric(
    name: str | Metric, *, model: nn.Module | None = None, inputs: Tensor | None = None, **options: Any
) -> list[str]:
    """Run the conformance suite on a metric, which measures gradients.

    It checks: documentation, validation of options, the shape of the result, that the same seed gives the same bits,
    that a batch gives what its samples give alone, that 8 threads on one shared model get what each gets alone, that
    progress can cancel, and that model, inputs and what is set for the process are as they were after success, after an
    exception, and after the model failed in the middle.

    Args:
        name: a registered metric, or a `Metric`.
        model: the network to run on; a small one by default.
        inputs: (N, C, H, W) with N of at least 2 for it; random by default.
        **options: values of its options, for metrics that are slow with their defaults.

    Returns:
        The names of the checks that were run.

    Raises:
        ConformanceError: a check failed.
        InputError: fewer than two inputs.

    Example:
        >>> check_metric("deletion")[:2]
        ['documentation', 'options']
    """
    metric = name if isinstance(name, Metric) else available()[name]
    model = SmallNet() if model is None else model
    return _Suite(metric, model, random_images() if inputs is None else inputs, options).check()


def _gradient(request: Request, options: Options) -> Tensor:  # noqa: ARG001  # every technique takes options
    """Gradient of the score at the input."""
    return request.gradient()


_EXPLAINED = Technique("gradient", _gradient)


class _Suite(Suite):
    kind = "metric"
    subject: Metric
    inputs: Tensor

    def prepare(self, subject: Any, model: nn.Module, /, **options: Any) -> Callable[..., Any]:
        judge = Judge(model, subject, memory=None, **options)
        explainer = Explainer(model, _EXPLAINED)

        def run(inputs: Tensor, seed: int = 0, progress: Any = None) -> Any:
            made = explainer(inputs)
            boxes = [[[1.0, 2.0, inputs.shape[3] / 2, inputs.shape[2] / 2]]] * len(inputs)
            values, target = made.tensors()["values"], made.tensors()["target"]
            return judge(inputs, values, target, boxes=boxes, explainer=explainer, seed=seed, progress=progress)

        return run

    def same(self, a: Any, b: Any) -> bool:
        both = zip(_numbers(a), _numbers(b), strict=True)
        return all(bool(torch.isclose(x, y, rtol=0, atol=0, equal_nan=True).all()) for x, y in both)

    def result(self) -> None:
        """There is a number for each sample, or NaN where it says nothing about one, and no graph."""
        made = self.run()
        self.require(made.values.shape == (len(self.inputs),), f"values are {tuple(made.values.shape)}, expected (N,)")
        endless = any(bool(torch.isinf(tensor).any()) for tensor in _numbers(made))
        self.require(not endless, "its result has values that are infinite; give NaN where it says nothing")
        silent = any(bool(torch.isnan(tensor).all()) for tensor in _numbers(made))
        self.require(not silent, "its result is NaN for every sample; give inputs about which it says something")
        graph = any(tensor.requires_grad for tensor in _numbers(made))
        self.require(not graph, "its result still asks for gradients and so keeps the graph alive")

    def batch_equals_singles(self) -> None:
        """A batch gives what its samples give alone."""
        together = self.run(seed=3)
        alone = [self.run(row[None], seed=3) for row in self.inputs]
        for name in ("values", "curves"):
            whole, parts = getattr(together, name), [getattr(one, name) for one in alone]
            if whole is None:
                continue
            apart = torch.cat(parts)
            # A convolution's rounding depends on the batch size; what a sample gets must not.
            close = torch.allclose(
                apart, whole, rtol=1e-3, atol=1e-4 * float(whole.nan_to_num().abs().max()), equal_nan=True
            )
            self.require(close, f"{name} of a batch are not those of its samples alone; draw random numbers per call")


def _numbers(made: Any) -> list[Tensor]:
    return [tensor for tensor in (made.values, made.curves) if tensor is not None]
