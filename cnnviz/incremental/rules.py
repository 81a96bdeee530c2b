"""How patches go through torch's functions; a function without a rule sees whole maps from there on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models import fold, packed
from ..models.convolution import TILE, Pack, by_tiles, convolved, has_kernel, packed_size
from ..models.receptive_field import pair
from ..ops import Joined, Overlaid, changed_spans, conv_cat, overlay_cat, packed_kernel
from .geometry import Pair, Window, united
from .patched import INPLACE_ARGUMENT, RULES, Base, Later, Like, Patched, cropped, laid_over

Rule = Callable[..., Any]

_NONE = (-math.inf, math.inf)
_ONE = Window((1, 1), (1, 1), (0, 0))


def _maps(x: Any) -> bool:
    """Whether a value is a patched (K, C, H, W) map."""
    return isinstance(x, Patched) and not x.last and len(x.form) == 4


class _Convolution(NamedTuple):
    """A convolution of patches that is still to be run, so that a batch norm and a ReLU behind it become a part of it.

    Attributes:
        source: what the network makes of the base.
        base: (1, C, H, W), before it.
        weight: as torch takes it, like the rest.
        bias: as torch takes it.
        norm: of the batch norm that is a part of it, as `fold` takes it; nothing where there is none.
        stride: (height, width), like the rest.
        padding: of the base.
        dilation: likewise.
        groups: as torch takes it.
        native: whether the kernel for many small maps runs it, which packs weights once and takes no padding.
        limits: what is below the first, or above the second, is set to it.
        x: the patches with what the kernel sees around them, made or still to be laid over; or whole maps, which are
            padded; or what is still to be laid side by side, for a kernel of one pixel.
        whole: whether they are whole.
        added: is added to the patches that it makes, made or still to be laid over; what it makes of the base stays as
            it is.
    """

    source: Base
    base: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    native: bool
    norm: tuple[Any, ...] = ()
    limits: tuple[float, float] = _NONE
    x: Tensor | Overlaid | _Concatenation | None = None
    whole: bool = False
    added: Tensor | Overlaid | None = None

    @classmethod
    def of_one(cls, source: Base, base: Tensor) -> _Convolution:
        """Return the convolution that leaves every pixel as it is."""
        channels = base.shape[1]
        ones = source.weights.result(("ones", channels, base.dtype), lambda: base.new_ones(channels, 1, 1, 1))
        return cls(source, base, ones, None, (1, 1), (0, 0), (1, 1), channels, _native(source, base, ones, channels))

    @property
    def plain(self) -> bool:
        """Whether nothing behind it is a part of it yet but for a batch norm."""
        return self.limits == _NONE and self.added is None

    @property
    def tiled(self) -> bool:
        """Whether Winograd's algorithm makes it with fewer products."""
        return self.native and by_tiles(self.weight.shape, self.stride, self.dilation, self.groups)

    @property
    def looks(self) -> bool:
        """Whether its kernel takes what crops are made of, so that they need not all be made first."""
        return self.tiled or (self.native and self.groups > 1)

    @property
    def cost(self) -> int:
        """How many products a pixel of the result takes."""
        products = self.weight.numel()
        return products * TILE // 36 if self.tiled else products

    @property
    def kept(self) -> int:
        """How many bytes are kept of its weight as a kernel takes it, and a batch norm with it, at most."""
        if self.native:
            return packed_size(self.weight.shape, self.stride, self.dilation)
        return self.weight.numel() * self.weight.element_size()

    def run(self) -> Tensor:
        assert self.x is not None
        if isinstance(self.x, _Concatenation):
            low, high = self.limits
            return conv_cat(self.x.joined, *self._kernel(packed_kernel), low=low, high=high, added=self.added)
        return self._of(self.x, self.padding if self.whole else (0, 0), self.added)

    def of_base(self) -> Tensor:
        """Return what it makes of the base."""
        settings = (self.stride, self.padding, self.dilation, self.groups, self.limits)
        made: Tensor = self.source.result(
            ("conv2d", self.base, self.weight, self.bias, self.norm, *settings),
            lambda: self._of(self.base, self.padding),
        )
        return made

    def _of(self, x: Tensor | Overlaid, padding: Pair, added: Tensor | Overlaid | None = None) -> Tensor:
        if not self.native:
            assert isinstance(x, Tensor)
            weight, bias = self._kernel(_as_it_is) if self.norm else (self.weight, self.bias)
            with _without_autocast(self.source, x):  # it may have begun since
                made = functional.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
            return made if self.limits == _NONE else made.clamp_(*self.limits)
        low, high = self.limits
        return convolved(
            x,
            self.weight.shape,
            self._kernel,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            low=low,
            high=high,
            added=added,
        )

    def _kernel(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return the weight as a kernel takes it, and the bias, with the batch norm in both."""
        call = (pack, self.weight, self.bias, self.groups, self.norm)
        made: tuple[Tensor, Tensor] = self.source.weights.result(call, lambda: packed(*call))
        return made

    def scaled(
        self, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> _Convolution:
        """Return the convolution that a batch norm behind it makes one with."""
        return self._replace(norm=(mean, variance, weight, bias, eps))


class _Concatenation(NamedTuple):
    """Patches that are still to be laid side by side in their channels; a batch norm and a ReLU become a part of it.

    Attributes:
        source: what the network makes of the base.
        bases: (1, C, H, W) of each map.
        patches: (K, C, h, w) of each.
        at: where they begin, (K, 2) of each.
        places: where boxes begin that hold them all, (K, 2).
        extent: (height, width) of the boxes.
        scale: (sum of C,), by which channels are multiplied; None where no batch norm is a part of it.
        shift: (sum of C,), which is then added.
        limits: what is below the first, or above the second, is set to it.
    """

    source: Base
    bases: tuple[Tensor, ...]
    patches: tuple[Tensor, ...]
    at: tuple[Tensor, ...]
    places: Tensor
    extent: Pair
    scale: Tensor | None = None
    shift: Tensor | None = None
    limits: tuple[float, float] = _NONE

    @property
    def plain(self) -> bool:
        """Whether nothing behind it is a part of it yet that would have to come first."""
        return self.limits == _NONE and self.scale is None

    @property
    def joined(self) -> Joined:
        """What it makes of the patches, as operators take it."""
        factors = (self.scale, self.shift, *self.limits)
        return Joined(self.bases, self.patches, torch.stack(self.at), self.places, self.extent, *factors)

    def run(self) -> Tensor:
        return overlay_cat(self.joined)

    def of_base(self) -> Tensor:
        """Return what it makes of the bases."""

        def computed() -> Tensor:
            corner = self.places.new_zeros(1, 2)
            size = (self.bases[0].shape[2], self.bases[0].shape[3])
            every = self._replace(patches=self.bases, at=(corner,) * len(self.bases), places=corner, extent=size)
            return every.run()

        call = ("overlay_cat", *self.bases, self.scale, self.shift, self.limits)
        made: Tensor = self.source.result(call, computed)
        return made

    def scaled(
        self, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> _Concatenation:
        """Return the concatenation that a batch norm behind it makes one with."""
        moments = (mean, variance, weight, bias)

        def factors() -> tuple[Tensor, Tensor]:
            scale, shift = fold(self.bases[0].new_ones(len(mean), 1, 1, 1), None, *moments, eps=eps)
            return scale.flatten(), shift

        scale, shift = self.source.weights.result(("factors", *moments, eps), factors)
        return self._replace(scale=scale, shift=shift)


def _as_it_is(weight: Tensor, groups: int) -> Tensor:  # torch's kernels take it so
    return weight


def _kind(source: Base, base: Tensor) -> str:
    """Return the type of the device that a map is run on, or stands for one that is."""
    return (source.device or base.device).type


def _autocast(source: Base, base: Tensor) -> torch.dtype | None:
    """Return to what type convolutions of such maps are cast here; None where they are not."""
    kind = _kind(source, base)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _without_autocast(source: Base, base: Tensor) -> AbstractContextManager[Any]:
    cast = _autocast(source, base)
    return nullcontext() if cast is None else torch.autocast(_kind(source, base), enabled=False)


def _cast(value: Tensor, to: torch.dtype) -> Tensor:
    """Return what autocast makes of a tensor that a convolution takes."""
    return value.to(to) if value.is_floating_point() and value.dtype != torch.float64 else value


def _native(source: Base, base: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether a convolution of such maps is run by the kernel for many small ones."""
    plain = base.dtype == weight.dtype == torch.float32 and _kind(source, base) == "cpu" and not source.frugal
    return plain and has_kernel(weight.shape, groups)


def _through_windows(
    x: Patched,
    window: Window,
    base: Tensor | Callable[[], Tensor],
    pad: float,
    whole: Callable[[Tensor], Tensor | Later] | None,
    part: Callable[[Any], Tensor | Later],
    factor: Tensor | None = None,
    like: Like | None = None,
    looks: bool = False,
) -> Patched:
    """Return the map behind a window operation.

    Args:
        x: the map before it.
        window: what it sees.
        base: what it makes of the base.
        pad: what stands for padding.
        whole: the operation; None if it takes no padding.
        part: the operation without padding.
        factor: (1, 1, H, W), by which the result of `part` is multiplied.
        like: what the base is like, where that is still to be made.
        looks: whether `part` takes crops that are still to be made, with 0 as padding.
    """
    known = base if isinstance(base, Tensor) else like
    assert known is not None
    full = (known.shape[2], known.shape[3])
    spans = x.spans
    if x.source.least and max(window.kernel) > 1 and not x.full:  # what sees single pixels would not reach further
        spans = changed_spans(x.base, x.patch, x.places, spans, x.source.least)
    reach = window.reach(spans, full)
    if whole is not None and x.full and reach.size == full:
        patch = whole(x.patch)
    else:
        seen = window.seen(reach.size)
        if seen == x.extent and torch.equal(reach.corners, x.places):
            patch = part(x.patch)
        else:
            crops = Overlaid(x.base, x.patch, x.places, reach.corners, seen)
            patch = part(crops if looks else laid_over(*crops, pad))
        if factor is not None:
            assert isinstance(patch, Tensor)
            patch = patch * cropped(factor, reach.places, reach.size)
    return Patched(base, patch, reach.places, x.source, like=like, extent=reach.size, spans=reach.spans)


def _conv2d(
    _: Any,
    input: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not _maps(input) or isinstance(weight, Patched):
        return NotImplemented
    steps, spread, kernel = pair(stride), pair(dilation), (weight.shape[2], weight.shape[3])
    if padding == "same":
        around = [d * (k - 1) for k, d in zip(kernel, spread, strict=True)]
        if any(n % 2 for n in around):
            return NotImplemented
        padding = (around[0] // 2, around[1] // 2)
    margin = (0, 0) if padding == "valid" else pair(padding)
    cast = _autocast(input.source, input.base)
    if cast is not None:
        before, known = input.base, input.source.weights
        base = input.source.result(("cast", before, cast), lambda: _cast(before, cast))
        input = input.with_values(base, _cast(input.patch, cast))  # noqa: A001  # as torch calls it
        weight = known.result(("cast", weight, cast), lambda: _cast(weight, cast))
        bias = None if bias is None else known.result(("cast", bias, cast), lambda: _cast(bias, cast))
    native = _native(input.source, input.base, weight, groups)
    call = _Convolution(input.source, input.base, weight, bias, steps, margin, spread, groups, native)
    window = Window(kernel, steps, margin, spread)
    size = window.output((input.form[2], input.form[3]))
    if min(size) < 1:
        return NotImplemented
    before, like = input.unfinished, Like((1, weight.shape[0], *size), input.dtype, input.device)
    if native and isinstance(before, _Concatenation) and window == _ONE and groups == 1:
        input.source.visit(input.spans, size, weight, call.cost, call.kept)
        return input.with_values(call.of_base, call._replace(x=before), like=like)
    result = _through_windows(
        input,
        window,
        call.of_base,
        0.0,
        None if call.native else lambda x: call._replace(x=x, whole=True),
        lambda x: call._replace(x=x),
        like=like,
        looks=call.looks,
    )
    input.source.visit(result.spans, size, weight, call.cost, call.kept)
    if cast is not None:  # a batch norm behind it is in another type, and rounds once more
        _ = result.patch, result.base
    return result


def _max_pool2d(
    _: Any,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if not _maps(input) or return_indices:
        return NotImplemented
    kernel, margin, spread = pair(kernel_size), pair(padding), pair(dilation)
    steps = pair(stride) if stride else kernel

    def whole(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, kernel, steps, margin, spread, ceil_mode)

    return _through_windows(
        input,
        Window(kernel, steps, margin, spread),
        input.source.result(
            ("max_pool2d", input.base, kernel, steps, margin, spread, ceil_mode), lambda: whole(input.base)
        ),
        -math.inf,
        whole,
        lambda x: functional.max_pool2d(x, kernel, steps, 0, spread),
    )


def _avg_pool2d(
    _: Any,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if not _maps(input):
        return NotImplemented
    kernel, margin = pair(kernel_size), pair(padding)
    steps = pair(stride) if stride else kernel

    def whole(x: Tensor, divisor: int | None) -> Tensor:
        return functional.avg_pool2d(x, kernel, steps, margin, ceil_mode, count_include_pad, divisor)

    def corrected(ones: Tensor) -> Tensor:
        """Return by how much a mean over fewer pixels, at the border, is larger than one with the padding's zeros."""
        return (whole(ones, divisor_override) / (whole(ones, 1) / (kernel[0] * kernel[1]))).to(input.base.dtype)

    base, factor = input.source.result(
        ("avg_pool2d", input.base, kernel, steps, margin, ceil_mode, count_include_pad, divisor_override),
        lambda: (
            whole(input.base, divisor_override),
            corrected(torch.ones_like(input.base[:, :1], dtype=torch.double)),
        ),
    )
    return _through_windows(
        input,
        Window(kernel, steps, margin),
        base,
        0.0,
        lambda x: whole(x, divisor_override),
        lambda x: functional.avg_pool2d(x, kernel, steps, 0),
        factor,
    )


def _adaptive_avg_pool2d(_: Any, input: Any, output_size: Any) -> Any:
    unchanged = _maps(input) and tuple(input.base.shape[-2:]) == pair(output_size)
    return input.with_values(input.base, input.patch.clone()) if unchanged else NotImplemented


def _pointwise(func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a function that treats every number by itself to base and patch."""
    if not isinstance(input, Patched) or any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        return NotImplemented
    name = func.__name__.rstrip("_")
    function = getattr(torch, name, None) or getattr(functional, name)
    place = INPLACE_ARGUMENT.get(name)
    given = {key: value for key, value in kwargs.items() if key != "inplace"}
    plain = args if place is None else args[: place - 1]  # the input is none of them

    def made_of(x: Tensor) -> Tensor:
        # On the meta device torch takes a millisecond to find that out.
        return torch.empty_like(x) if x.is_meta else function(x, *plain, **given)

    call = (name, input.base, *plain, *sorted(given.items()))
    base, before = input.source.result(call, lambda: made_of(input.base)), input.unfinished
    limits = _limits(name, *plain, **given)
    if limits and isinstance(before, (_Convolution, _Concatenation)) and before.limits == _NONE:
        return input.with_values(base, before._replace(limits=limits))
    return input.with_values(base, made_of(input.patch))


def _limits(
    name: str, min_val: float = -1.0, max_val: float = 1.0, *_: Any, **_more: Any
) -> tuple[float, float] | None:
    """Return between what a function keeps each number, if it does nothing else, so that it may be part of a kernel."""
    return {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "hardtanh": (min_val, max_val)}.get(name)


def _same(_: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """What gives back its input, or another tensor of the same memory."""
    return input if isinstance(input, Patched) else NotImplemented


def _contiguous(_: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """What gives back its input or a copy of it, by how a network's own maps would lie in memory."""
    return input.part(input.base, input.patch) if isinstance(input, Patched) else NotImplemented


def _clone(_: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    return input.with_values(input.base, input.patch.clone()) if isinstance(input, Patched) else NotImplemented


def _dropout(_: Any, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return NotImplemented if training or not isinstance(input, Patched) else _same(_, input)


def _batch_norm(
    _: Any,
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_more: Any,
) -> Any:
    if not _maps(input) or training or running_mean is None or running_var is None:
        return NotImplemented
    given = (running_mean, running_var, weight, bias)
    before = input.unfinished
    if _takes_norm(before, input.source):
        folded = before.scaled(running_mean, running_var, weight, bias, eps)
        return input.with_values(folded.of_base, folded)
    alone = _Convolution.of_one(input.source, input.base)
    if alone.native:  # so that a ReLU behind it becomes a part of it
        scaled = alone.scaled(running_mean, running_var, weight, bias, eps)
        return input.with_values(scaled.of_base, scaled._replace(x=input.patch))

    def normalised(x: Tensor) -> Tensor:
        return functional.batch_norm(x, *given, False, momentum, eps)

    base = input.source.result(("batch_norm", input.base, *given, eps), lambda: normalised(input.base))
    return input.with_values(base, normalised(input.patch))


def _takes_norm(before: Any, source: Base) -> TypeGuard[_Convolution | _Concatenation]:
    """Whether a batch norm can be a part of what is still to be run."""
    if isinstance(before, _Convolution):
        return before.plain and not before.norm and not source.frugal
    return isinstance(before, _Concatenation) and before.plain


def _over_channels(call: tuple[Any, ...], input: Patched, function: Callable[[Tensor], Tensor]) -> Patched:
    """Apply a function of the channels of each pixel, which come last."""

    def moved(x: Tensor) -> Tensor:
        return function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    base = input.source.result((*call, input.base), lambda: moved(input.base))
    return input.with_values(base, moved(input.patch))


def _layer_norm(_: Any, input: Any, normalized_shape: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(input, Patched) or not input.last or len(tuple(normalized_shape)) != 1:
        return NotImplemented
    shape = tuple(normalized_shape)
    return _over_channels(
        ("layer_norm", shape, *args, *sorted(kwargs.items())),
        input,
        lambda x: functional.layer_norm(x, shape, *args, **kwargs),
    )


def _linear(_: Any, input: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not isinstance(input, Patched) or not input.last:
        return NotImplemented
    result = _over_channels(("linear", weight, bias), input, lambda x: functional.linear(x, weight, bias))
    input.source.visit(result.spans, (result.form[2], result.form[3]), weight, weight.numel())
    return result


def _permute(_: Any, input: Any, *dims: Any) -> Any:
    order = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    if not isinstance(input, Patched) or input.base.dim() != 4:
        return NotImplemented
    order = tuple(d % 4 for d in order)
    if order != ((0, 3, 1, 2) if input.last else (0, 2, 3, 1)):
        return NotImplemented
    return input.part(input.base, input.patch, last=not input.last)


def _around(parts: Sequence[Patched]) -> tuple[Tensor, Tensor, Pair]:
    """Return what may differ from the base in one of them, and where boxes begin that hold that, and their size."""
    first, *others = parts
    aligned = all(part.extent == first.extent and torch.equal(part.places, first.places) for part in others)
    if aligned and all(part.spans is first.spans for part in others):
        return first.spans, first.places, first.extent
    spans, places, extent = united([part.spans for part in parts], (first.form[-2], first.form[-1]))
    return (spans, first.places, first.extent) if aligned else (spans, places, extent)


def _crops(part: Patched, places: Tensor, extent: Pair) -> Tensor | Overlaid:
    """Return its values inside of boxes that hold its patches, made or still to be laid over."""
    if part.extent == extent and torch.equal(part.places, places):
        return part.patch
    return Overlaid(part.base, part.patch, part.places, places, extent)


def _inside(part: Patched, places: Tensor, extent: Pair) -> Tensor:
    """Return its values inside of boxes that hold its patches."""
    crops = _crops(part, places, extent)
    return laid_over(*crops) if isinstance(crops, Overlaid) else crops


def _alike(parts: Sequence[Any]) -> bool:
    """Whether all are patched maps of one height and width of the same base image."""
    return all(isinstance(part, Patched) for part in parts) and all(
        part.last == parts[0].last
        and part.source is parts[0].source
        and len(part.form) == len(parts[0].form)
        and part.form[-2:] == parts[0].form[-2:]
        for part in parts[1:]
    )


def _of_both(function: Callable[..., Tensor], a: Patched, b: Patched, given: dict[str, Any]) -> Patched:
    """Return what a function of each two numbers makes of patches; a sum becomes part of a convolution before it."""
    spans, places, extent = _around([a, b])
    call = (function.__name__, a.base, b.base, *sorted(given.items()))
    base = a.source.result(call, lambda: function(a.base, b.base, **given))
    joinable = function is torch.add and not given and a.form == b.form and a.dtype == b.dtype
    for one, other in ((a, b), (b, a)) if joinable else ():
        before = one.unfinished
        if not (isinstance(before, _Convolution) and before.plain and before.native and before.groups == 1):
            continue
        if extent == one.extent and torch.equal(places, one.places):
            joined = before._replace(added=_crops(other, places, extent))
            return Patched(base, joined, places, a.source, extent=extent, spans=spans, last=a.last)
    values = function(_inside(a, places, extent), _inside(b, places, extent), **given)
    return Patched(base, values, places, a.source, spans=spans, last=a.last)


def _arithmetic(function: Callable[..., Tensor]) -> Rule:
    name = function.__name__

    def rule(_: Any, a: Any, b: Any, **kwargs: Any) -> Any:
        if isinstance(a, Patched) and isinstance(b, Patched):
            return _of_both(function, a, b, kwargs) if _alike([a, b]) else NotImplemented
        x, other = (a, b) if isinstance(a, Patched) else (b, a)
        if isinstance(other, Tensor) and other.dim():
            shape = tuple(other.shape)
            if len(shape) == 4 and len(x.places) == 1 and not isinstance(other, nn.Parameter):
                return NotImplemented  # of this one image, perhaps, as what squeeze-and-excitation multiplies by
            if x.last:  # what differs between channels stands last
                shape = (shape[-1], 1, 1) if set(shape[:-1]) <= {1} else (0, 0, 0, 0, 0)
            if len(shape) > 4 or shape[-2:] != (1, 1) or (len(shape) == 4 and shape[0] != 1):
                return NotImplemented
            other = other.reshape(shape)

        def combined(values: Tensor) -> Tensor:
            return function(values, other, **kwargs) if x is a else function(other, values, **kwargs)

        call = (name, x is a, x.base, b if x is a else a, *sorted(kwargs.items()))
        return x.with_values(x.source.result(call, lambda: combined(x.base)), combined(x.patch))

    return rule


def _reversed_subtraction(_: Any, a: Any, b: Any) -> Any:
    return _arithmetic(torch.sub)(_, b, a)


def _cat(_: Any, tensors: Any, dim: int = 0) -> Any:
    parts = list(tensors)
    channels = -1 if parts and isinstance(parts[0], Patched) and parts[0].last else 1
    if not _alike(parts) or parts[0].base.dim() != 4 or dim % 4 != channels % 4:
        return NotImplemented
    (spans, places, extent), source, bases = _around(parts), parts[0].source, tuple(part.base for part in parts)
    if not parts[0].last and all(base.dtype == torch.float32 and _kind(source, base) == "cpu" for base in bases):
        at = tuple(part.places for part in parts)
        joined = _Concatenation(source, bases, tuple(part.patch for part in parts), at, places, extent)
        like = Like((1, sum(base.shape[1] for base in bases), *bases[0].shape[2:]), torch.float32, bases[0].device)
        return Patched(joined.of_base, joined, places, source, like=like, extent=extent, spans=spans)
    values = [_inside(part, places, extent) for part in parts]
    base = source.result(("cat", *bases), lambda: torch.cat(bases, 1))
    return Patched(base, torch.cat(values, 1), places, source, spans=spans, last=parts[0].last)


def _split(func: Any, input: Any, split_size: Any, dim: int = 0) -> Any:
    if not _maps(input) or dim % 4 != 1:
        return NotImplemented
    function = torch.chunk if func.__name__ == "chunk" else torch.split
    bases = input.source.result(
        (func.__name__, input.base, split_size), lambda: function(input.base, split_size, dim=1)
    )
    parts = zip(bases, function(input.patch, split_size, dim=1), strict=True)
    return tuple(input.part(base, patch) for base, patch in parts)


def _getitem(_: Any, input: Any, index: Any) -> Any:
    everything = slice(None)
    chosen = index if isinstance(index, tuple) else (index,)
    if not _maps(input) or len(chosen) < 2 or not all(isinstance(part, slice) for part in chosen):
        return NotImplemented
    if any(part != everything for axis, part in enumerate(chosen) if axis != 1):
        return NotImplemented
    part = chosen[1]
    base = input.source.result(("slice", input.base, part.start, part.stop, part.step), lambda: input.base[:, part])
    return input.part(base, input.patch[:, part])


def _reshape(_: Any, input: Any, *shape: Any) -> Any:
    """Follow what splits or joins channels: (K, C, H, W) to (K, a, b, H, W) and back."""
    if not isinstance(input, Patched) or input.last:
        return NotImplemented
    wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    count, space = len(input.patch), tuple(input.base.shape[-2:])
    full = tuple(torch.empty(count, *input.base.shape[1:], device="meta").reshape(wanted).shape)
    if len(full) < 4 or full[0] != count or full[-2:] != space:
        return NotImplemented
    base = input.source.result(("reshape", input.base, full[1:]), lambda: input.base.reshape(1, *full[1:]))
    return input.part(base, input.patch.reshape(count, *full[1:-2], *input.extent))


def _transpose(_: Any, input: Any, dim0: int, dim1: int) -> Any:
    if not isinstance(input, Patched) or input.last:
        return NotImplemented
    dims = input.base.dim()
    a, b = dim0 % dims, dim1 % dims
    if min(a, b) < 1 or max(a, b) >= dims - 2:
        return NotImplemented
    base = input.source.result(("transpose", input.base, a, b), lambda: input.base.transpose(a, b))
    return input.part(base, input.patch.transpose(a, b))


def _pad(_: Any, input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if not _maps(input) or mode != "constant" or len(pad) != 4 or min(pad) < 0:
        return NotImplemented
    base = input.source.result(
        ("pad", input.base, tuple(pad), value), lambda: functional.pad(input.base, list(pad), value=value or 0.0)
    )
    by = torch.tensor((pad[2], pad[0]), device="cpu")
    return Patched(base, input.patch, input.places + by, input.source, spans=input.spans + by[:, None])


def _interpolate(
    _: Any, input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *args: Any, **kwargs: Any
) -> Any:
    factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,)
    if not _maps(input) or mode != "nearest" or any(factor is not None and factor != int(factor) for factor in factors):
        return NotImplemented
    base = input.source.result(
        ("interpolate", input.base, size, scale_factor),
        lambda: functional.interpolate(input.base, size, scale_factor, mode),
    )
    times = [base.shape[axis] // input.base.shape[axis] for axis in (2, 3)]
    if [factor * side for factor, side in zip(times, input.base.shape[2:], strict=True)] != list(base.shape[2:]):
        return NotImplemented
    patch = input.patch.repeat_interleave(times[0], 2).repeat_interleave(times[1], 3)
    by = torch.tensor(times, device="cpu")
    return Patched(base, patch, input.places * by, input.source, spans=input.spans * by[:, None])


RULES.update(
    {
        "conv2d": _conv2d,
        "max_pool2d": _max_pool2d,
        "avg_pool2d": _avg_pool2d,
        "adaptive_avg_pool2d": _adaptive_avg_pool2d,
        "batch_norm": _batch_norm,
        "layer_norm": _layer_norm,
        "linear": _linear,
        "permute": _permute,
        "cat": _cat,
        "concat": _cat,
        "concatenate": _cat,
        "chunk": _split,
        "split": _split,
        "__getitem__": _getitem,
        "view": _reshape,
        "reshape": _reshape,
        "transpose": _transpose,
        "pad": _pad,
        "interpolate": _interpolate,
        "__rsub__": _reversed_subtraction,
        **dict.fromkeys(("dropout", "dropout2d", "feature_dropout", "alpha_dropout"), _dropout),
        "clone": _clone,
        "contiguous": _contiguous,
        "detach": _same,
        **dict.fromkeys(
            """relu relu6 hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu elu selu celu softplus mish
        softsign threshold clamp clamp_min clamp_max exp neg abs square sqrt""".split(),  # noqa: SIM905  # reads better
            _pointwise,
        ),
        **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__"), _arithmetic(torch.add)),
        **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__"), _arithmetic(torch.mul)),
        **dict.fromkeys(("sub", "subtract", "__sub__", "__isub__"), _arithmetic(torch.sub)),
        **dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__itruediv__"), _arithmetic(torch.div)),
    }
)
