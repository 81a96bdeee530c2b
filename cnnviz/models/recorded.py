"""What is recorded of a layer, and what goes on in the network instead: tensors that share no memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from ..errors import LayerError
from .receptive_field import tensors_in


def parted(value: Any, written: Collection[int], *, grad: bool, last: bool) -> tuple[Any, Any]:
    """Return what is recorded and what goes on, which share no memory.

    Args:
        value: what a layer takes or returned.
        written: ids of its tensors that the layer wrote to; they go on themselves, as the network may know them by
            another name too.
        grad: gradients are taken with respect to what is recorded.
        last: nothing goes on.
    """
    originals: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        made = tensor if last else tensor.clone()
        made = _leaf(made) if grad else made
        if id(tensor) in written or not (grad or tensor.requires_grad):
            originals[id(made)] = tensor
        return made

    def go_on(made: Tensor) -> Tensor:
        original = originals.get(id(made))
        if original is None:
            return made.clone()
        return _continued(original, made) if grad else original

    kept = _mapped(keep, value)
    return kept, None if last else _mapped(go_on, kept)


def _continued(original: Tensor, kept: Tensor) -> Tensor:
    """Return a tensor with the same values, now computed from `kept`, so that gradients go there from all its uses."""
    try:
        with _unsafe_preserve_version_counter(original):  # saved values stay what they were
            original.copy_(kept)
    except RuntimeError as error:
        raise LayerError(
            f"a layer writes in place to a tensor from which gradients cannot start ({error}); name a layer before it"
        ) from error
    return original


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return `value` with what `function` makes of each tensor, in containers, dataclasses and plain objects."""

    def leaf(item: Any) -> Any:
        if isinstance(item, Tensor):
            return function(item)
        if is_dataclass(item) and not isinstance(item, type):
            return replace(item, **{f.name: _mapped(function, getattr(item, f.name)) for f in fields(item) if f.init})
        held = item if isinstance(item, dict) else getattr(item, "__dict__", {})
        if isinstance(item, nn.Module) or not tensors_in(dict(held)):
            return item
        made = copy.copy(item)
        (made if isinstance(item, dict) else made.__dict__).update(_mapped(function, dict(held)))
        return made

    return torch.utils._pytree.tree_map(leaf, value)


def _leaf(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and not tensor.requires_grad:
        return tensor.detach().requires_grad_()
    return tensor
