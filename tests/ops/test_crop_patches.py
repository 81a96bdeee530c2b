from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import DEVICES, batches, corners, drawn, lies_as, sizes


def _places(data: st.DataObject, images: Tensor) -> tuple[Tensor, Tensor]:
    count = data.draw(st.integers(0, 4)) if len(images) else 0
    index = torch.tensor([data.draw(st.integers(0, len(images) - 1)) for _ in range(count)], dtype=torch.long)
    return index, corners(data, count)


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(data=st.data(), size=st.tuples(sizes, sizes), pad=st.sampled_from([0.0, -1.5]))
def test_patches_past_any_border(device: str, data: st.DataObject, size: tuple[int, int], pad: float) -> None:
    images = data.draw(batches(device))
    index, yx = _places(data, images)
    made = ops.crop_patches(images, index, yx, size, pad=pad)
    assert torch.equal(made, twin.crop_patches(images, index, yx, size, pad=pad))
    assert made.dtype == images.dtype
    assert lies_as(made, images)


@pytest.mark.parametrize("device", DEVICES)
@drawn
@given(data=st.data(), size=st.tuples(sizes, sizes))
def test_gradients_are_summed_in_the_patches_order(device: str, data: st.DataObject, size: tuple[int, int]) -> None:
    images = data.draw(batches(device)).detach().requires_grad_()
    index, yx = _places(data, images)
    made = ops.crop_patches(images, index, yx, size)
    arriving = torch.randn(made.shape, generator=torch.Generator().manual_seed(2)).to(made)
    (gradient,) = torch.autograd.grad(made, images, arriving)
    assert torch.equal(gradient, twin.crop_patches_gradient(images.detach(), index, yx, arriving))


@pytest.mark.parametrize("device", DEVICES)
def test_more_patches_than_go_with_one_launch(device: str) -> None:
    images = torch.randn(5, 4, 20, 24, device=device)
    index, yx = torch.randint(0, 5, (2500,)), torch.randint(-12, 24, (2500, 2))
    made = ops.crop_patches(images, index, yx, (8, 12), pad=0.5)
    assert torch.equal(made, twin.crop_patches(images.cpu(), index, yx, (8, 12), pad=0.5).to(device))


def test_places_on_the_images_device_are_fetched() -> None:
    images = torch.randn(2, 1, 4, 4, device=DEVICES[-1])
    index, yx = torch.tensor([1, 0]), torch.tensor([[0, 1], [2, 2]])
    made = ops.crop_patches(images, index.to(images.device), yx.to(images.device), (2, 2))
    assert torch.equal(made, ops.crop_patches(images, index, yx, (2, 2)))
