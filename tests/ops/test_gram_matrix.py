from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, batches, drawn, has_kernel


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(data=st.data(), normalise=st.booleans())
def test_every_pair_of_channels(device: str, data: st.DataObject, normalise: bool) -> None:
    x = data.draw(batches(device))
    made = ops.gram_matrix(x, normalise=normalise)
    expected = twin.gram_matrix(x.double(), normalise=normalise)
    # One rounding of each product's sum in the type's own precision.
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(made.double(), expected, rtol=8 * eps, atol=16 * eps)
    assert made.dtype == x.dtype
    assert torch.equal(made, made.mT)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40)
@given(data=st.data())
def test_many_channels_and_pixels(device: str, data: st.DataObject) -> None:
    """Sizes at which native code works in blocks, with whatever is left over of each."""
    x = data.draw(batches(device, side=45, channels=200))
    made = ops.gram_matrix(x)
    flat, entries = x.double().flatten(2), max(x[:1].numel(), 1)
    # Rounding errors of a sum grow with the root of its length, each in proportion to what was summed up.
    kind = torch.finfo(x.dtype)
    bound = kind.eps * ((4 + flat.shape[2] ** 0.5) * (flat.abs() @ flat.abs().mT) / entries + kind.smallest_normal)
    assert ((made.double() - flat @ flat.mT / entries).abs() <= bound).all()
    assert torch.equal(made, made.mT)


@pytest.mark.parametrize("shape", [(1, 64, 112, 112), (2, 96, 33, 31), (3, 300, 9, 9)])
def test_the_number_of_threads_changes_no_bit(shape: Any) -> None:
    x, threads = torch.randn(shape), torch.get_num_threads()
    made: list[Tensor] = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made.append(ops.gram_matrix(x))
    finally:
        torch.set_num_threads(threads)
    if has_kernel("gram_matrix", "CPU"):
        assert torch.equal(made[0], made[1])
        assert torch.equal(made[0], made[2])
    else:  # the matrix library promises less
        torch.testing.assert_close(made[0], made[1])


@pytest.mark.parametrize("device", DEVICES)
def test_float16_is_scaled_before_it_is_rounded(device: str) -> None:
    x = torch.full((1, 2, 300, 300), 4.0, dtype=torch.float16, device=device)
    assert torch.equal(ops.gram_matrix(x), torch.full((1, 2, 2), 8.0, dtype=torch.float16, device=device))


def test_no_pixels() -> None:
    assert torch.equal(ops.gram_matrix(torch.ones(2, 3, 0, 4)), torch.zeros(2, 3, 3))
