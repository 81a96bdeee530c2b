"""Validation at the operators' public edge: kernels and references below it trust their arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def floating(operator: str, name: str, value: Tensor, dims: str) -> None:
    """Require a floating tensor with as many dimensions as `dims` has letters, such as "NCHW".

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Tensor) or value.dim() != len(dims) or not value.is_floating_point():
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{operator}: {name} is {got}, expected a floating tensor ({', '.join(dims)})")


def integers(operator: str, name: str, value: Tensor, shape: tuple[int | None, ...]) -> None:
    """Require an int64 tensor of a shape in which None stands for any length.

    Raises:
        ValueError: it is something else.
    """
    fits = (
        isinstance(value, Tensor)
        and value.dtype == torch.int64
        and value.dim() == len(shape)
        and all(want is None or have == want for want, have in zip(shape, value.shape, strict=True))
    )
    if not fits:
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
        wanted = ", ".join("K" if length is None else str(length) for length in shape)
        raise ValueError(f"{operator}: {name} is {got}, expected an int64 tensor ({wanted})")


def within(operator: str, name: str, value: Tensor, stop: int) -> None:
    """Require every element of an index to be in [0, stop).

    Raises:
        ValueError: one is not.
    """
    if value.numel() and (int(value.min()) < 0 or int(value.max()) >= stop):
        raise ValueError(f"{operator}: {name} has values from {value.min()} to {value.max()}, expected 0 to {stop - 1}")


def size(operator: str, value: tuple[int, int]) -> None:
    """Require a height and a width of at least 1.

    Raises:
        ValueError: it is something else.
    """
    if len(value) != 2 or min(value) < 1:
        raise ValueError(f"{operator}: size is {value}, expected (height, width) of at least 1")
