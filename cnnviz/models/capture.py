"""See what a layer took in or gave out, without changing what the network computes."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import LayerError, nearest
from .replica import unwrap
from .survey import count_calls


class LayerName(NamedTuple):
    """A layer as a caller writes it: a module's dotted name, and which of its calls (None: the last)."""

    module: str
    call: int | None

    @classmethod
    def parse(cls, text: str) -> LayerName:
        """Split ``"block.relu#1"`` into module and call."""
        module, mark, call = text.partition("#")
        if mark and not call.isdecimal():
            raise LayerError(f"layer '{text}': expected NAME or NAME#K with K = 0, 1, …, the call of a reused module")
        return cls(module, int(call) if mark else None)


def find_module(model: nn.Module, layer: str) -> nn.Module:
    """Return the module that `layer` names.

    Raises:
        LayerError: there is none; says which names are nearest.
    """
    name = LayerName.parse(layer).module
    found: nn.Module | None = model
    for part in name.split("."):
        if found is not None:  # wrappers on the way need not be named: a replica has none
            found = found._modules[part] if part in found._modules else unwrap(found)._modules.get(part)
    if found is None:
        kind = type(model).__name__
        known = nearest(name, (known for known, _ in addressable(model)))
        raise LayerError(f"no layer '{name}' in {kind}{known} (cnnviz layers lists them)")
    return found


def addressable(model: nn.Module, before: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Return all modules by their names, of which a shared one has several, without wrappers."""
    for name, child in unwrap(model)._modules.items():
        if child is not None:
            yield before + name, unwrap(child)
            yield from addressable(child, f"{before}{name}.")


class Captured:
    """What `capture` saw: filled while the model runs inside the `with` block."""

    def __init__(self, layers: Sequence[str], side: str) -> None:
        self._layers = tuple(layers)
        self._side = side
        self._values: dict[str, Any] = {}
        self._calls: Counter[str] = Counter()

    @property
    def values(self) -> dict[str, Any]:
        """Everything captured, by the layer names that were asked for.

        Raises:
            LayerError: a layer was not called, or not often enough.
        """
        for layer in self._layers:
            if layer not in self._values:
                raise LayerError(self._missing(LayerName.parse(layer)))
        return {layer: self._values[layer] for layer in self._layers}

    @property
    def output(self) -> Any:
        """What the (only) layer returned: a tensor, or what the module returns."""
        return self._only("output")

    @property
    def input(self) -> Any:
        """The first argument of the (only) layer."""
        return self._only("input")

    def _only(self, side: str) -> Any:
        if side != self._side:
            raise LayerError(f"the {side} was not captured; give side={side!r} to capture")
        if len(self._layers) != 1:
            raise LayerError(f"{len(self._layers)} layers were captured; take them from .values by name")
        return next(iter(self.values.values()))

    def _missing(self, name: LayerName) -> str:
        calls = self._calls[name.module]
        if calls:
            return f"layer '{name.module}' was called {calls} times, so that call #{name.call} does not exist"
        return (
            f"layer '{name.module}' was never called; name one that the forward pass calls (cnnviz layers lists them), "
            "before the layer of a channel or neuron target"
        )


_calls: weakref.WeakKeyDictionary[nn.Module, Mapping[str, int]] = weakref.WeakKeyDictionary()


def know_calls(model: nn.Module, counts: Mapping[str, int]) -> None:
    """Tell `capture` how often each module of a model is called, so that ``stop=True`` need not find out each time."""
    _calls[model] = counts


class _AllSeenError(BaseException):
    """Ends a forward pass from within; no `except Exception` of a model may swallow it."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch


@contextmanager
def capture(
    model: nn.Module,
    layers: str | Sequence[str],
    *,
    side: Literal["output", "input"] = "output",
    grad: bool = False,
    stop: bool = False,
) -> Iterator[Captured]:
    """Record what layers return (or receive) while the model runs inside the `with` block.

    What is recorded is what the layer returned: a clone goes on, so that a later in-place operation does not reach it.
    Only calls from the thread that opened the block are seen. The model is left as it was, also after an exception.

    Args:
        model: the network, or a wrapped one.
        layers: a dotted module name or several; ``name#k`` is the k-th call of a reused module, `name` its last.
        side: "output", or "input" for the layer's first argument.
        grad: let gradients be taken with respect to what was captured. The graph starts there unless something before
            it asks for gradients already; works for frozen models and in no-grad and inference-mode callers.
        stop: leave the `with` block as soon as everything was seen, without running the rest of the model.

    Yields:
        A `Captured`: `.output` or `.input` for one layer, `.values` by name for several.

    Raises:
        LayerError: no such layer, or it was never called.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
        >>> with capture(net, "0") as seen:
        ...     _ = net(torch.zeros(1, 3, 8, 8))
        >>> seen.output.shape
        torch.Size([1, 8, 6, 6])
    """
    model = unwrap(model)
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise LayerError("no layer to capture was given; name one (cnnviz layers lists them)")
    modules = {LayerName.parse(name).module: find_module(model, name) for name in names}
    watch = _Watch(Captured(names, side), grad, stop)
    with ExitStack() as stack:
        if grad:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
        handles = [model.register_forward_pre_hook(watch.root, with_kwargs=True)]
        stack.callback(_remove, handles)
        for name, module in modules.items():
            if side == "input":
                handles.append(module.register_forward_pre_hook(watch.before(name), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(watch.after(name)))
        try:
            yield watch.captured
        except _AllSeenError as error:
            if error.watch is not watch:  # it ends an outer block
                raise
            return
        _ = watch.captured.values  # never called is an error


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class _Watch:
    """The hooks of one `capture` block."""

    def __init__(self, captured: Captured, grad: bool, stop: bool) -> None:
        self.captured = captured
        self.grad = grad
        self.stop = stop
        self.thread = threading.get_ident()
        self.names = {name: LayerName.parse(name) for name in captured._layers}
        self.waiting: dict[str, int] | None = None

    def root(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Count calls anew for each forward pass, and make inference tensors usable where gradients are asked for."""
        if threading.get_ident() != self.thread:
            return None
        self.captured._calls.clear()
        if self.stop:
            counts: Mapping[str, int] = {}
            if any(name.call is None for name in self.names.values()):
                counts = _calls[module] if module in _calls else count_calls(module, args, kwargs)
            # A layer named without its call is seen only at the last one; where that is not known, all must run.
            known = all(name.call is not None or name.module in counts for name in self.names.values())
            self.waiting = (
                {
                    text: name.call if name.call is not None else counts[name.module] - 1
                    for text, name in self.names.items()
                }
                if known
                else None
            )
        return torch.utils._pytree.tree_map(_usable, (args, kwargs)) if self.grad else None

    def before(self, name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if threading.get_ident() != self.thread or not (args or kwargs):
                return None
            if args:
                return self._record(name, args[0], lambda passed: ((passed, *args[1:]), kwargs))
            first = next(iter(kwargs))
            return self._record(name, kwargs[first], lambda passed: (args, {**kwargs, first: passed}))

        return hook

    def after(self, name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if threading.get_ident() != self.thread:
                return None
            return self._record(name, output, lambda passed: passed)

        return hook

    def _record(self, module: str, value: Any, give_back: Callable[[Any], Any]) -> Any:
        call = self.captured._calls[module]
        self.captured._calls[module] += 1
        wanted = [text for text, name in self.names.items() if name.module == module and name.call in (None, call)]
        if not wanted:
            return None
        if self.grad:
            value = torch.utils._pytree.tree_map(_leaf, value)
        for text in wanted:
            self.captured._values[text] = value
        if self.waiting is not None:
            self.waiting = {text: last for text, last in self.waiting.items() if text not in wanted or last != call}
            if not self.waiting:
                raise _AllSeenError(self)
        return give_back(torch.utils._pytree.tree_map(_clone, value))


def _usable(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
        return value.detach().requires_grad_()
    return value


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
