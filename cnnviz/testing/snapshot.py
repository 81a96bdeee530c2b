"""Everything that a plugin might change, and must not: a model, and what is set for the whole process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy
import torch
from torch import Tensor, nn

from ..models.state import version_of

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_TABLES: Final = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, eq=False)
class _Seen:
    """A tensor as it was."""

    tensor: Tensor
    told: tuple[Any, ...]
    values: Tensor
    gradient: Tensor | None


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return by name all that is set of a model and of the process."""
    state = dict(_settings())
    for name, module in model.named_modules():
        state[f"{name}.__class__"] = type(module)
        for key, value in vars(module).items():
            state.update(_items(name if key in _TABLES else f"{name}.{key}", value))
    return state


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs, and of what came or went."""
    gone = object()
    return [key for key in {**before, **after} if not _equal(before.get(key, gone), after.get(key, gone))]


def _settings() -> Iterator[tuple[str, Any]]:
    numbers: Any = numpy.random.get_state()  # noqa: NPY002  # the global one is what a plugin must leave alone
    yield "global random state of torch", torch.get_rng_state().numpy().tobytes()
    yield "global random state of Python", str(random.getstate())
    yield "global random state of NumPy", str((numbers[0], numbers[1].tolist(), *numbers[2:]))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own
        for device, state in enumerate(torch.cuda.get_rng_state_all()):
            yield f"global random state of GPU {device}", state.numpy().tobytes()
    yield "grad mode", torch.is_grad_enabled()
    yield "inference mode", torch.is_inference_mode_enabled()
    yield "anomaly detection", torch.is_anomaly_enabled()
    yield "number of threads", torch.get_num_threads()
    yield "default dtype", torch.get_default_dtype()
    yield "default device", torch.get_default_device()
    yield "deterministic algorithms", torch.are_deterministic_algorithms_enabled()
    yield "precision of matrix products", torch.get_float32_matmul_precision()
    for backend, key in _BACKENDS:
        yield f"torch.backends.{backend}.{key}", getattr(getattr(torch.backends, backend), key)
    for key, table in vars(nn.modules.module).items():
        if key.startswith("_global_") and isinstance(table, dict):
            yield from _items(f"torch's {key}", table)


_BACKENDS: Final = (
    ("cudnn", "enabled"),
    ("cudnn", "benchmark"),
    ("cudnn", "deterministic"),
    ("cudnn", "allow_tf32"),
    ("mkldnn", "enabled"),
)


def _items(path: str, value: Any, within: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Yield what a value is made of, by name: containers are gone through, everything else is itself."""
    match value:
        case _ if id(value) in within:
            pass
        case Tensor():
            yield path, _seen(value)
        case dict() | list() | tuple():
            yield f"{path}.__class__", type(value)
            for key, item in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
                yield from _items(f"{path}.{key}".lstrip("."), item, within | {id(value)})
        case set():
            yield path, frozenset(map(id, value))
        case _:
            yield path, value


def _seen(tensor: Tensor) -> _Seen:
    gradient = tensor.grad if tensor.is_leaf else None
    return _Seen(
        tensor,
        (tensor.data_ptr(), tensor.requires_grad, version_of(tensor)),
        tensor.detach().clone(),
        None if gradient is None else gradient.clone(),
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, _Seen) and isinstance(b, _Seen):
        kept = (a.gradient is None) == (b.gradient is None)
        same = kept and (a.gradient is None or b.gradient is None or _same_values(a.gradient, b.gradient))
        return a.tensor is b.tensor and a.told == b.told and same and _same_values(a.values, b.values)
    return a is b or (type(a) is type(b) and isinstance(a, (*_PLAIN, frozenset)) and bool(a == b))


def _same_values(a: Tensor, b: Tensor) -> bool:
    alike = a.shape == b.shape and a.dtype == b.dtype
    return alike and bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())
