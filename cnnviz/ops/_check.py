"""Validation at the operators' public edge: kernels and references below it trust their arguments."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from . import _native

_DTYPES: Final = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


def floating(operator: str, name: str, value: Tensor, dims: str) -> None:
    """Require a tensor of a type that operators take, with as many dimensions as `dims` has letters, such as "NCHW".

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Tensor) or value.dtype not in _DTYPES or value.dim() != len(dims):
        raise ValueError(
            f"{operator}: {name} is {_told(value)}, expected a float32, float64, float16 or bfloat16 tensor "
            f"({', '.join(dims)})"
        )


def integers(operator: str, name: str, value: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """Require an int64 tensor of a shape in which None stands for any length; return it on the CPU.

    Raises:
        ValueError: it is something else.
    """
    if (
        not isinstance(value, Tensor)
        or value.dtype != torch.int64
        or value.dim() != len(shape)
        or any(want is not None and have != want for want, have in zip(shape, value.shape, strict=True))
    ):
        wanted = ", ".join("K" if length is None else str(length) for length in shape)
        raise ValueError(f"{operator}: {name} is {_told(value)}, expected an int64 tensor ({wanted})")
    return value.cpu()


def places(operator: str, name: str, value: Tensor, stop: int) -> Tensor:
    """Require (K,) int64 places in [0, stop); return them on the CPU.

    Raises:
        ValueError: it is something else.
    """
    value = integers(operator, name, value, (None,))
    if (wrong := _native.first_outside(value, stop)) >= 0:
        raise ValueError(f"{operator}: {name}[{wrong}] is {value[wrong]}, expected 0 to {stop - 1}")
    return value


def windows(operator: str, value: Tensor, images: torch.Size) -> Tensor:
    """Require (K, 5) int64 windows (image, top, bottom, left, right) inside the images; return them on the CPU.

    Raises:
        ValueError: it is something else.
    """
    value = integers(operator, "windows", value, (None, 5))
    count, _, height, width = images
    if (wrong := _native.first_bad_window(value, count, height, width)) >= 0:
        raise ValueError(
            f"{operator}: window {wrong} is {value[wrong].tolist()}, expected (image, top, bottom, left, right) inside "
            f"one of {count} images of {height} x {width}"
        )
    return value


def size(operator: str, value: tuple[int, int]) -> None:
    """Require a height and a width of at least 1.

    Raises:
        ValueError: it is something else.
    """
    if len(value) != 2 or min(value) < 1:
        raise ValueError(f"{operator}: size is {value}, expected (height, width) of at least 1")


def _told(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
