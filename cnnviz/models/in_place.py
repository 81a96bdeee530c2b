"""Batch norms that write over what the convolution before them made."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.utils import swap_tensors

from .capture import Captured
from .convolution import is_plain
from .diverted import Diverted, saves_as_usual

_Kept: TypeAlias = tuple[Tensor | None, ...]
LARGE: Final = 1 << 23  # bytes; less is in memory that was paged in before, as a rule


class OverwrittenError(BaseException):  # no error, and no `except Exception` of a network may swallow it
    """A network looks at what a convolution made after a batch norm wrote over it."""


class InPlace(Diverted):
    """Within it, batch norms in eval mode write over what the convolution before them made.

    A new map takes longer to be paged in than to be written. So large maps are written over, and all that would be kept
    for a backward pass. The bits are the same, of gradients too. What the convolution made is gone: who looks at it
    raises `OverwrittenError`, and all must run again without this. It sets `forward` on the module's convolutions and
    batch norms, so that it is for a replica that nobody else runs meanwhile.

    Args:
        parts: the modules of a replica.
        but: convolutions that are left as they are.
        failures: something for each time that the model was found to look again.
    """

    def __init__(self, parts: Sequence[nn.Module], but: frozenset[nn.Module], failures: list[bool]) -> None:
        norms = [one for one in parts if isinstance(one, nn.BatchNorm2d) and _is_usual(one)]
        convolutions = [one for one in parts if isinstance(one, nn.Conv2d) and is_plain(one) and one not in but]
        self.failures = failures
        self._parts = parts
        self._norms = {norm: _kept(norm) for norm in norms}
        self._diverted = [*norms, *convolutions] if norms else []
        self._fresh: Tensor | None = None  # what the last convolution made, while nothing else ran
        self._spent: list[weakref.ref[Tensor]] = []

    def fits(self) -> bool:
        """Whether it may be tried: nobody else watches the modules, or runs another forward of theirs."""
        hooked: bool = modules._has_any_global_hook()  # type: ignore[no-untyped-call]  # torch's, and private
        if self.failures or not self._diverted or hooked:
            return False
        hooks = [
            hook for one in self._parts for hook in (*one._forward_hooks.values(), *one._forward_pre_hooks.values())
        ]
        if any(getattr(hook, "__module__", None) != Captured.__module__ for hook in hooks):  # those take copies
            return False
        return not any("forward" in one.__dict__ for one in self._diverted)

    def check(self) -> None:
        """Look whether somebody kept what was written over, after a forward pass.

        Raises:
            OverwrittenError: somebody did.
        """
        spent, self._spent = self._spent, []
        if any(one() is not None for one in spent):
            raise OverwrittenError

    def __exit__(self, *_: object) -> None:
        self._fresh, self._spent = None, []
        super().__exit__()

    def _forward(self, module: Any, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        kept = self._norms.get(module)
        if kept is None:
            self._fresh = made = nn.Conv2d.forward(module, input)
            return made
        fresh, self._fresh = self._fresh, None
        if input is not fresh or not _is_alone(input, kept) or not _is_still(module, kept):
            return nn.BatchNorm2d.forward(module, input)
        made = _Spent._make_wrapper_subclass(_Spent, (0,))
        try:
            swap_tensors(input, made)  # type: ignore[no-untyped-call]  # torch's own
        except RuntimeError:  # somebody refers to it in a way that torch cannot follow
            return nn.BatchNorm2d.forward(module, input)
        self._spent.append(weakref.ref(input))
        if made.requires_grad:
            result: Tensor = _Recorded.apply(made, kept, module.eps)
            return result
        return _written_over(made, kept, module.eps)


def _kept(norm: nn.BatchNorm2d) -> _Kept:
    """Return mean, variance, weight and bias."""
    buffers, parameters = norm._buffers, norm._parameters
    return buffers["running_mean"], buffers["running_var"], parameters["weight"], parameters["bias"]


def _is_usual(norm: nn.BatchNorm2d) -> bool:
    """Whether it normalises by plain tensors of one kind, and does nothing else."""
    try:
        kept = _kept(norm)
    except KeyError:  # one of them is computed
        return False
    mean = kept[0]
    if type(norm).forward is not nn.BatchNorm2d.forward or mean is None or kept[1] is None:
        return False
    return mean.device.type == "cpu" and all(
        one.shape == mean.shape and one.dtype == mean.dtype and one.device == mean.device and not one.requires_grad
        for one in kept
        if one is not None
    )


def _is_still(norm: nn.BatchNorm2d, kept: _Kept) -> bool:
    return not norm.training and all(one is other for one, other in zip(_kept(norm), kept, strict=True))


def _is_alone(x: Any, kept: _Kept) -> bool:
    """Whether these are maps to write over, dense in memory that no other tensor shares, as a batch norm takes them."""
    mean = kept[0]
    if type(x) is not Tensor or mean is None or x.dtype != mean.dtype or x.device != mean.device or x.dim() != 4:
        return False
    if x.shape[1] != len(mean) or x.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    large = x.numel() * x.element_size() >= LARGE
    if not (torch.is_grad_enabled() and saves_as_usual() if x.requires_grad else large):
        return False
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return dense and _uses(x) == _ALONE


def _uses(x: Tensor) -> int:
    """Return how often memory is referred to, by this question too."""
    uses: int = torch._C._storage_Use_Count(x.untyped_storage()._cdata)
    return uses


_LONE: Final = torch.empty(1)
_ALONE: Final = _uses(_LONE)


def _written_over(x: Tensor, kept: _Kept, eps: float) -> Tensor:
    mean, variance, weight, bias = kept
    nothing = x.new_empty(0)
    torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, out=(x, nothing, nothing))
    return x


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: _Kept, eps: float) -> Tensor:
        ctx.mark_dirty(x)
        ctx.kept, ctx.eps = kept, eps
        return _written_over(x, kept, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        mean, variance, weight, _ = ctx.kept
        grad = grads[0]
        # In eval mode the maps themselves do not count, but for their shape.
        passed: Tensor = torch.ops.aten.native_batch_norm_backward(
            grad, grad.detach(), weight, mean, variance, None, None, False, ctx.eps, [True, False, False]
        )[0]
        return passed, None, None


class _Spent(Tensor):
    """What a batch norm wrote over."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse to be looked at."""
        raise OverwrittenError

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # named as torch calls them
        """Do the same below."""
        raise OverwrittenError
