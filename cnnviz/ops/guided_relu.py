"""ReLU with a rule for its gradient."""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import Tensor

from . import _check
from ._operator import Operator

Rule = Literal["plain", "deconvnet", "guided"]
_RULES: Final = ("plain", "deconvnet", "guided")


def guided_relu(x: Tensor, rule: Rule = "guided") -> Tensor:
    """Return max(x, 0), with a gradient by rule.

    Args:
        x: any shape; float32, float64, float16 or bfloat16.
        rule: of the arriving gradient g, "plain" passes g where x > 0, "deconvnet" max(g, 0) everywhere (Zeiler &
            Fergus 2014), "guided" max(g, 0) where x > 0 (Springenberg 2015).

    Raises:
        ValueError: `x` is no floating tensor, or the rule is unknown.
    """
    _checked("guided_relu", x, rule)
    return _forward(x, rule)


def guided_relu_(x: Tensor, rule: Rule = "guided") -> Tensor:
    """Do the same in place, in one pass over memory; what `guided_relu` would return is in `x`, which is returned.

    Raises:
        ValueError: as there.
    """
    _checked("guided_relu_", x, rule)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x.relu_()
    made: Tensor = _InPlace.apply(x, rule)
    return made


def _checked(operator: str, x: Tensor, rule: str) -> None:
    if rule not in _RULES:
        raise ValueError(f"{operator}: rule is {rule!r}, expected one of {', '.join(map(repr, _RULES))}")
    _check.floating(operator, "x", x, "…" * x.dim() if isinstance(x, Tensor) else "…")


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule) -> Tensor:
        ctx.mark_dirty(x)
        ctx.rule = rule
        x.relu_()
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _backward(ctx, grads[0])


@torch.library.custom_op("cnnviz::guided_relu", mutates_args=())
def _guided_relu(x: Tensor, rule: str) -> Tensor:
    return x.clamp(min=0)


@_guided_relu.register_fake
def _(x: Tensor, rule: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("cnnviz::guided_relu_backward", mutates_args=())
def _guided_relu_backward(grad: Tensor, output: Tensor, rule: str) -> Tensor:
    passed = grad.clone() if rule == "plain" else grad.clamp(min=0)
    return passed if rule == "deconvnet" else passed.masked_fill_(output <= 0, 0)


@_guided_relu_backward.register_fake
def _(grad: Tensor, output: Tensor, rule: str) -> Tensor:
    return torch.empty_like(grad)


def _setup(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.rule = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _once(grad, ctx.saved_tensors[0], ctx.rule), None


def _setup_twice(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    grad, forward, ctx.rule = inputs
    ctx.save_for_backward(grad, forward)


def _backward_twice(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """Pass where the first backward passed; the forward's values decide no more than where that is."""
    first, forward = ctx.saved_tensors
    closed = forward <= 0 if ctx.rule == "plain" else first <= 0
    if ctx.rule == "guided":
        closed = closed | (forward <= 0)
    return grad.masked_fill(closed, 0), None, None


_forward = Operator(_guided_relu, _setup, _backward)
_once = Operator(_guided_relu_backward, _setup_twice, _backward_twice)
