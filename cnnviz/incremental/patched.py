"""A batch of images that differ from one image inside a patch each, carried through a network's own forward pass."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

from ..models import known_by
from ..models.receptive_field import function_name
from ..ops import crop_patches, overlay_crop
from ..ops._layout import memory_format
from .geometry import Pair, spans_of

Places: TypeAlias = Tensor
"""(K, 2) int64 on the CPU: first row and column of each patch."""


class Unfollowed(BaseException):  # no error, and no `except Exception` of a network may swallow it
    """The network does something to a patch that has to be done to whole maps from the beginning."""


RULES: dict[str, Callable[..., Any]] = {}
"""How patches go through torch's functions, by their names; `rules` fills it."""


@dataclass(frozen=True)
class Visit:
    """What a layer had to do for some patches.

    Attributes:
        spans: (K, 2, 2), the rows and columns that it computed.
        size: (height, width) of its whole result.
        products: that make one pixel.
        cost: of one pixel, in the time that a product takes.
        kept: bytes of what is made of its weights and kept, at most.
    """

    spans: Tensor
    size: Pair
    products: int
    cost: int
    kept: int


class Base:
    """What a network makes of the one image that all others are compared with: each result is computed once.

    A result is known again by the very tensors that it was computed from, so that it does not matter which calls come
    before it, and which of them patches did not reach.

    Attributes:
        weights: the same of what is made of weights alone, which may serve several images.
        device: what the maps are run on, or, where they are on the meta device, what they stand for; None if the same.
        channels_last: whether the network's own maps would lie so in memory.
        least: changes at the rim of a patch that are below this share of its largest go no further; 0 keeps all.
        frugal: whether nothing as large as weights may be made of them and kept.
        refused: why patches cannot be taken through, once that is known.
        visits: what layers did for the patches of this pass; None where nobody asks.
        watch: is entered where a function sees whole maps.
    """

    def __init__(self, weights: Base | None = None, *, like: Tensor | None = None, frugal: bool = False) -> None:
        """Begin with nothing known.

        Args:
            weights: what was made of weights alone for other images.
            like: the image; its device and its layout in memory are those of maps.
            frugal: see the class.
        """
        self.weights = weights or self
        self.device = None if like is None else like.device
        self.channels_last = like is not None and memory_format(like) == torch.channels_last
        self.frugal = frugal
        self._known: dict[tuple[Any, ...], Any] = {}
        self._alive: list[Any] = []  # ids stay unique as long as their tensors live
        self._first: int | None = None
        self.refused = ""
        self.least = 0.0
        self.visits: list[Visit] | None = None
        self.watch: AbstractContextManager[Any] = nullcontext()

    def begin(self) -> None:
        """Begin another pass."""
        if self._first is None and self._known:
            self._first = len(self._known)

    def result(self, call: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Return what `compute` returned when the same was called before: a function's name and its arguments."""
        key, kind = known_by(call), self.device.type if self.device else "cpu"
        if torch.is_autocast_enabled(kind):  # it may be on for a part of the network
            key = key, torch.get_autocast_dtype(kind)
        if key not in self._known:
            if self._first is not None and len(self._known) > _MORE * self._first + _SOME:
                raise self.refusal("it makes other tensors in each pass, so that nothing can be kept")
            self._known[key] = compute()
            self._alive.append(call)
        return self._known[key]

    def visit(self, spans: Tensor, size: Pair, weights: Tensor, cost: int, kept: int = 0) -> None:
        """Note that a layer with such weights computes these spans of a result of such a size; see `Visit`."""
        if self.visits is not None:
            moved = _MOVED * (weights.shape[0] + weights.shape[1])
            self.visits.append(Visit(spans, size, weights.numel(), cost + moved, kept))

    def refusal(self, why: str) -> Unfollowed:
        """Return what to raise; the reason is kept, should something on the way turn it into another error."""
        self.refused = why
        return Unfollowed(why)


_MOVED = 16  # multiplications in the time that it takes to read or write a number
_MORE, _SOME = 2, 64  # results beyond those of the first pass, in which patches reach less than in others


class Later(Protocol):
    """A result that is still to be computed, so that what follows can be made a part of it."""

    def run(self) -> Tensor:
        """Compute it."""


class Like(NamedTuple):
    """What a base is like that is still to be made: its shape, type and device."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Patched(Tensor):
    """K maps, each of which is the base but for a patch; a tensor (K, C, H, W) to those that hold it.

    Attributes:
        form: the shape of the base.
        places: where the patches begin.
        extent: (height, width) of the patches.
        spans: (K, 2, 2) int64 on the CPU: of rows and columns the first that may differ from the base, and the last but
            one. They lie within the patches, which are all of one size.
        last: whether channels were moved behind space, so that to its holders it is (K, H, W, C).
        source: what the network makes of the base.
        kin: those that hold a part of it or that it is a part of, itself among them; none where there never were any.
        whole: the plain tensor that took its place, once an operation had to see whole maps.
    """

    form: tuple[int, ...]
    places: Places
    extent: Pair
    spans: Tensor
    last: bool
    source: Base
    whole: Tensor | None
    kin: list[weakref.ref[Patched]]
    _under: Tensor | Callable[[], Tensor]
    _patch: Tensor | Later

    @staticmethod
    def __new__(
        cls,
        base: Tensor | Callable[[], Tensor],
        patch: Tensor | Later,
        places: Places,
        source: Base,
        *,
        like: Like | Patched | None = None,
        extent: Pair | None = None,
        spans: Tensor | None = None,
        last: bool = False,
    ) -> Patched:
        """Make one; see the class for its arguments.

        What makes a base and a patch needs what the base is like, and the patch's extent; spans are all of it by
        default.
        """
        known = base if isinstance(base, Tensor) else like
        assert known is not None
        form = known.form if isinstance(known, Patched) else known.shape
        shape = (places.shape[0], *form[2:], form[1]) if last else (places.shape[0], *form[1:])
        made: Patched = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=known.dtype, device=known.device)
        made._under, made._patch, made.places, made.source, made.last = base, patch, places, source, last
        if extent is None:
            assert isinstance(patch, Tensor)
            extent = (patch.shape[-2], patch.shape[-1])
        made.extent, made.spans = extent, spans_of(places, extent) if spans is None else spans
        made.form, made.whole, made.kin = form, None, []
        return made

    @property
    def base(self) -> Tensor:
        """What they share, (1, C, H, W)."""
        if not isinstance(self._under, Tensor):
            self._under = self._under()
        return self._under

    @property
    def patch(self) -> Tensor:
        """What is each map's own, (K, C, h, w)."""
        if not isinstance(self._patch, Tensor):
            self._patch = self._patch.run()
        return self._patch

    @property
    def shared(self) -> bool:
        """Whether there is another that holds a part of it or that it is a part of."""
        return any(one is not None and one is not self for one in (known() for known in self.kin))

    @property
    def unfinished(self) -> Later | None:
        """What is still to be computed, if nobody else holds a part of it."""
        return None if isinstance(self._patch, Tensor) or self.shared else self._patch

    def with_values(self, base: Tensor | Callable[[], Tensor], patch: Tensor | Later, **changed: Any) -> Patched:
        """Return one with other values at the same places."""
        given = {"last": self.last, "extent": self.extent, "spans": self.spans, "like": self, **changed}
        return Patched(base, patch, self.places, self.source, **given)

    def part(self, base: Tensor, patch: Tensor, **changed: Any) -> Patched:
        """Return one that shares memory with this one, so that neither may be written to while both are there."""
        made = self.with_values(base, patch, **changed)
        made.kin = self.kin = self.kin or [weakref.ref(self)]
        self.kin.append(weakref.ref(made))
        return made

    @property
    def full(self) -> bool:
        """Whether the patches are all of the maps."""
        return self.extent == tuple(self.form[-2:])

    def dense(self) -> Tensor:
        """Return the plain tensor that it stands for."""
        if self.whole is not None:
            return self.whole
        made = self.patch
        if not self.full:
            size = (self.form[-2], self.form[-1])
            made = laid_over(self.base, made, self.places, torch.zeros_like(self.places), size)
        if self.last:
            return made.movedim(1, -1)
        return made if self.source.channels_last else made.contiguous()

    def become(self, other: Any) -> Patched:
        """Take the value of what an in-place operation returned.

        Raises:
            Unfollowed: others hold a part of it, which would have to change as well; or it gets another shape or type.
        """
        if self.shared:
            raise self.source.refusal("a view of a patched map is written to")
        with torch._C.DisableTorchFunctionSubclass():
            if not isinstance(other, Tensor) or other.shape != self.shape or other.dtype != self.dtype:
                raise self.source.refusal("a patched map is given another shape or type in place")
        if isinstance(other, Patched):
            self._under, self._patch, self.places, self.last = other._under, other._patch, other.places, other.last
            self.form, self.extent = other.form, other.extent
            self.spans, self.whole = other.spans, other.whole
        else:
            self.whole = other
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # named as torch calls them
        """Refuse what slipped by `__torch_function__`."""
        for value in patched_in((args, kwargs)):
            raise value.source.refusal(f"{func} is called below Python")
        raise Unfollowed(f"{func} is called below Python")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Follow the patch where there is a rule, and go on with whole maps where there is none."""
        kwargs = kwargs or {}
        name = function_name(func)
        with torch._C.DisableTorchFunctionSubclass():
            if name in _ASKED:
                return func(*args, **kwargs)
            if name == "is_contiguous":
                return True
            parts: list[Patched] = []
            _collect(args, parts)
            _collect(kwargs.values(), parts)
            in_place = _writes(name, args, kwargs)
            if "out" in kwargs or name in ("__set__", "set_") or (in_place and not args):
                raise parts[0].source.refusal(f"{name} writes to a tensor in a way that patches do not follow")
            if any(not issubclass(kind, (Patched, torch.nn.Parameter)) for kind in types if kind is not Tensor):
                raise parts[0].source.refusal("another kind of tensor takes part, which has rules of its own")
            made: Any = NotImplemented
            if (not in_place or isinstance(args[0], Patched)) and all(part.whole is None for part in parts):
                made = _by_rule(func, name, args, kwargs, in_place=in_place)
            if made is NotImplemented:
                return _whole(func, args, kwargs, in_place=in_place)
            return args[0].become(made) if in_place else made


_ASKED = frozenset(
    """__get__ size dim ndimension numel is_floating_point is_complex __len__ element_size get_device type
    __hash__ __repr__ __format__ stride""".split()  # noqa: SIM905  # a list of words reads better than one of strings
)
INPLACE_ARGUMENT = {
    "relu": 1, "relu6": 1, "hardswish": 1, "silu": 1, "hardsigmoid": 1, "mish": 1, "selu": 1, "celu": 2, "elu": 2,
    "leaky_relu": 2, "dropout": 3, "feature_dropout": 3, "hardtanh": 3, "threshold": 3,
}  # fmt: skip


def _writes(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if name.endswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__iter__"))
    if name.endswith("_") or kwargs.get("inplace"):
        return True
    place = INPLACE_ARGUMENT.get(name)
    return place is not None and len(args) > place and args[place] is True


_ELSEWHERE_OTHERWISE = ("batch_norm", "layer_norm", "dropout", "pad", "interpolate")


def _by_rule(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, in_place: bool) -> Any:
    """Return what the function's rule makes, NotImplemented where it has none or is called in a way that none knows."""
    rule = _rule(func, name, in_place)
    if rule is None:
        return NotImplemented
    try:
        return rule(func, *args, **kwargs)
    except (TypeError, ValueError, IndexError, AttributeError):
        return NotImplemented  # a spelling that the rule does not have; if it is wrong, torch will say so


@functools.lru_cache(maxsize=1024)
def _rule(func: Any, name: str, in_place: bool) -> Callable[..., Any] | None:
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):  # of any library, by any name
        return None
    full = resolve_name(func) or ""
    # torch has functions of these names too, with other arguments.
    if not full.startswith("torch.") or (name in _ELSEWHERE_OTHERWISE and "functional" not in full):
        return None
    return RULES.get(name.rstrip("_") if in_place and not name.endswith("__") else name)


def _whole(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, in_place: bool) -> Any:
    """Run a function on whole maps."""
    plain_args, plain_kwargs = densified((args, kwargs))
    if in_place and isinstance(args[0], Patched) and args[0].whole is None:
        plain_args = (plain_args[0].clone(), *plain_args[1:])  # the patch is the whole of it, and others may have it
    with patched_in((args, kwargs))[0].source.watch:
        made = func(*plain_args, **plain_kwargs)
    if in_place and isinstance(args[0], Patched):
        written = args[0].become(plain_args[0])
        return written if made is plain_args[0] else made
    taken = zip(patched_in((args, kwargs)), _tensors((args, kwargs), (plain_args, plain_kwargs)), strict=True)
    again = False
    for mine, plain in taken:
        if any(_same_memory(plain, result) for result in tree_leaves(made) if isinstance(result, Tensor)):
            if mine.shared:
                raise mine.source.refusal("a view is taken of a view of a patched map")
            own = _same_memory(plain, mine.patch)  # kernels that wait may still look there
            again = again or own
            mine.whole = plain.clone() if own else plain  # a view of it may be written to
    return _whole(func, args, kwargs, in_place=in_place) if again else made


def _tensors(patched: Any, plain: Any) -> list[Tensor]:
    """Return the plain tensors in place of patched ones."""
    pairs = zip(tree_leaves(patched), tree_leaves(plain), strict=True)
    return [value for leaf, value in pairs if isinstance(leaf, Patched)]


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)  # on the meta device nothing has an address


def densified(value: Any) -> Any:
    """Return nested tuples, lists and dictionaries with plain tensors in place of patched ones."""
    return tree_map_only(Patched, lambda patched: patched.dense(), value)


def patched_in(value: Any) -> list[Patched]:
    """Return the patched tensors in nested tuples, lists and dictionaries."""
    found: list[Patched] = []
    _collect((value,), found)
    return found


def _collect(values: Iterable[Any], found: list[Patched]) -> None:
    for value in values:
        if isinstance(value, Patched):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)


def laid_over(
    base: Tensor, patch: Tensor, places: Places, corners: Places, size: tuple[int, int], pad: float = 0.0
) -> Tensor:
    """Return crops of the base with the patches laid over, (K, C, *size); of maps with more dimensions likewise."""
    if base.dim() == 4:
        return overlay_crop(base, patch, places, corners, size, pad=pad)
    flat = overlay_crop(base.flatten(1, -3), patch.flatten(1, -3), places, corners, size, pad=pad)
    return flat.reshape(len(patch), *base.shape[1:-2], *size)


def cropped(base: Tensor, corners: Places, size: tuple[int, int], pad: float = 0.0) -> Tensor:
    """Return crops of the base, (K, C, *size)."""
    return crop_patches(base, torch.zeros(len(corners), dtype=torch.long, device="cpu"), corners, size, pad=pad)
