"""Convolutions of a network by kernels of our own, and batch norms made a part of them, while it runs as it is."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from ..ops._layout import memory_format
from .convolution import Pack, by_tiles, convolved, has_kernel, is_plain, packed_size
from .diverted import Diverted
from .state import known_by

_FEW: Final = 256  # products; PyTorch sums them in one go as fast as our kernels do, and errs as far as in any layout
_SUMMED: Final = 576  # a sum of more is rounded noticeably farther when it is made in one go


class Unfoldable(BaseException):  # no error, and no `except Exception` of a network may swallow it
    """A network writes to what a convolution took before it looks at what came of it."""


class Folding(Diverted):
    """Within it, a module's convolutions wait for what comes next: a batch norm in eval mode joins its convolution.

    Whatever else comes next gets what the convolution alone makes, so that all is as without it but for rounding. Where
    maps are channels last, wide convolutions are run by kernels of our own. It sets `forward` on the module's instances
    of `nn.Conv2d`, so that it is for a replica that nobody else runs meanwhile; a mode of torch would do without, and
    cost 20 µs for each function that is called. Kernels are kept for the next passes.

    Attributes:
        helps: whether a CPU is faster within it, on maps in single precision that are channels last, and rounds about
            as far. PyTorch sums over all products in one go in that layout, and errs with the root of their number,
            where with channels first and AVX-512 it sums over 16 of these at a time: with 512 channels of 3 x 3 pixels
            4 times as far. So wide kernels of several pixels must all be our own, which err up to half as far again.
        narrow: whether there are no wide kernels of several pixels, so that it rounds as far as without it.
        size: bytes of the weights that are made ready, at most.
    """

    def __init__(self, module: nn.Module) -> None:
        every = [one for one in module.modules() if isinstance(one, (nn.Conv2d, nn.ConvTranspose2d))]
        waiting = [one for one in every if isinstance(one, nn.Conv2d) and is_plain(one)]
        self._diverted = waiting
        self._own = {one for one in waiting if _is_for_us(one)}
        wide = {one for one in every if not _rounds_well(one)}
        self.helps = bool(waiting) and wide <= self._own
        self.narrow = not wide
        self.size = sum(_size_of(one, packed=one in self._own) for one in waiting)
        self._kernels: dict[nn.Conv2d, tuple[Any, tuple[Any, ...], tuple[Tensor, Tensor]]] = {}

    def _forward(self, convolution: nn.Conv2d, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        x = _run(input)
        made = None if torch.is_grad_enabled() else _waiting(self, convolution, x)
        return type(convolution).forward(convolution, x) if made is None else made

    def convolved(self, convolution: nn.Conv2d, call: tuple[Any, ...], norm: tuple[Any, ...] = ()) -> Tensor:
        """Return what a convolution makes, and the batch norm behind it where there is one.

        Args:
            convolution: a module.
            call: what `torch.conv2d` takes.
            norm: of the batch norm mean, variance, scale, shift and eps; as `fold` takes them.
        """
        x, weight, bias, stride, padding, dilation, groups = call

        def kernel(pack: Pack) -> tuple[Tensor, Tensor]:
            return self.kernel(convolution, pack, (weight, bias, groups), norm)

        fits = x.device.type == "cpu" and len(x) > 0 and x.shape[1] == weight.shape[1]
        if fits and convolution in self._own and x.is_contiguous(memory_format=torch.channels_last):
            settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            return convolved(x, weight.shape, kernel, **settings)
        if norm:
            weight, bias = kernel(_LAID[memory_format(x)])
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def kernel(
        self, convolution: nn.Conv2d, pack: Pack, parts: tuple[Tensor, Tensor | None, int], norm: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return the packed weight and the bias of a convolution and the batch norm behind it.

        The last one of each convolution is kept, since weights may be computed anew in every pass.

        Args:
            convolution: a module.
            pack: how.
            parts: weight, bias and groups.
            norm: see `convolved`.
        """
        weight, bias, groups = parts
        key = pack, known_by((parts, norm)), weight.data_ptr()  # as it is after `weight.data = …`
        known, _, made = self._kernels.get(convolution, (None, None, None))
        if made is None or known != key:
            made = packed(pack, weight, bias, groups, norm)
            self._kernels[convolution] = key, (parts, norm), made  # ids stay unique as long as their tensors live
        return made


def _shape(convolution: nn.Conv2d) -> tuple[int, ...]:
    """Return the shape of its weight, which may have to be computed."""
    return (convolution.out_channels, convolution.in_channels // convolution.groups, *convolution.kernel_size)


def _is_for_us(convolution: nn.Conv2d) -> bool:
    """Whether a kernel of our own runs it on this processor, in less time or with less rounding than PyTorch's."""
    groups, shape = convolution.groups, _shape(convolution)
    gains = by_tiles(shape, convolution.stride, convolution.dilation, groups) or math.prod(shape[1:]) > _FEW
    return groups == 1 and gains and has_kernel(shape, groups)


def _size_of(convolution: nn.Conv2d, *, packed: bool) -> int:
    """Return how many bytes its weight takes, packed for a kernel of our own or as it is."""
    shape = _shape(convolution)
    return packed_size(shape, convolution.stride, convolution.dilation) if packed else 4 * math.prod(shape)


def _rounds_well(convolution: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether it has one pixel, or does not sum over many products, as far as can be told."""
    try:
        pixels = math.prod(convolution.kernel_size)
        return pixels == 1 or pixels * convolution.in_channels // convolution.groups <= _SUMMED
    except (AttributeError, TypeError):  # a class of its own, which keeps other settings, or none
        return False


def _channels_first(weight: Tensor, groups: int) -> Tensor:  # noqa: ARG001  # torch's kernels take them as they are
    return weight.contiguous()


def _channels_last(weight: Tensor, groups: int) -> Tensor:  # noqa: ARG001  # as above
    return weight.contiguous(memory_format=torch.channels_last)


_LAID: Final[dict[torch.memory_format, Pack]] = {  # as what is convolved, or torch would lay it out anew each time
    torch.contiguous_format: _channels_first,
    torch.channels_last: _channels_last,
}


def fold(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that one with a batch norm in eval mode behind it is."""
    if weight.is_meta:  # where torch takes a millisecond to find out that they are of these shapes
        return weight, torch.empty_like(mean, dtype=weight.dtype)
    factor = (variance.double() + eps).rsqrt() * (1 if scale is None else scale.double())
    moved = (0 if bias is None else bias.double()) - mean.double()
    offset = moved * factor + (0 if shift is None else shift.double())
    return weight * factor.to(weight)[:, None, None, None], offset.to(weight)


def packed(
    pack: Pack, weight: Tensor, bias: Tensor | None, groups: int, norm: tuple[Any, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Return the weight of a convolution as a kernel takes it, and its bias, with the batch norm behind it in both.

    Args:
        pack: how the kernel takes it.
        weight: as torch takes it, as the next two.
        bias: as torch takes it.
        groups: likewise.
        norm: mean, variance, scale, shift and eps of the batch norm, as `fold` takes them; nothing where there is none.
    """
    if norm:
        *moments, eps = norm
        weight, bias = fold(weight, bias, *moments, eps=eps)
    return pack(weight, groups), weight.new_zeros(len(weight)) if bias is None else bias


class _Waiting(Tensor):
    """What a convolution will make, once it is known what comes next."""

    _folding: Folding
    _convolution: nn.Conv2d
    _call: tuple[Any, ...]
    _seen: int
    _made: Tensor | None

    def run(self) -> Tensor:
        """Return what the convolution makes by itself."""
        if self._made is None:
            self._made = self._convolved()
            del self._call  # what it holds may be large
        return self._made

    def normalised(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return what a batch norm makes of it; None where they are not one."""
        parts = _batch_norm(*args, **kwargs)
        if parts is None or self._made is not None or torch.is_grad_enabled():
            return None
        return self._convolved(parts)

    def _convolved(self, norm: tuple[Any, ...] = ()) -> Tensor:
        """Run it as when it was called: without gradients, whatever has begun since."""
        if self._call[0]._version != self._seen:
            raise Unfoldable
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            return self._folding.convolved(self._convolution, self._call, norm)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Become part of a batch norm, or what the convolution makes."""
        kwargs = kwargs or {}
        if func is functional.batch_norm and args and type(args[0]) is cls:
            made = args[0].normalised(*args[1:], **kwargs)
            if made is not None:
                return made
        if func in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return func(*map(_run, args), **{name: _run(value) for name, value in kwargs.items()})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # named as torch calls them
        """Be what the convolution makes to what looks below `__torch_function__`."""
        args, kwargs = _run((args, kwargs or {}))
        return func(*args, **kwargs)


def _run(value: Any) -> Any:
    """Return a value with what convolutions make in place of those that wait."""
    if type(value) is _Waiting:
        return value.run()
    return tree_map_only(_Waiting, _Waiting.run, value) if isinstance(value, (tuple, list, dict)) else value


_ASKED: Final = frozenset(
    (Tensor.dim, Tensor.size, Tensor.shape.__get__, Tensor.ndim.__get__, Tensor.device.__get__, Tensor.dtype.__get__)  # type: ignore[attr-defined]  # descriptors
)


_PLAIN: Final = frozenset((Tensor, nn.Parameter))


def _waiting(folding: Folding, convolution: nn.Conv2d, x: Any) -> _Waiting | None:
    """Return what stands for the result of a convolution; None for one that is run at once."""
    plain = type(x) is Tensor and x.dtype == torch.float32 and x.dim() == 4 and not x.is_inference()
    weight, bias = convolution.weight, convolution.bias
    parameters = (weight,) if bias is None else (weight, bias)
    if not plain or not all(type(one) in _PLAIN and one.dtype == torch.float32 for one in parameters):
        return None
    if torch.is_autocast_enabled(x.device.type):  # it may have ended when the convolution is run
        return None
    padding = convolution.padding
    if convolution.padding_mode != "zeros":
        x = functional.pad(x, convolution._reversed_padding_repeated_twice, mode=convolution.padding_mode)
        padding = (0, 0)
    settings = convolution.stride, padding, convolution.dilation
    count, _, *sides = x.shape
    size = _size((*sides,), weight.shape[2:], *settings)
    if min(size) < 1:
        return None
    shape = (count, weight.shape[0], *size)
    made: _Waiting = Tensor._make_wrapper_subclass(_Waiting, shape, dtype=x.dtype, device=x.device)
    made._folding, made._convolution = folding, convolution
    made._call = (x, weight, bias, *settings, convolution.groups)
    made._seen, made._made = x._version, None
    return made


@functools.lru_cache(maxsize=1024)
def _size(*axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the size of what a convolution makes, of input, kernel, stride, padding and dilation along each axis."""
    return tuple(
        (side + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for side, kernel, step, pad, spread in zip(*axes, strict=True)
    )


def _batch_norm(
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001  # as torch calls it
    eps: float = 1e-5,
) -> tuple[Any, ...] | None:
    """Return what is needed of a batch norm's arguments after the first; None in training."""
    if training or running_mean is None or running_var is None:
        return None
    return running_mean, running_var, weight, bias, eps
