"""Calling an operator with as little in between as torch allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves


class Operator:
    """A custom operator, called past the autograd layer that torch generates in Python where that has nothing to add.

    The layer costs 4 µs where no gradient is recorded and 12 where one is; a plain `torch.autograd.Function` costs 4.
    """

    def __init__(self, defined: CustomOpDef, setup: Callable[..., None] | None = None, backward: Any = None) -> None:
        """Take the operator and, if it is differentiable, what `register_autograd` takes."""
        self._call = getattr(torch.ops.cnnviz, defined._name).default
        self._recorded: Any = None
        if setup is None:
            return
        defined.register_autograd(backward, setup_context=setup)

        def forward(ctx: Any, *arguments: Any) -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                made: Tensor = self._call(*arguments)
            setup(ctx, arguments, made)
            return made

        body = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._recorded = type(defined._name, (torch.autograd.Function,), body)

    def __call__(self, *arguments: Any) -> Tensor:
        """Call the operator with all its arguments in their order.

        Raises:
            NotImplementedError: a derivative is taken in forward mode, which torch would silently answer with zero.
        """
        made: Tensor
        if forward_ad._current_level >= 0 and any(map(_has_tangent, tree_leaves(arguments))):
            raise NotImplementedError(
                f"{self._call}: got a tensor with a tangent, expected none, since it has no forward-mode derivative; "
                "take it in reverse mode (torch.autograd.grad, torch.func.vjp), or use PyTorch's own functions"
            )
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            made = self._call(*arguments)
        elif torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            made = self._recorded.apply(*arguments) if self._recorded else self._call(*arguments)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                made = self._call(*arguments)
        return made


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]
