"""Which input pixels a unit can see: receptive fields composed from the calls that a forward pass makes."""

from __future__ import annotations

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
        stop = [
            max(self.start[i] + self.size[i], other.start[i] + other.size[i]) for i in (0, 1)
        ]
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
        for tensor in inputs:
            self._note(tensor, _Seen(ReceptiveField((1, 1), (1, 1), (0, 0))) if tensor.dim() == 4 else _WHOLE)

    def field(self, tensor: Tensor) -> ReceptiveField | None:
        """Return the field of each unit of `tensor`, None where it sees the whole image or is no (N, C, h, w) map."""
        seen = self._seen.get(id(tensor), _WHOLE)
        return seen.field if tensor.dim() == 4 and seen.axes == (2, 3) else None

    def _note(self, tensor: Tensor, seen: _Seen) -> None:
        self._alive.append(tensor)
        self._seen[id(tensor)] = seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and note what its result sees."""
        kwargs = kwargs or {}
        name = function_name(func)
        sources = [self._seen[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._seen]
        shape = next((t.shape for t in _tensors((args, kwargs)) if id(t) in self._seen), None)
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        if sources and outputs:
            seen = _rule(name, args, kwargs, sources, shape, outputs[0])
            for tensor in outputs:
                self._note(tensor, seen)
        return result


def function_name(func: Any) -> str:
    """Return the bare name of a torch function: "relu" for F.relu, torch.relu and Tensor.relu alike."""
    name: str = getattr(func, "__name__", "")
    if name in ("fn", "boolean_dispatch"):
        name = (resolve_name(func) or name).rpartition(".")[2]
    return name.split(".")[0]


def _tensors(value: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


_POINTWISE = frozenset(
    """relu relu6 leaky_relu prelu rrelu elu selu celu silu gelu mish softplus softsign hardswish hardsigmoid hardtanh
    sigmoid tanh logsigmoid threshold _threshold clamp clamp_min clamp_max clip abs neg exp log sqrt rsqrt pow square
    erf add sub subtract rsub mul multiply div divide true_divide maximum minimum where addcmul batch_norm dropout
    dropout1d dropout2d alpha_dropout feature_dropout feature_alpha_dropout contiguous clone detach detach_ to float
    half double bfloat16 type_as requires_grad_ lerp cat concat concatenate expand_as stochastic_depth copy_ identity
    __radd__ __rmul__ __rsub__ __add__ __mul__ __sub__ __truediv__ __iadd__ __imul__ __isub__""".split()
)


def _rule(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], sources: list[_Seen], shape: Any, output: Tensor
) -> _Seen:
    first = sources[0]
    if any(seen.field is None or seen.axes != first.axes for seen in sources) or first.field is None:
        return _WHOLE
    base = name.rstrip("_") if not name.endswith("__") else name
    if base in _POINTWISE or name in _POINTWISE:
        return _joined(name, args, kwargs, sources)
    rule = _RULES.get(base)
    return rule(first, args, kwargs, tuple(shape), tuple(output.shape)) if rule else _WHOLE


def _joined(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], sources: list[_Seen]) -> _Seen:
    if name in ("cat", "concat", "concatenate") and _argument(args, kwargs, 1, "dim", 0) in sources[0].axes:
        return _WHOLE
    field = sources[0].field
    for seen in sources[1:]:
        field = field and seen.field and field.joined(seen.field)
    return _Seen(field, sources[0].axes)


def _conv(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    if seen.axes != (2, 3) or seen.field is None:
        return _WHOLE
    weight = _argument(args, kwargs, 1, "weight", None)
    kernel = (weight.shape[2], weight.shape[3])
    stride, dilation = (_pair(_argument(args, kwargs, at, key, 1)) for at, key in ((3, "stride"), (5, "dilation")))
    padding = _argument(args, kwargs, 4, "padding", 0)
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    elif padding == "valid":
        padding = 0
    return _Seen(seen.field.slid(kernel, stride, _pair(padding), dilation))


def _pool(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], dilation: Any) -> _Seen:
    if seen.axes != (2, 3) or seen.field is None:
        return _WHOLE
    kernel = _pair(_argument(args, kwargs, 1, "kernel_size", None))
    stride = _argument(args, kwargs, 2, "stride", None)
    padding = _pair(_argument(args, kwargs, 3, "padding", 0))
    return _Seen(seen.field.slid(kernel, _pair(stride) if stride else kernel, padding, _pair(dilation)))


def _max_pool(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    return _pool(seen, args, kwargs, _argument(args, kwargs, 4, "dilation", 1))


def _avg_pool(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    return _pool(seen, args, kwargs, 1)


def _pad(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    amounts = [*_argument(args, kwargs, 1, "pad", ()), 0, 0, 0, 0]
    if seen.axes != (2, 3) or seen.field is None or any(amounts[8:]):
        return _WHOLE
    return _Seen(seen.field.slid((1, 1), (1, 1), (amounts[2], amounts[0]), (1, 1)))


def _same_place(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    """Keep the field of an operation over channels only: spatial extent and its dimensions stay as they are."""
    kept = len(shape) == len(output) and all(shape[axis] == output[axis] for axis in seen.axes)
    return seen if kept else _WHOLE


def _last_axis(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    over = len(_argument(args, kwargs, 1, "normalized_shape", (0,))) if "normalized_shape" in kwargs else 1
    if isinstance(_argument(args, kwargs, 1, "", None), (tuple, list, torch.Size)):
        over = len(args[1])
    return _WHOLE if any(axis >= len(shape) - over for axis in seen.axes) else seen


def _permute(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    dims = _argument(args, kwargs, 1, "dims", ())
    order = [d % len(shape) for d in (dims if isinstance(dims, (tuple, list)) else args[1:])]
    return _Seen(seen.field, (order.index(seen.axes[0]), order.index(seen.axes[1])))


def _transpose(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    a, b = (_argument(args, kwargs, at, key, 0) % len(shape) for at, key in ((1, "dim0"), (2, "dim1")))
    swap = {a: b, b: a}
    return _Seen(seen.field, (swap.get(seen.axes[0], seen.axes[0]), swap.get(seen.axes[1], seen.axes[1])))


def _reshape(seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Any, output: Any) -> _Seen:
    """Follow a reshaping of channels only, as in a channel shuffle."""
    last = len(shape) - 2, len(shape) - 1
    kept = seen.axes == last and len(output) > 2 and shape[-2:] == output[-2:] and shape[0] == output[0]
    return _Seen(seen.field, (len(output) - 2, len(output) - 1)) if kept else _WHOLE


_RULES: dict[str, Callable[[_Seen, tuple[Any, ...], dict[str, Any], Any, Any], _Seen]] = {
    "conv2d": _conv,
    "max_pool2d": _max_pool,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    "pad": _pad,
    "linear": _last_axis,
    "layer_norm": _last_axis,
    "permute": _permute,
    "adaptive_avg_pool2d": _same_place,
    "adaptive_max_pool2d": _same_place,
    "chunk": _same_place,
    "split": _same_place,
    "narrow": _same_place,
    "transpose": _transpose,
    "view": _reshape,
    "reshape": _reshape,
}
