"""What a model's weights are: a stamp that changes when they do, a fast fingerprint, and a SHA-256 digest."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator

import torch
from torch import Tensor, nn


def stamp(module: nn.Module) -> Hashable:
    """Return a value that differs once a module was swapped, or a parameter or buffer was written to or replaced."""
    tensors = (t for m in module.modules() for table in (m._parameters, m._buffers) for t in table.values())
    # Inference tensors keep no version; a buffer may be one.
    written = tuple((id(t), t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors if t is not None)
    return tuple(map(id, module.modules())), written


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
    # Integer sums are exact in any order, so that the result does not depend on the number of threads.
    head = raw[:whole].clone() if raw.data_ptr() % 8 else raw[:whole]
    table = head.view(torch.int64).reshape(-1, _ROW)
    return torch.stack([_weighted(table.sum(0)), _weighted(table.sum(1)), _weighted(raw[whole:].long())])


_ROW = 509  # a prime, so that no power-of-two stride of the data lines up with it


def _weighted(values: Tensor) -> Tensor:
    places = torch.arange(1, len(values) + 1, device=values.device)
    return (values * (places * 0x9E3779B97F4A7C1 | 1)).sum()


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of every parameter and buffer."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of every parameter and buffer with its name, dtype and shape, in order of name."""
    made = hashlib.sha256()
    for name, tensor in sorted(named_tensors(module), key=lambda item: item[0]):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        made.update(raw.numpy().data)
    return made.hexdigest()
