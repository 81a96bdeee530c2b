"""See what a layer took in or gave out, without changing what the network computes."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import LayerError, nearest
from .receptive_field import tensors_in
from .recorded import parted
from .replica import unwrap
from .state import version_of
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
    return _found(model, LayerName.parse(layer).module)[0]


def without_wrappers(model: nn.Module, layer: str) -> str:
    """Return the name by which a replica knows `layer`: ``0.conv`` for ``0.module.conv``, where 0 is a wrapper.

    Raises:
        LayerError: there is none; says which names are nearest.
    """
    name = LayerName.parse(layer)
    module = ".".join(_found(model, name.module)[1])
    return module if name.call is None else f"{module}#{name.call}"


def _found(model: nn.Module, name: str) -> tuple[nn.Module, list[str]]:
    """Return the module of that name, and the parts of the name that are no wrapper's."""
    found: nn.Module | None = model
    parts: list[str] = []
    for part in name.split("."):
        if found is None:
            break
        inner = unwrap(found)
        if part not in found._modules or inner is found:  # wrappers on the way need not be named: a replica has none
            parts.append(part)
            found = inner._modules.get(part)
        else:
            found = found._modules[part]
    if found is None:
        kind = type(model).__name__
        known = nearest(name, (known for known, _ in addressable(model)))
        raise LayerError(f"no layer '{name}' in {kind}{known} (cnnviz layers lists them)")
    return found, parts


def addressable(model: nn.Module, before: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Return all modules by their names, of which a shared one has several, without wrappers."""
    for name, child in unwrap(model)._modules.items():
        if child is not None:
            yield before + name, unwrap(child)
            yield from addressable(child, f"{before}{name}.")


class Captured:
    """What `capture` saw: filled while the model runs inside the `with` block."""

    def __init__(self, layers: Sequence[str], side: str, model: nn.Module) -> None:
        self._layers = tuple(layers)
        self._side = side
        self._model = weakref.ref(model)
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
        model = self._model()
        if model is not None and any(map(_is_compiled, model.modules())):
            return (
                f"layer '{name.module}' was never called; a compiled network that ran before calls no modules: run the "
                "module that was given to torch.compile"
            )
        return (
            f"layer '{name.module}' was never called; name one that the forward pass calls (cnnviz layers lists them), "
            "before the layer of a channel or neuron target"
        )


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


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

    What is recorded is what the layer returned: what goes on shares no memory with it, so that no later in-place
    operation reaches it, and the model computes what it would without. Of several passes the last is seen. Only calls
    from the thread that opened the block are seen. The model is left as it was, also after an exception.

    Args:
        model: the network, or a wrapped one.
        layers: a dotted module name or several; ``name#k`` is the k-th call of a reused module, `name` its last.
        side: "output", or "input" for the layer's first argument.
        grad: let gradients be taken with respect to what was captured. The graph starts there unless something before
            it asks for gradients already; works for frozen models, in no-grad and inference-mode callers, and for what
            a model runs without gradients. Of a layer that works in place, gradients come from every later use of
            the tensor that it wrote to.
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
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise LayerError("no layer to capture was given; name one (cnnviz layers lists them)")
    modules = {LayerName.parse(name).module: find_module(model, name) for name in names}
    watch = _Watch(Captured(names, side, model), grad, stop)
    root = unwrap(model)
    with ExitStack() as stack:
        if grad:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
        stack.callback(_restore, [(outer, outer.depth) for outer in _blocks.open])
        _blocks.open.append(watch)
        stack.callback(_blocks.open.remove, watch)
        handles = [
            root.register_forward_pre_hook(watch.root, with_kwargs=True),
            root.register_forward_hook(watch.end, always_call=True),
        ]
        stack.callback(_remove, handles)
        for name, module in modules.items():
            before, after = watch.of_input(name) if side == "input" else watch.of_output(name)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        try:
            yield watch.captured
        except _AllSeenError as error:
            if error.watch is not watch:  # it ends an outer block
                raise
            return
        _ = watch.captured.values  # never called is an error


class _Blocks(threading.local):
    """The `capture` blocks that a thread is in."""

    def __init__(self) -> None:
        self.open: list[_Watch] = []


_blocks = _Blocks()


def _restore(depths: Sequence[tuple[_Watch, int]]) -> None:
    """Forget the forward passes that began in a block: it has ended, and they with it."""
    for watch, depth in depths:
        watch.depth = depth


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
        self.depth = 0  # of forward passes within each other

    def root(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Begin anew for each forward pass, and make inference tensors usable where gradients are asked for."""
        if threading.get_ident() != self.thread:
            return None
        self.depth += 1
        if self.depth > 1:  # the network calls itself
            return None
        self.captured._calls.clear()
        self.captured._values.clear()
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

    def end(self, *_: Any) -> None:
        """Note that a forward pass is over."""
        if threading.get_ident() == self.thread:
            self.depth = max(0, self.depth - 1)

    def of_input(self, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return the hooks that record what a layer takes, and write back what it writes to the clone that it gets."""
        clones: list[tuple[Tensor, Tensor, int]] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if threading.get_ident() != self.thread or not (args or kwargs):
                return None
            key = None if args else next(iter(kwargs))
            value = args[0] if key is None else kwargs[key]
            passed = self._record(name, value)
            pairs = zip(tensors_in(value), tensors_in(passed), strict=True)
            clones[:] = [(given, got, version_of(got)) for given, got in pairs if got is not given]
            return ((passed, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: passed})

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            if threading.get_ident() != self.thread:
                return None
            for given, got, version in clones:
                if version_of(got) != version:
                    given.copy_(got)
                    output = given if output is got else output
            clones.clear()
            return output

        return before, after

    def of_output(self, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return the hooks that record what a layer returns, and notice which of its tensors it wrote to."""
        versions: dict[int, int] = {}

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == self.thread:
                versions.clear()
                versions.update((id(tensor), version_of(tensor)) for tensor in tensors_in((args, kwargs)))

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            if threading.get_ident() != self.thread:
                return None
            found = [tensor for tensor in tensors_in(output) if id(tensor) in versions]
            written = {id(tensor) for tensor in found if versions[id(tensor)] != version_of(tensor)}
            return self._record(name, output, written)

        return before, after

    def _record(self, module: str, value: Any, written: Collection[int] = ()) -> Any:
        """Keep a value, and return what goes on; `written` are ids of the tensors that the layer itself wrote to."""
        call = self.captured._calls[module]
        self.captured._calls[module] += 1
        wanted = [text for text, name in self.names.items() if name.module == module and name.call in (None, call)]
        if not wanted:
            return value
        if self.waiting is not None:
            self.waiting = {text: last for text, last in self.waiting.items() if text not in wanted or last != call}
        last = self.waiting == {}
        with ExitStack() as stack:
            if self.grad:  # whatever the network does around the layer
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
            kept, passed = parted(value, written, grad=self.grad, last=last)
        for text in wanted:
            self.captured._values[text] = kept
        if last:
            raise _AllSeenError(self)
        return passed


def _usable(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
