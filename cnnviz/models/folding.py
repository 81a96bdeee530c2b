"""Batch norms made a part of the convolutions before them, while a network runs as it is."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .receptive_field import pair
from .state import known_by


class Unfoldable(Exception):  # noqa: N818  # no error of anybody's
    """A network writes to what a convolution took before it looks at what came of it."""


class Folding(TorchFunctionMode):
    """Within it, a convolution without gradients waits for what comes next: a batch norm in eval mode joins it.

    Whatever else comes next gets what the convolution alone makes, so that all is as without it but for rounding. It
    holds for one thread; kernels are kept for the next passes.

    Attributes:
        folded: how many batch norms became part of a convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folded = 0
        self._kernels: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._alive: list[Any] = []  # ids stay unique as long as their tensors live

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let plain convolutions wait; run everything else."""
        if func is torch.conv2d and not torch.is_grad_enabled():
            waiting = _waiting(self, *args, **(kwargs or {}))
            if waiting is not None:
                return waiting
        return func(*args, **(kwargs or {}))

    def kernel(self, parts: tuple[Any, ...], eps: float) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a convolution and the batch norm behind it; see `fold`."""
        key = known_by((*parts, eps))
        if key not in self._kernels:
            self._kernels[key] = fold(*parts, eps=eps)
            self._alive.append(parts)
        self.folded += 1
        return self._kernels[key]


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
    factor = (variance.double() + eps).rsqrt() * (1 if scale is None else scale.double())
    moved = (0 if bias is None else bias.double()) - mean.double()
    offset = moved * factor + (0 if shift is None else shift.double())
    return weight * factor.to(weight)[:, None, None, None], offset.to(weight)


class _Waiting(Tensor):
    """What a convolution will make, once it is known what comes next."""

    _folding: Folding
    _call: tuple[Any, ...]
    _seen: int
    _made: Tensor | None

    def run(self) -> Tensor:
        """Return what the convolution makes by itself."""
        if self._made is None:
            self._made = _convolved(*self._taken())
        return self._made

    def normalised(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return what a batch norm makes of it; None where they are not one."""
        parts = _batch_norm(*args, **kwargs)
        if parts is None or self._made is not None or torch.is_grad_enabled():
            return None
        x, weight, bias, *settings = self._taken()
        *moments, eps = parts
        return _convolved(x, *self._folding.kernel((weight, bias, *moments), eps), *settings)

    def _taken(self) -> tuple[Any, ...]:
        if self._call[0]._version != self._seen:
            raise Unfoldable
        return self._call

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Become part of a batch norm, or what the convolution makes."""
        kwargs = kwargs or {}
        if func in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func is functional.batch_norm and args and isinstance(args[0], cls):
            made = args[0].normalised(*args[1:], **kwargs)
            if made is not None:
                return made
        args, kwargs = tree_map_only(cls, cls.run, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # named as torch calls them
        """Be what the convolution makes to what looks below `__torch_function__`."""
        args, kwargs = tree_map_only(cls, cls.run, (args, kwargs or {}))
        return func(*args, **kwargs)


@torch.no_grad()
def _convolved(*call: Any) -> Tensor:
    """Run a convolution as when it was called: without gradients, whatever has begun since."""
    return torch.conv2d(*call)


_ASKED: Final = frozenset(
    (Tensor.dim, Tensor.size, Tensor.shape.__get__, Tensor.ndim.__get__, Tensor.device.__get__, Tensor.dtype.__get__)  # type: ignore[attr-defined]  # descriptors
)


def _waiting(
    folding: Folding,
    input: Any,  # noqa: A002  # as torch calls it
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Waiting | None:
    """Return what stands for the result of a convolution; None for one that is run at once."""
    tensors = [input, weight] if bias is None else [input, weight, bias]
    plain = all(type(one) in (Tensor, torch.nn.Parameter) and one.dtype == torch.float32 for one in tensors)
    if not plain or input.dim() != 4 or input.is_inference() or isinstance(padding, str):
        return None
    if torch.is_autocast_enabled(input.device.type):  # it may have ended when the convolution is run
        return None
    sides = zip(input.shape[2:], weight.shape[2:], pair(stride), pair(padding), pair(dilation), strict=True)
    size = [(side + 2 * pad - spread * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, spread in sides]
    if min(size) < 1:
        return None
    shape = (len(input), len(weight), *size)
    made: _Waiting = Tensor._make_wrapper_subclass(_Waiting, shape, dtype=input.dtype, device=input.device)
    made._folding, made._call = folding, (input, weight, bias, stride, padding, dilation, groups)
    made._seen, made._made = input._version, None
    return made


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
