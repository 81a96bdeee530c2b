"""What a network does after its last pooling, done at every place of the map before it.

Linear layers become convolutions of the window that they were made for, so that the head gives class scores for each
place of a map of any size (Zhou 2016, section 2; Long 2015, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_SAME = frozenset(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "clone"))
_POINTWISE = frozenset(
    ("relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish", "hardswish", "softplus")
).union(("tanh", "sigmoid", "hardsigmoid", "to", "float", "double", "half", "bfloat16", "type_as"))
_KERNEL = 9  # places
_RESHAPING = frozenset(("flatten", "reshape", "view", "squeeze"))


@dataclass(frozen=True)
class Spread:
    """A tensor of the head, at every place of a map.

    Attributes:
        map: (N, C, h, w), or (N, h, w, C) where the head permuted it so.
        window: places of the map that the head's own tensor has, (1, 1) once they are pooled or multiplied.
        flat: whether the head's own tensor is (N, C · window).
        unbiased: the map without the bias of the layer that made it.
    """

    map: Tensor
    window: tuple[int, int]
    flat: bool
    unbiased: Tensor | None = None


class SpreadHead(TorchFunctionMode):
    """Follows the calls inside the block; `of` tells what a tensor is when spread.

    Attributes:
        reason: why nothing could be followed, if so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reason = "it pools no map"
        self._found: dict[int, tuple[Tensor, Spread]] = {}  # by identity; the tensor is kept, so that ids stay unique
        self._bare: dict[int, tuple[Tensor, str]] = {}  # likewise; what a map was brought to one place by

    def of(self, tensor: Tensor) -> Spread | None:
        """Return what became of a tensor, or None where it is not the head's or a step could not be followed."""
        kept = self._found.get(id(tensor))
        return None if kept is None else kept[1]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        x = args[0] if args else kwargs.get("input")
        shape = tuple(x.shape) if isinstance(x, Tensor) else ()
        came = self.of(x) if isinstance(x, Tensor) else None
        bare = next((self._bare[id(one)][1] for one in tree_leaves((args, kwargs)) if id(one) in self._bare), None)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or name == "__get__":
            return result
        made = self._start(name, x, shape, result) if came is None and bare is None else None
        if came is not None:
            made = _step(name.rstrip("_"), came, result, args, kwargs)
        if made is None and (came is not None or bare is not None or _brings_to_one_place(shape, result)):
            bare = bare or name
            self.reason = f"its head calls {bare}, which has no counterpart on a map"
        elif any(self.of(other) for other in args[1:] if isinstance(other, Tensor)):
            self.reason = f"its head calls {name} with another tensor"
        self._bare.pop(id(result), None)
        if made is None:
            self._found.pop(id(result), None)
            if bare is not None and result.dim() == 4 and result.shape[2:] == (1, 1):
                self._bare[id(result)] = (result, bare)
        else:
            self._found[id(result)] = (result, made)
        return result

    def _start(self, name: str, x: Any, shape: tuple[int, ...], result: Tensor) -> Spread | None:
        """Return the spread of what was just pooled or flattened, if that is what the call did."""
        if len(shape) != 4 or result.shape[:1] != shape[:1]:
            return None
        if name in ("adaptive_avg_pool2d", "avg_pool2d") and result.shape[1] == shape[1]:
            whole = name == "adaptive_avg_pool2d" or result.shape[2:] == (1, 1)
            return Spread(x, (result.shape[2], result.shape[3]), flat=False) if whole else None
        if name == "mean" and tuple(result.shape) in (shape[:2], (*shape[:2], 1, 1)):
            return Spread(x, (1, 1), flat=result.dim() == 2)
        if name in _RESHAPING and result.dim() == 2 and result.shape[1] == shape[1] * shape[2] * shape[3]:
            return Spread(x, (shape[2], shape[3]), flat=True)
        return None


def _brings_to_one_place(shape: tuple[int, ...], result: Tensor) -> bool:
    """Whether a call made one place of a whole map, of more than usual kernels see at the end of a network."""
    return len(shape) == result.dim() == 4 and result.shape[2:] == (1, 1) and shape[2] * shape[3] > _KERNEL


def _step(name: str, came: Spread, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread | None:
    """Return what a call makes of a spread tensor, or None where there is no counterpart."""
    rest = args[1:]
    if name in _SAME:
        return came
    if name in _POINTWISE:
        return _pointwise(name, came, rest, kwargs)
    if name in _RESHAPING:
        flattened = result.dim() == 2 and result.shape[0] == came.map.shape[0]
        return replace(came, flat=True) if flattened else None
    rule = (_ON_VECTORS if came.flat else _ON_MAPS).get(name)
    return None if rule is None else rule(came, result, rest, kwargs)


def _pointwise(name: str, came: Spread, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread:
    plain = {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}
    places = tuple(value for value in rest if not isinstance(value, bool))  # a flag there asks for work in place
    function = getattr(functional, name, None) or getattr(torch.Tensor, name)
    return replace(came, map=function(came.map, *places, **plain), unbiased=None)


def _pooled(came: Spread, result: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread | None:
    if result.shape[1:2] != came.map.shape[1:2]:
        return None
    window = (result.shape[2], result.shape[3]) if result.dim() == 4 else (1, 1)
    return replace(came, window=window, flat=result.dim() == 2)


def _convolved(came: Spread, result: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread | None:
    weight = rest[0] if rest else kwargs["weight"]
    if came.window != (1, 1) or weight.shape[2:] != (1, 1):
        return None
    return replace(came, map=functional.conv2d(came.map, *rest, **kwargs), unbiased=None)


def _normalised(came: Spread, result: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread | None:
    if came.flat and came.window != (1, 1):  # each place of the window has numbers of its own
        return None
    return replace(came, map=functional.batch_norm(came.map, *rest, **kwargs), unbiased=None)


def _layer_normalised(came: Spread, result: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread | None:
    if came.window != (1, 1):
        return None
    if not came.flat:  # the head has put channels last itself, or it normalises over space
        if tuple(rest[0] if rest else kwargs["normalized_shape"]) != tuple(came.map.shape[3:]):
            return None
        return replace(came, map=functional.layer_norm(came.map, *rest, **kwargs))
    last = functional.layer_norm(came.map.movedim(1, -1), *rest, **kwargs)
    return replace(came, map=last.movedim(-1, 1), unbiased=None)


def _permuted(came: Spread, result: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread:
    return replace(came, map=came.map.permute(*rest, **kwargs))


def _multiplied(came: Spread, result: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Spread:
    return _linear(came, *rest, **kwargs)


_ON_MAPS = {
    "adaptive_avg_pool2d": _pooled,
    "mean": _pooled,
    "conv2d": _convolved,
    "batch_norm": _normalised,
    "layer_norm": _layer_normalised,
    "permute": _permuted,
}
_ON_VECTORS = {"linear": _multiplied, "batch_norm": _normalised, "layer_norm": _layer_normalised}


def _linear(came: Spread, weight: Tensor, bias: Tensor | None = None) -> Spread:
    (height, width), channels = came.window, came.map.shape[1]
    kernel = weight.reshape(-1, channels, height, width)
    # So that a place stands for the window around it; beyond the map there is nothing.
    around = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
    unbiased = functional.conv2d(functional.pad(came.map, around), kernel)
    made = unbiased if bias is None else unbiased + bias[:, None, None]
    return Spread(made, (1, 1), flat=True, unbiased=unbiased)
