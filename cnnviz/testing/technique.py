"""Conformance of techniques."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..explainer import Explainer
from ..explanation import Heatmap, load
from ..registry import techniques
from ..technique import Technique
from .network import SmallNet
from .suite import Suite, random_images


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
    inputs = random_images() if inputs is None else inputs
    suite = _Suite(technique, model or SmallNet(), None if technique.inputs == "none" else inputs, options)
    return suite.check(saving=suite.saving)


class _Suite(Suite):
    kind = "technique"
    subject: Technique

    def prepare(self, model: nn.Module, **options: Any) -> Callable[..., Any]:
        ready = Explainer(model, self.subject, **options)
        # Without inputs there is no top class.
        return partial(ready, target=0) if self.subject.inputs == "none" else ready

    def same(self, a: Any, b: Any) -> bool:
        return bool(a.equals(b))

    def result(self) -> None:
        made = self.run()
        for key, tensor in made.tensors().items():
            finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
            self.require(finite, f"{key} has values that are not finite")
            self.require(not tensor.requires_grad, f"{key} still asks for gradients and so keeps the graph alive")
        if self.inputs is not None and isinstance(made, Heatmap):
            shape = tuple(made.values.shape)
            self.require(len(shape) == 4 and shape[0] == len(self.inputs), f"values are {shape}, expected (N, C, h, w)")

    def batch_equals_singles(self) -> None:
        if self.subject.inputs != "each" or self.inputs is None:
            return
        together = self.run(seed=3).tensors()
        alone = [self.run(row[None], seed=3).tensors() for row in self.inputs]
        for key, tensor in together.items():
            if key == "sources":  # which of the batch
                continue
            apart = torch.cat([one[key] for one in alone])
            # A convolution's rounding depends on the batch size; what a sample gets must not.
            self.require(apart.shape == tensor.shape, f"{key} of a batch have another shape than those of its samples")
            gap = float((apart.double() - tensor.double()).abs().max())
            close = gap <= 1e-4 * float(tensor.double().abs().max())
            self.require(close, f"{key} of a batch are not those of its samples alone; draw random numbers per call")

    def saving(self) -> None:
        made = self.run()
        with tempfile.TemporaryDirectory() as folder:
            self.require(load(made.save(f"{folder}/saved")).equals(made), "what was loaded differs from what was saved")
