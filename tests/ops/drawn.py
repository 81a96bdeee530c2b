"""Batches of drawn shapes, strides and types, on every device that there is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from cnnviz import ops
from tests.reference import ops as twin

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
_LEVELS = ("default", "avx2", "avx512")
_OURS = torch.backends.cpu.get_cpu_capability().lower()
LEVELS = _LEVELS[: _LEVELS.index(_OURS) + 1] if _OURS in _LEVELS else ("default",)
"""What `ATEN_CPU_CAPABILITY` may name here: PyTorch takes instructions that the processor lacks if it is told to."""
drawn = settings(max_examples=80)
sizes = st.integers(1, 6)


def _contiguous(x: Tensor) -> Tensor:
    return x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _every_second(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def _off_by_one(x: Tensor) -> Tensor:
    """Begin where no processor would."""
    return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)


layouts = st.sampled_from([_contiguous, _channels_last, _every_second, _transposed, _off_by_one])


@st.composite
def batches(draw: st.DrawFn, device: str = "cpu", *, side: int = 6, channels: int = 6) -> Tensor:
    """Return (N, C, H, W), up to 3 images of up to `side` pixels a side; none at all now and then."""
    shape = draw(st.tuples(st.integers(0, 3), st.integers(1, channels), st.integers(1, side), st.integers(1, side)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    made = torch.randn(shape, generator=generator).to(device, draw(st.sampled_from(DTYPES)))
    layout: Callable[[Tensor], Tensor] = draw(layouts)
    return layout(made)


def corners(data: st.DataObject, count: int) -> Tensor:
    """Return (K, 2) places inside and outside of a batch's images."""
    return _corners(data.draw, count)


def _corners(draw: Callable[[st.SearchStrategy[tuple[int, int]]], tuple[int, int]], count: int) -> Tensor:
    corner = st.tuples(st.integers(-9, 9), st.integers(-9, 9))
    return torch.tensor([draw(corner) for _ in range(count)], dtype=torch.long).reshape(-1, 2)


def has_kernel(operator: str, device: str) -> bool:
    """Whether native code is there for an operator on a device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"cnnviz::{operator}", device)


def lies_as(made: Tensor, source: Tensor) -> bool:
    """Whether a result has its source's memory format: channels-last where only that is so, otherwise contiguous."""
    last = source.is_contiguous(memory_format=torch.channels_last) and not source.is_contiguous()
    return made.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@st.composite
def overlaid(
    draw: st.DrawFn, device: str, *, smallest: int = 1, shape: tuple[int, ...] | None = None
) -> tuple[ops.Overlaid, Tensor]:
    """Return crops that are still to be made, of a shape or of at least so many pixels a side, and these crops."""
    sides = st.integers(smallest, 9)
    count, channels, *size = shape or draw(st.tuples(st.integers(0, 4), st.integers(1, 40), sides, sides))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    layout: Callable[[Tensor], Tensor] = draw(layouts)
    base, patch = (torch.randn(n, channels, draw(sizes), draw(sizes), generator=generator) for n in (1, count))
    places = [_corners(draw, count) for _ in range(2)]
    made = ops.Overlaid(layout(base).to(device), layout(patch).to(device), *places, (size[0], size[1]))
    return made, twin.overlay_crop(base, patch, *places, made.size).to(device)


def roundings(device: str) -> float:
    """Return how far convolutions of the same maps in other layouts may differ: not at all by a kernel of our own."""
    return 0.0 if device == "cpu" and ops.conv_crops_is_native() else 1e-4
