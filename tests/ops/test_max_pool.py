from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, drawn, has_kernel, layouts

VALUES = [-math.inf, math.inf, math.nan, 0.0, -0.0, 1.0, 1.0, -1.0, 2.5]


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Return kernel, stride, padding and dilation."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, dilation = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    return kernel, stride, (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))), dilation


@st.composite
def maps(draw: st.DrawFn, device: str, window: tuple[tuple[int, int], ...]) -> Tensor:
    """Return (N, C, H, W) with room for a window; with equal numbers, infinities and what is no number."""
    kernel, _, _, dilation = window
    sides = [d * (k - 1) + draw(st.integers(1, 7)) for k, d in zip(kernel, dilation, strict=True)]
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 3)), *sides)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    plain = torch.randn(shape, generator=generator, dtype=dtype)
    odd = torch.tensor(VALUES, dtype=dtype)[torch.randint(len(VALUES), shape, generator=generator)]
    x = torch.where(torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0])), odd, plain)
    return draw(layouts)(x.to(device))


def as_bits(x: Tensor) -> Tensor:
    """Return integers that tell zeros of either sign apart; all that is no number is one."""
    return (
        torch.where(x.isnan(), math.nan, x).contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)
    )


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(data=st.data(), ceil_mode=st.booleans())
def test_maxima_and_their_gradient_element_by_element(device: str, data: st.DataObject, ceil_mode: bool) -> None:
    window: Any = data.draw(windows())
    x = data.draw(maps(device, window)).requires_grad_()
    made = ops.max_pool(x, *window, ceil_mode=ceil_mode)
    expected, places = twin.max_pool(x.detach().cpu(), *window, ceil_mode)
    assert torch.equal(as_bits(made.detach().cpu()), as_bits(expected))
    assert made.is_contiguous()

    grad = torch.arange(1, made.numel() + 1, device=device).to(made).view(made.shape) / 7
    (slope,) = torch.autograd.grad(made, x, grad)
    summed = torch.zeros(x.shape, dtype=x.dtype)
    for place in itertools.product(*map(range, expected.shape)):
        row, column = places[place].tolist()
        summed[(*place[:2], row, column)] += grad.cpu()[place]
    assert torch.equal(slope.cpu(), summed)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_maps_give_the_bits_of_torch(stride: int, layout: torch.memory_format, dtype: torch.dtype) -> None:
    """More windows in a row than are looked at together."""
    x = torch.randn(2, 5, 9, 1201, dtype=dtype).relu().contiguous(memory_format=layout).requires_grad_()
    made = ops.max_pool(x, (3, 3), (stride, stride), (1, 1), ceil_mode=True)
    expected = functional.max_pool2d(x, 3, stride, 1, ceil_mode=True)
    grad = torch.randn(made.shape, dtype=dtype).contiguous(memory_format=layout)
    assert torch.equal(made, expected)
    assert torch.equal(torch.autograd.grad(made, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])


def test_the_number_of_threads_changes_no_bit() -> None:
    x, threads = torch.randn(2, 40, 33, 31).requires_grad_(), torch.get_num_threads()
    made: list[Tensor] = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            pooled = ops.max_pool(x, (3, 3), (1, 1), (1, 1))
            made += [pooled, *torch.autograd.grad(pooled.square().sum(), x)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[1], made[3])


@pytest.mark.skipif(not ops.max_pool_is_native(), reason="the reference is torch's own")
def test_where_windows_hold_padding_alone_nothing_else_is_written() -> None:
    """Which Python refuses; graphs that were exported hold the operator alone."""
    x = torch.randn(1, 2, 3, 3)
    window = [2, 2], [1, 1], [1, 1], [4, 4], False
    made = torch.ops.cnnviz.max_pool_backward(torch.ones(1, 2, 1, 1), x, *window)
    assert not made.any()


@pytest.mark.skipif(not ops.max_pool_is_native(), reason="torch checks these")
def test_what_graphs_hold_is_checked() -> None:
    x, pool, back = torch.ones(1, 2, 8, 8), torch.ops.cnnviz.max_pool, torch.ops.cnnviz.max_pool_backward
    good = [2, 2], [2, 2], [0, 0], [1, 1], False
    for bad in (x.half(), x.long(), x[None], x[:, :, :0]):
        with pytest.raises(RuntimeError):
            pool(bad, *good)
    for place in range(4):
        for numbers in ([], [2], [-1, -1], [2**62, 2**62]):
            with pytest.raises(RuntimeError):
                pool(x, *good[:place], numbers, *good[place + 1 :])
    for grad in (torch.ones(1, 2, 1, 1), torch.ones(1, 2, 4, 4).double()):
        with pytest.raises(RuntimeError, match="one gradient for each window"):
            back(grad, x, *good)


def test_status_of_the_kernel() -> None:
    assert ops.max_pool_is_native() == has_kernel("max_pool", "CPU")
