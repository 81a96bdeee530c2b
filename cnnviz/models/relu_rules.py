"""ReLU rules for the backward pass, applied to calls: every spelling of a rectifier follows, in any module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import ModelError, OptionError
from ..ops import guided_relu, guided_relu_
from .receptive_field import function_name, tensors_in

Rule = Literal["deconvnet", "guided"]

_SMOOTH = frozenset(
    ("leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "silu", "gelu", "mish", "hardswish", "softplus")
)
_AT_ZERO = {  # functions that rectify only with some arguments: those whose lower bound is 0
    "hardtanh": ("min_val", 1, -1.0),
    "clamp": ("min", 1, None),
    "clip": ("min", 1, None),
    "clamp_min": ("min", 1, None),
    "threshold": ("threshold", 1, None),
    "_threshold": ("threshold", 1, None),
    "maximum": ("other", 1, None),
    "fmax": ("other", 1, None),
    "max": ("other", 1, None),  # of two tensors; the maximum over a dimension has no tensor there
}
_OF_TWO = frozenset(("maximum", "max", "fmax"))
_PLAIN = frozenset(
    f"{name}Backward0"
    for name in (
        *("Relu", "LeakyRelu", "RreluWithNoise", "PreluKernel", "Elu", "Celu"),
        *("Silu", "Gelu", "Mish", "Hardswish", "Softplus"),
    )
)
"""Backward passes of rectifiers that follow no rule."""


@contextmanager
def relu_rule(rule: Rule) -> Iterator[None]:
    """Let rectifiers called inside the block pass gradients by another rule; what they compute is unchanged.

    With g the gradient that arrives and f' the rectifier's own derivative (0 or 1 for a ReLU):

    - ``"deconvnet"``: max(g, 0) goes on, whatever the input was (Zeiler & Fergus 2014, section 2.1);
    - ``"guided"``: max(g, 0) · f' goes on (Springenberg 2015, figure 1).

    It acts on calls of this thread, not on modules: nn.ReLU, F.relu, torch.relu, Tensor.relu_, in-place and reused
    ones, ReLU6 and hardtanh from 0, clamp(min=0), the maximum of x and zeros, threshold at 0. LeakyReLU, PReLU, ELU,
    SELU, CELU, SiLU, GELU, Mish, Hardswish and Softplus follow the same two formulas with their own f'. Gates
    (sigmoid, hardsigmoid, tanh) are left alone. Not seen: ``where(x > 0, x, 0)``, ``x * (x > 0)``, and what is called
    by TorchScript, in another thread or in an autograd.Function of one's own; techniques refuse that or warn of it.

    Raises:
        ModelError: nothing was rectified on a path that asks for gradients, so that the result would be the plain
            gradient under another name.

    Example:
        >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
        >>> with relu_rule("guided"):
        ...     y = torch.relu(x)
        >>> torch.autograd.grad(y, x, torch.tensor([1.0, -1.0, 1.0]))[0]
        tensor([0., 0., 1.])
    """
    if rule not in get_args(Rule):
        raise OptionError(f"relu rule: got {rule!r}, expected one of {', '.join(map(repr, get_args(Rule)))}")
    mode = _RuleMode(rule)
    with mode:
        yield
    if mode.hits == 0:
        raise ModelError(
            f"the {rule} rule met no ReLU or other rectifier on a path with gradients, so that the plain gradient "
            "would come out under another name; use saliency for this model, or start the gradient before a ReLU"
        )


def check_followed(output: Any, rule: Rule) -> None:
    """Look whether rectifiers on the way to an output escaped the rule, because no call of theirs could be seen.

    Raises:
        ModelError: one did, or TorchScript is on the way.

    Warns:
        UserWarning: the network has an autograd.Function of its own, which may be one.
    """
    for node in _nodes(output):
        name = node.name()
        if name in _PLAIN or "DifferentiableGraph" in name or getattr(node, "_saved_min_val", None) == 0:
            raise ModelError(
                f"the {rule} rule cannot follow {name}, which the network calls by TorchScript, in another thread or "
                "by compiled code; call the function in Python instead, or use saliency for this model"
            )
        own = getattr(type(node), "_forward_cls", None)
        if own is not None and not own.__module__.startswith(("torch.autograd.", "torch.utils.", "cnnviz.")):
            warnings.warn(
                f"the network calls {name.removesuffix('Backward')}, an autograd.Function of its own, which passes "
                f"gradients as it always does; if it is a rectifier, the {rule} rule needs one of torch's in its place",
                stacklevel=2,
            )


def _nodes(output: Any) -> set[Node]:
    """Return the operations that an output was made by, as far as gradients go."""
    found: set[Node] = set()
    left = [tensor.grad_fn for tensor in tensors_in(output)]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [before for before, _ in node.next_functions]
    return found


class _RuleMode(TorchFunctionMode):
    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.hits = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        in_place = name.endswith("_") or kwargs.get("inplace") is True or _inplace_by_position(name, args)
        name = name.rstrip("_")
        if not _rectifies(name, args, kwargs):
            return func(*args, **kwargs)
        x, plain = _split(name, args, kwargs)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return func(*args, **kwargs)
        self.hits += 1
        out = kwargs.get("out")
        result: Tensor
        if name == "relu":
            result = guided_relu_(x, self.rule) if in_place and out is None else guided_relu(x, self.rule)
        elif name in ("relu6", "hardtanh"):
            result = _Clipped.apply(x, self.rule, _ceiling(name, args, kwargs), in_place and out is None)
        else:
            result = _Ruled.apply(_spread(name, x, args, kwargs), self.rule, plain)
        if out is not None:
            return out.copy_(result)
        return x.copy_(result) if in_place and result is not x else result


def _inplace_by_position(name: str, args: tuple[Any, ...]) -> bool:
    place = {"relu": 1, "relu6": 1, "silu": 1, "mish": 1, "hardswish": 1, "selu": 1}.get(name)
    place = place or {
        "leaky_relu": 2,
        "elu": 2,
        "celu": 2,
        "hardtanh": 3,
        "threshold": 3,
        "_threshold": 3,
        "rrelu": 4,
    }.get(name)
    return place is not None and len(args) > place and args[place] is True


def _rectifies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in ("relu", "relu6") or name in _SMOOTH:
        return True
    if name not in _AT_ZERO:
        return False
    key, place, default = _AT_ZERO[name]
    bound = args[place] if len(args) > place else kwargs.get(key, default)
    if name in _OF_TWO and not isinstance(bound, Tensor):
        return False
    if name in _OF_TWO and not _is_zero(bound):
        bound = args[0] if args else kwargs.get("input")
    return _is_zero(bound)


def _ceiling(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    if name == "relu6":
        return 6.0
    return float(args[2] if len(args) > 2 else kwargs.get("max_val", 1.0))


def _is_zero(bound: Any) -> bool:
    if isinstance(bound, Tensor):
        return not bound.requires_grad and bound.numel() > 0 and not bool(bound.any())
    return isinstance(bound, Real) and bound == 0  # numpy's numbers too


def _spread(name: str, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the rectifier's input in the shape of its output, to which a bound may broadcast it."""
    if name not in _AT_ZERO:
        return x
    given = tensors_in((args, {key: value for key, value in kwargs.items() if key != "out"}))
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in given))  # type: ignore[no-untyped-call]  # torch's own
    return x if x.shape == shape else x.expand(shape)


def _split(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the rectifier's input, and the rectifier as a function of it alone that changes nothing in place."""
    keywords = {key: value for key, value in kwargs.items() if key not in ("inplace", "input", "out")}
    if name in _OF_TWO:
        first, second = (*args, *(kwargs[key] for key in ("input", "other") if key in kwargs))[:2]
        x, bound = (second, first) if _is_zero(first) else (first, second)
        return x, lambda value: _PURE[name](value, bound)
    x, *rest = args or (kwargs["input"],)
    pure = _PURE[name]
    if _inplace_by_position(name, args):
        rest = [item for item in rest if item is not True]
    return x, lambda value: pure(value, *rest, **keywords)


_PURE: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(functional, name) for name in _SMOOTH | {"relu", "relu6", "hardtanh", "threshold"}},
    "_threshold": functional.threshold,
    "clamp": torch.clamp,
    "clip": torch.clamp,
    "clamp_min": torch.clamp_min,
    "maximum": torch.maximum,
    "max": torch.maximum,
    "fmax": torch.fmax,
}


class _Clipped(torch.autograd.Function):
    """A rectifier that saturates at a ceiling, with a ruled backward; keeps where it is closed.

    What it returns would tell too, but may be written to, and so may what it took.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, ceiling: float, in_place: bool) -> Tensor:
        ctx.rule, ctx.ceiling = rule, ceiling
        if in_place:
            ctx.mark_dirty(x)
        y = functional.hardtanh(x, 0.0, ceiling, inplace=in_place)
        if rule == "guided":
            ctx.save_for_backward((y <= 0).logical_or_(y >= ceiling))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        passed = grads[0].clamp(min=0)
        if ctx.rule == "guided":
            passed.masked_fill_(ctx.saved_tensors[0], 0)
        return passed, None, None, None


class _Ruled(torch.autograd.Function):
    """Any other rectifier with its own forward and a ruled backward; keeps its slope at each element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, plain: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.rule = rule
        if rule == "deconvnet":
            return plain(x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = plain(leaf)
        (slope,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        ctx.save_for_backward(slope)
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        passed = grads[0].clamp(min=0)
        if ctx.rule == "guided":
            passed = passed * ctx.saved_tensors[0]
        return passed, None, None
