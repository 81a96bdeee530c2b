"""Which input pixels a unit can see: receptive fields composed from the calls that a forward pass makes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

Pair = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """The input pixels that the unit at (y, x) of a map depends on.

    Rows ``start[0] + y * stride[0]`` up to but not including that plus ``size[0]``, columns likewise; rows and columns
    outside of the image are padding. A layer behind a global operation (global pooling, squeeze-and-excitation) has no
    such field, since its units see the whole image; nor has one behind an operation that no rule follows.
    """

    size: Pair
    stride: Pair
    start: Pair

    def slid(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> ReceptiveField:
        """Return the field of a window operation (convolution, pooling) over this one."""
        reach = [(k - 1) * d * s for k, d, s in zip(kernel, dilation, self.stride, strict=True)]
        return ReceptiveField(
            (self.size[0] + reach[0], self.size[1] + reach[1]),
            (self.stride[0] * stride[0], self.stride[1] * stride[1]),
            (self.start[0] - padding[0] * self.stride[0], self.start[1] - padding[1] * self.stride[1]),
        )

    def joined(self, other: ReceptiveField) -> ReceptiveField | None:
        """Return the smallest field that covers both, or None where they step differently."""
        if self.stride != other.stride:
            return None
        start = [min(a, b) for a, b in zip(self.start, other.start, strict=True)]
        stop = [max(self.start[i] + self.size[i], other.start[i] + other.size[i]) for i in (0, 1)]
        return ReceptiveField((stop[0] - start[0], stop[1] - start[1]), self.stride, (start[0], start[1]))


@dataclass(frozen=True)
class _Seen:
    """A tensor that depends on the input: its field (None: the whole image) and its two spatial dimensions."""

    field: ReceptiveField | None
    axes: Pair = (2, 3)


_WHOLE = _Seen(None)


class FieldTracker(TorchFunctionMode):
    """Follows receptive fields through every torch function that this thread calls within the block.

    A function without a rule is taken to see the whole image, so that no field is ever too small.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self._alive: list[Tensor] = []  # ids stay unique as long as their tensors live
        self._seen: dict[int, _Seen] = {}
        self._spoilt: set[int] = set()  # memory that was written to by another name
        for tensor in inputs:
            self._note(tensor, _Seen(ReceptiveField((1, 1), (1, 1), (0, 0))) if tensor.dim() == 4 else _WHOLE)

    def field(self, tensor: Tensor) -> ReceptiveField | None:
        """Return the field of each unit of `tensor`, None where it sees the whole image or is no (N, C, h, w) map."""
        seen = self._known(tensor) or _WHOLE
        return seen.field if tensor.dim() == 4 and seen.axes == (2, 3) else None

    def _note(self, tensor: Tensor, seen: _Seen) -> None:
        self._alive.append(tensor)
        self._seen[id(tensor)] = seen

    def _known(self, tensor: Tensor) -> _Seen | None:
        """Return what a tensor sees, None where it does not depend on the input."""
        return self._seen.get(id(tensor)) or (_WHOLE if _memory(tensor) in self._spoilt else None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and note what its result sees."""
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        known = [(tensor, self._known(tensor)) for tensor in given]
        tracked, sources = [tensor for tensor, seen in known if seen], [seen for _, seen in known if seen]
        if not tracked:
            return func(*args, **kwargs)
        before = [(tensor, tensor._version, seen) for tensor, seen in known]
        shape = tuple(tracked[0].shape)
        result = func(*args, **kwargs)
        outputs = tensors_in(result)
        if outputs:
            op = _Op(function_name(func), sources[0], args, kwargs, shape, tuple(outputs[0].shape))
            even = all(tensor.shape[2:] == tracked[0].shape[2:] for tensor in tracked if tensor.dim() == 4)
            seen = _rule(op, sources) if even else _WHOLE  # broadcast along space: one value for many places
            for tensor in outputs:
                self._note(tensor, seen)
        swapped = func == Tensor.data.__set__  # type: ignore[attr-defined]  # a property in C
        for tensor, version, old in before:
            if swapped or version != tensor._version:
                self._written(tensor, old, whole=not any(tensor is output for output in outputs))
        return result

    def _written(self, tensor: Tensor, old: _Seen | None, *, whole: bool) -> None:
        """Give up on all that shares memory with a tensor that was written to, unless it sees what it saw before."""
        if whole:  # by an index, or by a function that does not return it
            self._note(tensor, _WHOLE)
        if self._seen[id(tensor)] == old and old != _WHOLE:
            return
        memory = _memory(tensor)
        self._spoilt.add(memory)
        for other in self._alive:
            if other is not tensor and _memory(other) == memory:
                self._seen[id(other)] = _WHOLE


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


@functools.lru_cache(maxsize=1024)
def function_name(func: Any) -> str:
    """Return the bare name of a torch function: "relu" for F.relu, torch.relu and Tensor.relu alike."""
    name: str = getattr(func, "__name__", "")
    if name in ("fn", "boolean_dispatch"):
        name = (resolve_name(func) or name).rpartition(".")[2]
    return name.split(".")[0]


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dictionaries."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def pair(value: Any) -> Pair:
    """Return (height, width) of what torch takes as one number or two."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


@dataclass(frozen=True)
class _Op:
    """A call of a torch function: its first tracked input, its arguments, and the shapes that went in and came out."""

    name: str
    seen: _Seen
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    output: tuple[int, ...]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def pair(self, place: int, name: str, default: int) -> Pair:
        return pair(self.argument(place, name, default))

    @property
    def field(self) -> ReceptiveField:
        """The field of what came in, which is a map (N, C, h, w)."""
        assert self.seen.field is not None
        return self.seen.field


_POINTWISE = frozenset(
    """relu relu6 leaky_relu prelu rrelu elu selu celu silu gelu mish softplus softsign hardswish hardsigmoid hardtanh
    sigmoid tanh logsigmoid threshold _threshold clamp clamp_min clamp_max clip abs neg exp log sqrt rsqrt pow square
    erf add sub subtract rsub mul multiply div divide true_divide maximum minimum where addcmul dropout
    dropout1d dropout2d alpha_dropout feature_dropout feature_alpha_dropout contiguous clone detach to float half
    double bfloat16 type_as requires_grad lerp cat concat concatenate stochastic_depth
    __radd__ __rmul__ __rsub__""".split()  # noqa: SIM905  # a list of words reads better than a list of strings
)


def _rule(op: _Op, sources: list[_Seen]) -> _Seen:
    if any(seen.field is None or seen.axes != op.seen.axes for seen in sources):
        return _WHOLE
    name = op.name if op.name.endswith("__") else op.name.rstrip("_")
    if name in _POINTWISE or op.name in _POINTWISE:
        return _joined(op, sources)
    rule = _RULES.get(name)
    return rule(op) if rule else _WHOLE


def _joined(op: _Op, sources: list[_Seen]) -> _Seen:
    if op.name in {"cat", "concat", "concatenate"} and op.argument(1, "dim", 0) % len(op.shape) in op.seen.axes:
        return _WHOLE
    field = op.seen.field
    for seen in sources[1:]:
        field = field and seen.field and field.joined(seen.field)
    return _Seen(field, op.seen.axes)


def _conv(op: _Op) -> _Seen:
    if op.seen.axes != (2, 3):
        return _WHOLE
    kernel = pair(op.argument(1, "weight").shape[2:])
    stride, dilation = op.pair(3, "stride", 1), op.pair(5, "dilation", 1)
    padding = op.argument(4, "padding", 0)
    if padding == "same":
        padding = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
    elif padding == "valid":
        padding = 0
    return _Seen(op.field.slid(kernel, stride, pair(padding), dilation))


def _pool(op: _Op, dilation: Pair) -> _Seen:
    if op.seen.axes != (2, 3):
        return _WHOLE
    kernel = op.pair(1, "kernel_size", 1)
    stride = op.argument(2, "stride")
    return _Seen(op.field.slid(kernel, pair(stride) if stride else kernel, op.pair(3, "padding", 0), dilation))


def _max_pool(op: _Op) -> _Seen:
    return _pool(op, op.pair(4, "dilation", 1))


def _avg_pool(op: _Op) -> _Seen:
    return _pool(op, (1, 1))


def _pad(op: _Op) -> _Seen:
    amounts: list[int] = [*op.argument(1, "pad", ()), 0, 0, 0, 0]
    # Other modes repeat pixels from elsewhere in the image.
    if op.seen.axes != (2, 3) or any(amounts[4:]) or op.argument(2, "mode", "constant") != "constant":
        return _WHOLE
    return _Seen(op.field.slid((1, 1), (1, 1), (amounts[2], amounts[0]), (1, 1)))


def _same_place(op: _Op) -> _Seen:
    """Keep the field of an operation over channels only: spatial extent and its dimensions stay as they are."""
    kept = len(op.shape) == len(op.output) and all(op.shape[axis] == op.output[axis] for axis in op.seen.axes)
    return op.seen if kept else _WHOLE


def _linear(op: _Op) -> _Seen:
    return _WHOLE if len(op.shape) - 1 in op.seen.axes else op.seen


def _layer_norm(op: _Op) -> _Seen:
    first = len(op.shape) - len(op.argument(1, "normalized_shape"))
    return _WHOLE if max(op.seen.axes) >= first else op.seen


def _batch_norm(op: _Op) -> _Seen:
    """Keep the field where stored statistics are used; those of the batch depend on every pixel."""
    return _WHOLE if op.argument(5, "training", False) else op.seen


def _permute(op: _Op) -> _Seen:
    dims = op.argument(1, "dims")
    order = [d % len(op.shape) for d in (dims if isinstance(dims, (tuple, list)) else op.args[1:])]
    return _Seen(op.seen.field, (order.index(op.seen.axes[0]), order.index(op.seen.axes[1])))


def _transpose(op: _Op) -> _Seen:
    a, b = op.argument(1, "dim0") % len(op.shape), op.argument(2, "dim1") % len(op.shape)
    swap = {a: b, b: a}
    rows, columns = op.seen.axes
    return _Seen(op.seen.field, (swap.get(rows, rows), swap.get(columns, columns)))


def _reshape(op: _Op) -> _Seen:
    """Follow a reshaping of channels only, as in a channel shuffle."""
    last = (len(op.shape) - 2, len(op.shape) - 1)
    kept = len(op.output) > 2 and op.shape[-2:] == op.output[-2:] and op.shape[0] == op.output[0]
    return _Seen(op.seen.field, (len(op.output) - 2, len(op.output) - 1)) if kept and op.seen.axes == last else _WHOLE


_RULES: dict[str, Callable[[_Op], _Seen]] = {
    "conv2d": _conv,
    "max_pool2d": _max_pool,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "pad": _pad,
    "batch_norm": _batch_norm,
    "linear": _linear,
    "layer_norm": _layer_norm,
    "permute": _permute,
    "transpose": _transpose,
    "view": _reshape,
    "reshape": _reshape,
    "adaptive_avg_pool2d": _same_place,
    "adaptive_max_pool2d": _same_place,
    "chunk": _same_place,
    "split": _same_place,
    "narrow": _same_place,
}
