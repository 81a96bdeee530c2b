"""One look at a forward pass: which layers are called in what order, their shapes, and the memory they need."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import CnnvizError, InputError, LayerError
from .model import Model
from .randomness import undone_if
from .receptive_field import FieldTracker, ReceptiveField, tensors_in
from .replica import replicate


@dataclass(frozen=True)
class Layer:
    """One addressable call of a module.

    Attributes:
        name: dotted module name, with ``#k`` for the k-th call of a module that is called more than once.
        type: class name of the module.
        shape: output shape for one image, without the batch dimension; None where the output is no tensor.
        receptive_field: input pixels that a unit sees; None where it sees the whole image, the output is no map, or
            fields were not asked for.
        parameters: number of weights in the module.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    receptive_field: ReceptiveField | None
    parameters: int


@dataclass(frozen=True)
class Survey:
    """What one image's forward pass does. Bytes are for one image, but for those of the weights.

    Attributes:
        layers: every module call, in order of completion.
        cam_layer: name of the last spatial output before the head that is no pooling, or None; the map of class scores
            where there is no other.
        output: shape of the model's output without the batch dimension, None where it is no tensor.
        largest: bytes of the largest tensor made.
        working: most bytes that one operation reads and writes.
        kept: bytes of all tensors made, which is what a backward pass keeps at most.
        weights: bytes of all parameters and buffers.
        draws: whether random numbers are drawn in eval mode.
        fixed: whether shapes alone decide what is called; otherwise values do, so that another input of the same shape
            may be treated differently.
        aliases: further names of modules that have several, and the one that layers go by.
        found: what was found out about the model since, by name: of what, and what.
    """

    layers: tuple[Layer, ...]
    cam_layer: str | None
    output: tuple[int, ...] | None
    largest: int
    working: int
    kept: int
    weights: int
    draws: bool
    fixed: bool
    aliases: dict[str, str] = field(default_factory=dict)
    found: dict[Hashable, tuple[Hashable, Any]] = field(default_factory=dict)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each module is called."""
        return dict(Counter(layer.name.partition("#")[0] for layer in self.layers))

    def resolve(self, layer: str) -> str:
        """Return the layer's full name: ``relu`` becomes ``relu#2`` where it is the last of three calls.

        Raises:
            LayerError: the module is never called, or not as often as the name says.
        """
        if not self.fixed:  # another input may be treated differently; capturing it will tell
            return layer
        module, _, call = layer.partition("#")
        module = self.aliases.get(module, module)
        times = self.counts.get(module, 0)
        if times == 0:
            raise LayerError(
                f"layer '{module}' is never called in the forward pass; name a layer that is (cnnviz layers lists them)"
            )
        number = int(call) if call else times - 1
        if number >= times:
            raise LayerError(f"layer '{layer}': '{module}' is called {times} times, so its last call is #{times - 1}")
        return f"{module}#{number}" if times > 1 else module


def survey(model: nn.Module, example: Tensor, *, fields: bool = False) -> Survey:
    """Run `model` once on one image without data (or with, where its control flow needs values) and describe the pass.

    Args:
        model: the network; it is not touched.
        example: input of shape (N, …); only the first row is used.
        fields: compose receptive fields too, which takes longer.
    """
    with torch.inference_mode(False):  # what is made there does not tell of operations in place
        row = example[:1].detach().clone()  # the network may begin with one
        twin = replicate(model, device="meta")
        try:
            return _observe(twin, (row.to("meta"),), {}, fields=fields)
        except Exception:  # noqa: BLE001, S110  # values are needed, or a real device, whatever the network says of it
            pass
        return _observe(replicate(model), (row,), {}, fields=fields)


def count_calls(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    """Return how often each module would be called with these arguments; {} where that takes real data.

    Also {} for a model in training mode, which may call other modules than the replica in eval mode would.
    """
    if any(module.training for module in model.modules()):
        return {}

    def shape_only(value: Any) -> Any:
        return value.detach().to("meta") if isinstance(value, Tensor) else value

    bare_args, bare_kwargs = torch.utils._pytree.tree_map(shape_only, (args, kwargs))
    try:
        twin = replicate(model, device="meta")
        return _observe(twin, bare_args, bare_kwargs, fields=False).counts
    except Exception:  # noqa: BLE001  # as above
        return {}


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Adds up what operations read and write, and notices random numbers."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = weights  # do not grow with the batch
        self.largest = self.working = self.kept = 0
        self.draws = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        made = [size for key, size in _storages(result).items() if key not in given]
        read = sum(size for key, size in given.items() if key not in self.weights)
        self.kept += sum(made)
        self.largest = max(self.largest, *made, 0)
        self.working = max(self.working, read + sum(made))
        self.draws |= torch.Tag.nondeterministic_seeded in func.tags
        return result


def _storages(value: Any) -> dict[int, int]:
    """Return the bytes of each tensor in `value` by the identity of its memory, so that a view counts as its base."""
    return {t.untyped_storage()._cdata: t.numel() * t.element_size() for t in tensors_in(value)}


@dataclass
class _Call:
    name: str
    index: int
    module: nn.Module
    output: Any
    passes_on: bool  # the output is what came in, as it came in


def _observe(twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, fields: bool) -> Survey:
    calls: list[_Call] = []
    counts: Counter[str] = Counter()
    versions: list[dict[int, int]] = []  # of the inputs of the calls that are running

    def before(_: nn.Module, given: tuple[Any, ...]) -> None:
        versions.append({id(item): item._version for item in given if isinstance(item, Tensor)})

    def after(name: str, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        came = versions.pop().get(id(output))
        calls.append(_Call(name, counts[name], module, output, came is not None and came == output._version))
        counts[name] += 1

    names = {module: name for name, module in twin.named_modules() if name and not _computes_weights(name)}
    for module, name in names.items():
        module.register_forward_pre_hook(before)
        module.register_forward_hook(partial(after, name))
    weights = _storages([*twin.parameters(), *twin.buffers()])
    memory = _Bytes(set(weights))
    given = tensors_in((args, kwargs))
    tracker = FieldTracker(given) if fields else None
    gpu = next((tensor.device for tensor in given if tensor.is_cuda), None)
    undone = undone_if(lambda: memory.draws, gpu)
    with undone, torch.inference_mode(False), torch.no_grad(), memory, tracker or nullcontext():
        output = twin(*args, **kwargs)
    layers = tuple(
        Layer(
            name=f"{call.name}#{call.index}" if counts[call.name] > 1 else call.name,
            type=type(call.module).__name__,
            shape=tuple(call.output.shape[1:]) if isinstance(call.output, Tensor) else None,
            receptive_field=tracker.field(call.output) if tracker and isinstance(call.output, Tensor) else None,
            parameters=sum(p.numel() for p in call.module.parameters()),
        )
        for call in calls
    )
    classes = output.shape[1] if isinstance(output, Tensor) and output.dim() == 2 else None
    place = _cam_layer(calls, classes, given[0].shape[2:] if given and given[0].dim() == 4 else ())
    return Survey(
        layers=layers,
        cam_layer=None if place is None else layers[place].name,
        output=tuple(output.shape[1:]) if isinstance(output, Tensor) else None,
        largest=memory.largest,
        working=memory.working,
        kept=memory.kept,
        weights=sum(weights.values()),
        draws=memory.draws,
        fixed=all(tensor.is_meta for tensor in given),
        aliases={
            other: names[module]
            for other, module in twin.named_modules(remove_duplicate=False)
            if names.get(module, other) != other
        },
    )


def _computes_weights(name: str) -> bool:
    """Whether a module is within a parametrization, which torch calls by the way, whenever a weight is looked at."""
    return "parametrizations" in name.split(".")


_UNEVEN = 2.5  # pixels by which rounding in strided layers may change a map's proportions


def _cam_layer(calls: Sequence[_Call], classes: int | None, size: Sequence[int]) -> int | None:
    """Return the place of the last spatial output before the head that is no pooling.

    The head may end in a map of class scores (SqueezeNet's 1×1 convolution), which is skipped where there is another
    map; a container counts as what its last layer is, and gives that layer its name where both return the same tensor.
    A map has about the image's proportions; what has not is (N, h, w, C), as in Swin transformers.
    """
    scores: int | None = None
    pooled = {id(call.output) for call in calls if re.search(r"Pool(ing)?(\dd)?$", type(call.module).__name__)}
    last_weights = max((i for i, call in enumerate(calls) if call.module._parameters), default=-1)
    for place in reversed(range(len(calls))):
        call = calls[place]
        shape = call.output.shape if isinstance(call.output, Tensor) else ()
        if len(shape) != 4 or shape[2] * shape[3] <= 1:
            continue
        if len(size) == 2 and abs(shape[2] / size[0] * size[1] - shape[3]) > _UNEVEN:
            continue
        if call.passes_on or id(call.output) in pooled:
            continue
        if shape[1] != classes or place < last_weights:
            return place
        scores = place if scores is None else scores
    return scores


def layers(model: nn.Module | Model, inputs: Tensor | None = None) -> list[Layer]:
    """Return every addressable layer of a network, in order of completion.

    Args:
        model: any nn.Module or a `Model`; it is not touched.
        inputs: an example (N, C, H, W); by default one blank image of the model's input size, or 224 × 224.

    Raises:
        InputError: the model cannot run on the example.

    Example:
        >>> [layer.name for layer in layers(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()))]
        ['0', '1']
    """
    known = model if isinstance(model, Model) else Model(model)
    example = known.example() if inputs is None else inputs
    with telling(known.name, example, "; give inputs=, an example that it takes" if inputs is None else ""):
        return list(survey(known.module, example, fields=True).layers)


@contextmanager
def telling(name: str, inputs: Tensor, hint: str = "") -> Iterator[None]:
    """Turn whatever a stranger's forward raises into an InputError that names the model and the inputs' shape."""
    try:
        yield
    except CnnvizError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot run on inputs of shape {tuple(inputs.shape)}: {error}{hint}") from error
