"""Validation at the operators' public edge: kernels and references below it trust their arguments."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import _native

FAR: Final = 2**30
_DTYPES: Final = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


def floating(operator: str, name: str, value: Tensor, dims: str) -> None:
    """Require a tensor of a type that operators take, with as many dimensions as `dims` has letters, such as "NCHW".

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Tensor) or value.dtype not in _DTYPES or value.dim() != len(dims):
        raise ValueError(
            f"{operator}: {name} is {told(value)}, expected a float32, float64, float16 or bfloat16 tensor "
            f"({', '.join(dims)})"
        )


def patches(operator: str, base: Tensor, patch: Tensor) -> None:
    """Require a base (1, C, H, W) and patches of it (K, C, h, w), of one type that operators take, on one device.

    Raises:
        ValueError: they are something else.
    """
    floating(operator, "base", base, "1CHW")
    floating(operator, "patch", patch, "KCHW")
    if len(base) != 1 or patch.shape[1] != base.shape[1] or patch.dtype != base.dtype or patch.device != base.device:
        raise ValueError(
            f"{operator}: base is {told(base)} on {base.device} and patch {told(patch)} on {patch.device}, expected "
            "(1, C, H, W) and (K, C, h, w) of one type on one device"
        )


def integers(operator: str, name: str, value: Tensor, shape: tuple[int | str, ...]) -> Tensor:
    """Require an int64 tensor of a shape in which any length may stand under a name, such as "K"; return it on the CPU.

    Raises:
        ValueError: it is something else.
    """
    if (
        not isinstance(value, Tensor)
        or value.dtype != torch.int64
        or value.dim() != len(shape)
        or any(isinstance(want, int) and have != want for have, want in zip(value.shape, shape, strict=True))
    ):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{operator}: {name} is {told(value)}, expected an int64 tensor ({wanted})")
    return value if value.is_cpu or not has_values(value) else value.cpu()


def added(operator: str, value: Any, shape: tuple[int, ...]) -> None:
    """Require what is added to a result to be float32 and of that result's shape.

    Raises:
        ValueError: it is something else.
    """
    if getattr(value, "dtype", None) != torch.float32 or value.shape != shape:
        raise ValueError(f"{operator}: added is {told(value)}, expected the result's shape {shape} in float32")


def have_values(operator: str, images: Tensor, **given: Tensor) -> None:
    """Require integers with values beside images with values.

    Raises:
        ValueError: they are on the meta device, and the images are not.
    """
    for name, value in given.items():
        if value.is_meta and not images.is_meta:
            raise ValueError(f"{operator}: {name} is on the meta device, expected a tensor with values")


def has_values(value: Tensor) -> bool:
    """Tell numbers from what only stands for them while a graph is traced."""
    if torch.compiler.is_compiling():
        return False
    return not value.is_meta if type(value) is Tensor else not isinstance(value, FakeTensor)


def corners(operator: str, name: str, value: Tensor, count: int) -> Tensor:
    """Require (K, 2) int64 rows and columns, not so far away that sums with sizes overflow; return them on the CPU.

    Raises:
        ValueError: it is something else.
    """
    value = integers(operator, name, value, (count, 2))
    if has_values(value) and (wrong := _native.first_outside(value, -FAR, FAR)) >= 0:
        raise ValueError(
            f"{operator}: {name}[{wrong // 2}] is {value[wrong // 2].tolist()}, expected a row and a column within "
            f"{FAR} pixels"
        )
    return value


def places(operator: str, name: str, value: Tensor, stop: int) -> Tensor:
    """Require (K,) int64 places in [0, stop); return them on the CPU.

    Raises:
        ValueError: it is something else.
    """
    value = integers(operator, name, value, ("K",))
    if has_values(value) and (wrong := _native.first_outside(value, 0, stop)) >= 0:
        raise ValueError(f"{operator}: {name}[{wrong}] is {value[wrong]}, expected 0 to {stop - 1}")
    return value


def windows(operator: str, value: Tensor, images: torch.Size) -> Tensor:
    """Require (K, 5) int64 windows (image, top, bottom, left, right) inside the images; return them on the CPU.

    Raises:
        ValueError: it is something else.
    """
    value = integers(operator, "windows", value, ("K", 5))
    count, _, height, width = images
    if has_values(value) and (wrong := _native.first_bad_window(value, count, height, width)) >= 0:
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


def told(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else repr(value)
