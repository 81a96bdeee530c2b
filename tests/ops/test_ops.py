"""Every operator against its slow twin, with drawn shapes, strides, types and borders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from cnnviz import ops
from tests.reference import ops as twin

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
sizes = st.integers(1, 6)


def _contiguous(x: Tensor) -> Tensor:
    return x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _every_second(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


layouts = st.sampled_from([_contiguous, _channels_last, _every_second, _transposed])


@st.composite
def batches(draw: st.DrawFn, *, dtypes: list[torch.dtype] = DTYPES) -> Tensor:
    shape = draw(st.tuples(st.integers(0, 3), sizes, sizes, sizes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    made = torch.randn(shape, generator=generator).to(draw(st.sampled_from(dtypes)))
    layout: Callable[[Tensor], Tensor] = draw(layouts)
    return layout(made)


@settings(max_examples=80, deadline=None)
@given(x=batches(), normalise=st.booleans())
def test_gram_matrix(x: Tensor, normalise: bool) -> None:
    made = ops.gram_matrix(x, normalise=normalise)
    expected = twin.gram_matrix(x.double(), normalise=normalise)
    # One rounding of each product's sum in the type's own precision.
    torch.testing.assert_close(
        made.double(), expected, rtol=8 * torch.finfo(x.dtype).eps, atol=16 * torch.finfo(x.dtype).eps
    )
    assert made.dtype == x.dtype
    assert torch.equal(made, made.mT)


@settings(max_examples=80, deadline=None)
@given(x=batches(), rule=st.sampled_from(["plain", "deconvnet", "guided"]), seed=st.integers(0, 99))
def test_guided_relu(x: Tensor, rule: Any, seed: int) -> None:
    x = x.detach().requires_grad_()
    made = ops.guided_relu(x, rule)
    assert torch.equal(made, torch.relu(x))
    arriving = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)
    (gradient,) = torch.autograd.grad(made, x, arriving)
    assert torch.equal(gradient, twin.guided_relu_gradient(x.detach(), arriving, rule))


@settings(max_examples=80, deadline=None)
@given(images=batches(), data=st.data(), channels_last=st.booleans())
def test_occlude(images: Tensor, data: st.DataObject, channels_last: bool) -> None:
    count, channels, height, width = images.shape
    windows = []
    for _ in range(data.draw(st.integers(0, 4)) if count else 0):
        top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
        left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
        windows.append([data.draw(st.integers(0, count - 1)), top, bottom, left, right])
    boxes = torch.tensor(windows, dtype=torch.long).reshape(-1, 5)
    shape = [data.draw(st.sampled_from([1, length])) for length in (channels, height, width)]
    baseline = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(images.dtype)
    made = ops.occlude(images, boxes, baseline, channels_last=channels_last)
    assert torch.equal(made, twin.occlude(images, boxes, baseline))
    assert made.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _corners(data: st.DataObject, count: int) -> Tensor:
    corner = st.tuples(st.integers(-9, 9), st.integers(-9, 9))
    return torch.tensor([data.draw(corner) for _ in range(count)], dtype=torch.long).reshape(-1, 2)


@settings(max_examples=80, deadline=None)
@given(images=batches(), data=st.data(), size=st.tuples(sizes, sizes), pad=st.sampled_from([0.0, -1.5]))
def test_crop_patches(images: Tensor, data: st.DataObject, size: tuple[int, int], pad: float) -> None:
    count = data.draw(st.integers(0, 4)) if len(images) else 0
    index = torch.tensor([data.draw(st.integers(0, len(images) - 1)) for _ in range(count)], dtype=torch.long)
    yx = _corners(data, count)
    made = ops.crop_patches(images, index, yx, size, pad=pad)
    assert torch.equal(made, twin.crop_patches(images, index, yx, size, pad=pad))
    assert made.dtype == images.dtype


@settings(max_examples=80, deadline=None)
@given(
    base=batches().filter(len),
    data=st.data(),
    extent=st.tuples(sizes, sizes),
    size=st.tuples(sizes, sizes),
    pad=st.sampled_from([0.0, -1.5]),
)
def test_overlay_crop(
    base: Tensor, data: st.DataObject, extent: tuple[int, int], size: tuple[int, int], pad: float
) -> None:
    base = base[:1]
    count = data.draw(st.integers(0, 4))
    patch = torch.randn(count, base.shape[1], *extent, generator=torch.Generator().manual_seed(2)).to(base.dtype)
    patch_yx, crop_yx = _corners(data, count), _corners(data, count)
    made = ops.overlay_crop(base, patch, patch_yx, crop_yx, size, pad=pad)
    assert torch.equal(made, twin.overlay_crop(base, patch, patch_yx, crop_yx, size, pad=pad))


IMAGES = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
INDEX = torch.tensor([0, 2, 2, 1])
YX = torch.tensor([[-2, 3], [0, 0], [4, 3], [-9, -9]])
DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "gram_matrix": ops.gram_matrix,
    "gram_matrix, plain": lambda x: ops.gram_matrix(x, normalise=False),
    "guided_relu": lambda x: ops.guided_relu(x, "plain"),  # the other rules give no derivative of the output
    "crop_patches": lambda x: ops.crop_patches(x, INDEX, YX, (3, 2)),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name: str) -> None:
    x = IMAGES.clone().requires_grad_()
    assert gradcheck(DIFFERENTIABLE[name], x)
    assert gradgradcheck(DIFFERENTIABLE[name], x)


def _leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


CALLS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "gram_matrix": lambda: (_leaf(IMAGES), True),
    "guided_relu": lambda: (_leaf(IMAGES), "guided"),
    "guided_relu_backward": lambda: (_leaf(IMAGES), IMAGES.relu(), "deconvnet"),
    "crop_patches": lambda: (_leaf(IMAGES), INDEX, YX, [3, 2], 0.5),
    "crop_patches_backward": lambda: (_leaf(torch.ones(4, 2, 3, 2)), INDEX, YX, [3, 2, 5, 4]),
    "occlude": lambda: (IMAGES, torch.tensor([[1, 0, 2, 1, 4]]), IMAGES[0], True),
    "overlay_crop": lambda: (IMAGES[:1], torch.ones(4, 2, 2, 2).double(), YX, YX.flip(0), [3, 3], 0.0),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck itself looks at tensors that are no leaves
@pytest.mark.parametrize("name", CALLS)
def test_schema_fake_and_autograd_agree(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.cnnviz, name).default, CALLS[name]())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: ops.gram_matrix(torch.ones(3, 4, 5)),
            r"x is \(3, 4, 5\) torch.float32, expected a float32, .* tensor \(N, C, H, W\)",
        ),
        (
            lambda: ops.gram_matrix(torch.ones(1, 3, 4, 5).long()),
            "torch.int64, expected a float32, float64, float16 or bfloat16",
        ),
        (lambda: ops.guided_relu(torch.ones(3), "guded"), "rule is 'guded', expected one of 'plain', 'deconvnet'"),
        (lambda: ops.occlude(IMAGES, torch.tensor([[0, 0, 6, 0, 1]]), IMAGES[0]), r"window 0 is \[0, 0, 6, 0, 1\]"),
        (
            lambda: ops.occlude(IMAGES, torch.tensor([[3, 0, 1, 0, 1]]), IMAGES[0]),
            r"window 0 is \[3, 0, 1, 0, 1\], expected .* inside one of 3 images of 5 x 4",
        ),
        (lambda: ops.occlude(IMAGES, torch.tensor([[0, 0, 1, 0, 1], [0, 2, 1, 0, 1]]), IMAGES[0]), "window 1 is"),
        (lambda: ops.guided_relu(torch.ones(3, dtype=torch.float8_e4m3fn)), "torch.float8_e4m3fn, expected a float32"),
        (lambda: ops.occlude(IMAGES, torch.ones(2, 4).long(), IMAGES[0]), r"expected an int64 tensor \(K, 5\)"),
        (lambda: ops.occlude(IMAGES, torch.ones(0, 5).long(), IMAGES[0].float()), "baseline is"),
        (lambda: ops.crop_patches(IMAGES, INDEX, YX[:2], (1, 1)), r"yx is \(2, 2\) torch.int64, expected .* \(4, 2\)"),
        (lambda: ops.crop_patches(IMAGES, INDEX + 1, YX, (1, 1)), r"index\[1\] is 3, expected 0 to 2"),
        (
            lambda: ops.crop_patches(IMAGES, INDEX, YX, (0, 1)),
            r"size is \(0, 1\), expected \(height, width\) of at least 1",
        ),
        (lambda: ops.overlay_crop(IMAGES, torch.ones(4, 2, 1, 1).double(), YX, YX, (1, 1)), r"expected \(1, C, H, W\)"),
    ],
)
def test_bad_input_is_told_with_what_is_expected(call: Callable[[], Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


def test_occlude_writes_its_batch_once() -> None:
    """No intermediate of the batch's size: the only large memory taken is the result's."""
    from torch.profiler import ProfilerActivity, profile

    images, baseline = torch.rand(1, 3, 128, 128), torch.zeros(3, 1, 1)
    windows = torch.tensor([[0, y, y + 32, 0, 32] for y in range(0, 96, 2)])
    batch = len(windows) * images.numel() * 4
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        made = ops.occlude(images, windows, baseline)
    taken = [
        event.cpu_memory_usage for event in seen.events() if event.cpu_memory_usage > 0 and event.cpu_parent is None
    ]
    assert made.numel() * 4 == batch
    assert max(taken) <= 1.01 * batch
