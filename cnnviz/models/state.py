"""What a model's weights are: a stamp that changes when they do, a fast fingerprint, and a SHA-256 digest."""

from __future__ import annotations

import hashlib
import logging
import types
from collections.abc import Hashable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..ops._native import host
from .replica import unwrap


def stamp(module: nn.Module) -> Hashable:
    """Return a value that differs once a module was swapped or an attribute set, or a weight or buffer was written to.

    Attributes are numbers, text, tensors, generators of random numbers, containers, and objects with attributes of
    their own; whether a module is in training mode does not count. What is written through ``.data`` leaves no trace,
    nor do statistics that `torch.nn.functional.batch_norm` writes by itself.
    """
    # Every call of an explainer pays for this twice, for small networks a tenth of its time.
    native = host()
    made: Hashable = _stamp(module) if native is None else native.stamp(module, _held, _TORCHS)
    return made


def _stamp(module: nn.Module) -> Hashable:
    """Do the same in Python."""
    seen: list[Hashable] = []
    for part in distinct(module):
        own = part.__dict__
        seen += (id(part), id(type(part)))
        for name, child in own["_modules"].items():
            seen += (name, id(child))
        for table in (own["_parameters"], own["_buffers"]):
            for tensor in table.values():
                if tensor is not None:
                    seen += _written(tensor)
        for key, value in own.items():
            if key in _TORCHS:
                continue
            kind = type(value)
            plain = kind in _PLAIN or (kind is tuple and _PLAIN.issuperset(map(type, value)))
            seen.append(value if plain else _held(value))
    return tuple(seen)


def distinct(module: nn.Module) -> list[nn.Module]:
    """Return a module and all within, each once; takes half the time of `nn.Module.modules`."""
    parts = [module]
    met = {id(module)}
    for part in parts:
        for child in part._modules.values():
            if child is not None and id(child) not in met:
                met.add(id(child))
                parts.append(child)
    return parts


_TORCHS: Final = frozenset((*nn.Module().__dict__, "_compiled_call_impl"))  # torch's own tables, and training mode
_ONE_FOR_ALL: Final = (type, types.FunctionType, types.ModuleType, logging.Logger)  # replicas have no copies of these
_MOST: Final = 1000  # objects within an attribute that are looked at
_PLAIN: Final = frozenset((bool, int, float, str, type(None)))


def _held(value: Any) -> Hashable:
    """Return what tells an attribute that is no plain value from others, as deep as a replica has copies of its own."""
    left = [_MOST]
    return _told(value, left, set())


def _told(value: Any, left: list[int], within: set[int]) -> Hashable:
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    left[0] -= 1
    if left[0] < 0 or id(value) in within:
        return id(value)
    match value:
        case Tensor():
            return _written(value)
        case bool() | int() | float() | str():  # of a class of its own, such as an enumeration's
            return value
        case torch.Generator():
            return value.get_state().numpy().tobytes() if value.device.type == "cpu" else id(value)
        case nn.Module():
            return id(value)
        case dict():
            items: Any = [(key if type(key) in _PLAIN else id(key), item) for key, item in list(value.items())]
        case list() | tuple() | set() | frozenset():
            items = enumerate(list(value))  # another thread may change it meanwhile
        case _ if hasattr(value, "__dict__") and not isinstance(value, _ONE_FOR_ALL):
            items = list(vars(value).items())
        case _:
            return id(value)
    same = None if isinstance(value, tuple) else id(value)  # equal ones are made anew
    within = within | {id(value)}
    return kind, same, tuple((key, _told(item, left, within)) for key, item in items)


def _written(tensor: Tensor) -> tuple[int, int, int]:
    return id(tensor), tensor.data_ptr(), version_of(tensor)


def version_of(tensor: Tensor) -> int:
    """Return a number that grows as a tensor is written to; -1 for inference tensors, which keep none."""
    return -1 if tensor.is_inference() else tensor._version


def fingerprint(*tensors: Tensor) -> str:
    """Return 32 hexadecimal digits that tell these tensors from others: dtype, shape and position-weighted checksums.

    Made for speed, on the tensors' own device; it guards against mix-ups, not against forgery (`digest` does).
    """
    sums = [_checksums(tensor) for tensor in tensors]
    collected = torch.stack([s.cpu() for s in sums]).numpy().tobytes() if sums else b""
    shapes = repr([(str(t.dtype), tuple(t.shape)) for t in tensors]).encode()
    return hashlib.blake2b(shapes + collected, digest_size=16).hexdigest()


def _checksums(tensor: Tensor) -> Tensor:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = len(raw) // (8 * _ROW) * (8 * _ROW)
    head = raw[:whole].clone() if raw.data_ptr() % 8 else raw[:whole]
    table = head.view(torch.int64).reshape(-1, _ROW)
    weights = _weights(len(table), raw.device)
    # Integer sums are exact in any order, so that the result does not depend on the number of threads. In slices, so
    # that no copy of the whole is made.
    columns = table.new_zeros(_ROW)
    for start in range(0, len(table), _SLICE):
        columns += (table[start : start + _SLICE] * weights[start : start + _SLICE, None]).sum(0)
    return torch.stack([_weighted(columns), _weighted(raw[whole:].long())])


_SLICE: Final = 2048
_ROW: Final = 509  # a prime, so that no power-of-two stride of the data lines up with it


def _weighted(values: Tensor) -> Tensor:
    return (values * _weights(len(values), values.device)).sum()


def _weights(count: int, device: torch.device) -> Tensor:
    """Return odd numbers that differ from place to place in all their bits."""
    places = torch.arange(1, count + 1, device=device)
    mixed = places * 0x9E3779B97F4A7C1
    return (mixed ^ (mixed >> 29)) * 0x3F58476D1CE4E5B9 | 1


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of every parameter and buffer."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of every parameter and buffer with its name, dtype and shape, in order of name."""
    made = hashlib.sha256()
    for name, tensor in sorted(named_tensors(unwrap(module)), key=lambda item: item[0]):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        made.update(raw.numpy().data)
    return made.hexdigest()


def known_by(value: Any) -> Any:
    """Return what stands for a value in a dictionary, for as long as it lives: a tensor is itself, as it is now.

    One whose changes cannot be noticed is never the same.
    """
    kind = type(value)
    if kind is int or kind is str:
        return value
    if isinstance(value, Tensor):
        return "tensor", id(value), object() if value.is_inference() else value._version
    if isinstance(value, (tuple, list)):
        return tuple([known_by(part) for part in value])
    return kind, value
