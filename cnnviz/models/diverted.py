"""Modules of a replica that run another forward for a while."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


class Diverted:
    """Within it, some modules run `_forward` in place of their own; for a replica that nobody else runs meanwhile."""

    _diverted: Sequence[nn.Module]

    def __enter__(self) -> Self:
        for module in self._diverted:
            module.__dict__["forward"] = functools.partial(self._forward, module)
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._diverted:
            module.__dict__.pop("forward", None)

    def _forward(self, module: Any, input: Any) -> Any:  # noqa: A002  # as torch calls it
        raise NotImplementedError


def is_ordinary(x: Any) -> bool:
    """Whether this is a plain tensor in a CPU's memory, of which at most gradients are asked for, and as usual.

    Checkpointing counts what is saved for them; `torch.func` and forward-mode derivatives ask for other things.
    """
    if type(x) is not Tensor or x.device.type != "cpu" or x.layout != torch.strided or x.is_inference():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(x) or forward_ad._current_level >= 0:
        return False
    return not x.requires_grad or torch._C._autograd._top_saved_tensors_default_hooks(False) is None
