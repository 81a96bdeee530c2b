"""What holds for every operator: schema, gradients, messages, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from cnnviz import ops

from .drawn import has_kernel

IMAGES = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
INDEX = torch.tensor([0, 2, 2, 1])
WEIGHT = torch.ones(6, 2, 3, 3)
YX = torch.tensor([[-2, 3], [0, 0], [4, 3], [-9, -9]])
JOINED = ops.Joined(
    [torch.ones(1, 2, 5, 4), torch.ones(1, 3, 5, 4)],
    [torch.ones(4, 2, 2, 3), torch.ones(4, 3, 1, 2)],
    *(torch.stack([YX, YX + 1]), YX.flip(0), (3, 3), torch.ones(5), torch.ones(5), 0.0, 6.0),
)
MAPS = torch.ones(4, 2, 5, 5)
CROPS = [torch.ones(1, 3, 8, 9), torch.ones(4, 3, 2, 2), YX, YX.flip(0)]
DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "gram_matrix": ops.gram_matrix,
    "gram_matrix, plain": lambda x: ops.gram_matrix(x, normalise=False),
    "guided_relu": lambda x: ops.guided_relu(x, "plain"),  # the other rules give no derivative of the output
    "crop_patches": lambda x: ops.crop_patches(x, INDEX, YX, (3, 2)),
    "max_pool": lambda x: ops.max_pool(x, (3, 2), (1, 2), (1, 1)),
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
    "max_pool": lambda: (_leaf(IMAGES), [3, 2], [1, 2], [1, 1], [1, 1], False),
    "max_pool_backward": lambda: (
        _leaf(torch.ones(3, 2, 5, 3).double()),
        IMAGES,
        [3, 2],
        [1, 2],
        [1, 1],
        [1, 1],
        False,
    ),
    "occlude": lambda: (IMAGES, torch.tensor([[1, 0, 2, 1, 4]]), IMAGES[0], True),
    "grow_texture": lambda: (
        IMAGES[0],
        torch.full((2, 3), -1),
        INDEX,
        torch.zeros(4).double(),
        YX[1:3] // 4,
        IMAGES[0, 0, 0, :2].abs(),
        *(IMAGES[1, :1, :2, :3], IMAGES[2, :1], YX[1:2], torch.ones(1).double(), 0.5, True),
    ),
    "conv_crops": lambda: (
        *([torch.ones(2, 3, 5, 6)], [5, 6], ops.packed_kernel(torch.ones(70, 3, 2, 3)), torch.ones(70)),
        *([2, 1], [1, 2], -1.0, 10.0, [torch.ones(2, 70, 2, 2)]),
    ),
    "conv_crops of crops": lambda: (
        *(CROPS, [5, 6], ops.packed_kernel(torch.ones(3, 1, 2, 3), 3), torch.ones(3), [2, 1], [1, 2], -1.0, 10.0, []),
    ),
    "winograd_kernel": lambda: (torch.ones(70, 3, 3, 3),),
    "winograd_crops": lambda: (
        *([torch.ones(2, 3, 5, 6)], [5, 6], ops.winograd_kernel(torch.ones(70, 3, 3, 3)), torch.ones(70)),
        *(-1.0, 10.0, [torch.ones(2, 70, 3, 4)]),
    ),
    "winograd_crops of crops": lambda: (
        *(CROPS, [5, 6], ops.winograd_kernel(torch.ones(3, 3, 3, 3)), torch.ones(3)),
        *(-1.0, 10.0, [torch.ones(1, 3, 7, 7), torch.ones(4, 3, 2, 3), YX.flip(0), YX]),
    ),
    "overlay_cat": lambda: JOINED,
    "changed_spans": lambda: (
        IMAGES[:1],
        IMAGES[:2, :, 1:4, :2],
        YX[1:3] // 4,
        torch.tensor([[[1, 3], [1, 2]]] * 2),
        0.5,
    ),
    "conv_cat": lambda: (
        *JOINED,
        ops.packed_kernel(torch.ones(70, 5, 1, 1)),
        torch.ones(70),
        -1.0,
        10.0,
        [torch.ones(4, 70, 3, 3)],
    ),
    "overlay_crop": lambda: (IMAGES[:1], torch.ones(4, 2, 2, 2).double(), YX, YX.flip(0), [3, 3], 0.0),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck itself looks at tensors that are no leaves
@pytest.mark.parametrize("name", CALLS)
def test_schema_fake_and_autograd_agree(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.cnnviz, name.split(maxsplit=1)[0]).default, CALLS[name]())


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
        (lambda: ops.guided_relu(3.0), "x is 3.0, expected a float32"),
        (
            lambda: ops.crop_patches(IMAGES, INDEX, YX - 2**63, (1, 1)),
            r"yx\[0\] is \[.*\], expected a row and a column within 1073741824 pixels",
        ),
        (
            lambda: ops.overlay_crop(IMAGES[:1], torch.ones(4, 2, 1, 1).double(), YX, YX + 2**40, (1, 1)),
            r"crop_yx\[0\]",
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
        (lambda: ops.crop_patches(IMAGES, INDEX.to("meta"), YX, (1, 1)), "index is on the meta device"),
        (lambda: ops.occlude(IMAGES, torch.ones(1, 5).long().to("meta"), IMAGES[0]), "windows is on the meta device"),
        (lambda: ops.crop_patches(IMAGES, INDEX + 1, YX, (1, 1)), r"index\[1\] is 3, expected 0 to 2"),
        (
            lambda: ops.crop_patches(IMAGES, INDEX, YX, (0, 1)),
            r"size is \(0, 1\), expected \(height, width\) of at least 1",
        ),
        (
            lambda: ops.winograd_kernel(WEIGHT.double()),
            r"weight is \(6, 2, 3, 3\) torch.float64, expected \(M, C, 3, 3\)",
        ),
        (
            lambda: ops.winograd_crops(torch.ones(1, 2, 2, 5), ops.winograd_kernel(WEIGHT), torch.ones(6)),
            r"x is \(1, 2, 2, 5\) torch.float32, kernel \(1, 16, 2, 64\) .* of at least 3 x 3",
        ),
        (
            lambda: ops.winograd_crops(torch.ones(1, 2, 3, 5), ops.winograd_kernel(WEIGHT), torch.ones(65)),
            r"bias \(65,\), expected",
        ),
        (
            lambda: ops.conv_crops(torch.ones(1, 4, 5, 5), ops.packed_kernel(torch.ones(6, 3, 2, 2)), torch.ones(6)),
            r"x is \(1, 4, 5, 5\) torch.float32, kernel \(1, 2, 2, 3, 64\) .* expected float32 maps",
        ),
        (
            lambda: ops.conv_crops(torch.ones(1, 3, 5, 1), ops.packed_kernel(torch.ones(6, 3, 2, 2)), torch.ones(6)),
            "at least as large as the kernel reaches",
        ),
        (
            lambda: ops.conv_crops(IMAGES, ops.packed_kernel(torch.ones(6, 2, 1, 1)), torch.ones(6)),
            "torch.float64, kernel",
        ),
        (
            lambda: ops.conv_crops(
                torch.ones(2, 3, 5, 5),
                ops.packed_kernel(torch.ones(6, 3, 2, 2)),
                torch.ones(6),
                added=torch.ones(2, 6, 5),
            ),
            r"conv_crops: added is \(2, 6, 5\) torch.float32, expected the result's shape \(2, 6, 4, 4\) in float32",
        ),
        (
            lambda: ops.winograd_crops(
                torch.ones(4, 3, 4, 4),
                ops.winograd_kernel(torch.ones(3, 3, 3, 3)),
                torch.ones(3),
                added=ops.Overlaid(*CROPS, (2, 3)),
            ),
            r"winograd_crops: added is \(4, 3, 2, 3\) torch.float32, expected the result's shape \(4, 3, 2, 2\) in ",
        ),
        (
            lambda: ops.conv_crops(
                torch.ones(2, 6, 5, 5), ops.packed_kernel(WEIGHT[:, :1], 6), torch.ones(6), added=torch.ones(2, 6, 3, 3)
            ),
            "expected one kernel for all channels",
        ),
        (
            lambda: ops.overlay_cat(JOINED._replace(patches=[])),
            r"got 2 bases and 0 patches, expected as many",
        ),
        (
            lambda: ops.overlay_cat(JOINED._replace(patches=JOINED.patches[::-1])),
            r"base is \(1, 2, 5, 4\) torch.float32 and patch \(4, 3, 1, 2\) .*expected float32, \(1, C, 5, 4\)",
        ),
        (
            lambda: ops.overlay_cat(JOINED._replace(shift=None)),
            r"scale is \(5,\) torch.float32 and shift None, expected two float32 tensors \(5,\), or neither",
        ),
        (
            lambda: ops.changed_spans(IMAGES[:1], IMAGES, YX[:3], torch.zeros(3, 2).long(), 0.5),
            r"spans is \(3, 2\) torch.int64, expected an int64 tensor \(3, 2, 2\)",
        ),
        (
            lambda: ops.changed_spans(IMAGES, IMAGES, YX[:3], torch.zeros(3, 2, 2).long(), 0.5),
            r"base is \(3, 2, 5, 4\) .*expected \(1, C, H, W\) and \(K, C, h, w\)",
        ),
        (
            lambda: ops.changed_spans(IMAGES[:1], IMAGES[:1, :, :2], YX[1:2], torch.tensor([[[0, 2], [1, 5]]]), 0.5),
            r"spans\[0\] is \[\[0, 2\], \[1, 5\]\], expected spans inside of a patch of 2 x 4 at \[0, 0\]",
        ),
        (
            lambda: ops.changed_spans(IMAGES[:1], IMAGES[:1], YX[1:2], torch.zeros(1, 2, 2).long(), 1.5),
            "share is 1.5, expected 0 to 1",
        ),
        (
            lambda: ops.conv_cat(JOINED, ops.packed_kernel(torch.ones(6, 4, 1, 1)), torch.ones(6)),
            r"conv_cat: kernel is \(1, 1, 1, 4, 64\) .* makes of \(M, 5, 1, 1\), and \(M,\)",
        ),
        (lambda: ops.overlay_crop(IMAGES, torch.ones(4, 2, 1, 1).double(), YX, YX, (1, 1)), r"expected \(1, C, H, W\)"),
        (
            lambda: ops.conv_crops(MAPS, ops.packed_kernel(WEIGHT), torch.ones(6), dilation=(1, -9)),
            r"stride is \(1, 1\) and dilation \(1, -9\), expected \(height, width\) of at least 1",
        ),
        (
            lambda: ops.conv_crops(MAPS, ops.packed_kernel(WEIGHT), torch.ones(6), stride=(0, 1)),
            r"stride is \(0, 1\) and dilation \(1, 1\), expected",
        ),
        (
            lambda: ops.packed_kernel(WEIGHT, groups=3),
            r"weight is \(6, 2, 3, 3\) torch.float32 with groups=3, expected .* or \(C, 1, kh, kw\) with groups=C",
        ),
        (lambda: ops.packed_kernel(WEIGHT.double()), r"weight is \(6, 2, 3, 3\) torch.float64 with groups=1"),
        (
            lambda: ops.max_pool(IMAGES, (2, 5), (1, 1)),
            r"max_pool: x is \(3, 2, 5, 4\) torch.float64, kernel \(2, 5\), .* with room for a window",
        ),
        (lambda: ops.max_pool(IMAGES, (2, 2), (1, 1), (2, 0)), "a padding of at most half of the kernel"),
        (lambda: ops.max_pool(IMAGES, (2, 2), (1, 0)), r"stride \(1, 0\)"),
        (lambda: ops.max_pool(IMAGES.half(), (2, 2), (1, 1)), "torch.float16, kernel .* expected float32 or float64"),
        (lambda: ops.max_pool(IMAGES[..., :0], (1, 2), (1, 1), (0, 1)), "room for a window"),
        (lambda: ops.max_pool(IMAGES, (1, 2), (1, 1), (0, 1), (1, 5)), "no shorter than the dilation"),
        (lambda: ops.guided_relu(IMAGES, "guded"), "guided_relu: rule is 'guded', expected one of 'plain'"),  # type: ignore[arg-type]
        (lambda: ops.guided_relu_(IMAGES.clone(), "guded"), "guided_relu_: rule is 'guded', expected one of"),  # type: ignore[arg-type]
        (lambda: ops.guided_relu_(torch.ones(2).long()), r"guided_relu_: x is \(2,\) torch.int64, expected a float32"),
    ],
)
def test_bad_input_is_told_with_what_is_expected(call: Callable[[], Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


def test_compiled_without_a_break() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def sharpest(x: Tensor) -> Tensor:
        return ops.gram_matrix(ops.guided_relu(x, "guided"))

    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (compiled,) = torch.autograd.grad(sharpest(x).sum(), x)
    (plain,) = torch.autograd.grad(ops.gram_matrix(ops.guided_relu(x, "guided")).sum(), x)
    torch.testing.assert_close(compiled, plain)


COMPILED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "crop_patches": lambda x, yx: ops.crop_patches(x, torch.arange(3), yx, (3, 2)),
    "overlay_crop": lambda x, yx: ops.overlay_crop(x[:1], x[:, :, :2, :2], yx, yx - 1, (4, 3)),
    "changed_spans": lambda x, yx: ops.changed_spans(x[:1], x[:, :, :3], yx, torch.stack([yx, yx + 1], 2), 0.1),
    "occlude": lambda x, yx: ops.occlude(
        x, torch.cat([torch.arange(3)[:, None], yx[:, :1], yx[:, :1] + 2, yx[:, 1:], yx[:, 1:] + 1], 1), x[0]
    ),
}


@pytest.mark.parametrize("name", COMPILED)
def test_places_are_no_break_in_a_compiled_graph(name: str) -> None:
    call, yx = COMPILED[name], torch.tensor([[0, 0], [1, 2], [2, 3]])
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(IMAGES, yx), call(IMAGES, yx))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own jvp calls it
@pytest.mark.parametrize("name", ["gram_matrix", "guided_relu", "crop_patches"])
def test_derivatives_in_forward_mode_are_refused_and_not_zero(name: str) -> None:
    call, x = DIFFERENTIABLE[name], IMAGES
    with pytest.raises(NotImplementedError, match=f"{name}.*no forward-mode derivative.*reverse mode"):
        torch.func.jvp(call, (x,), (x,))
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jacfwd(call)(x)
    with torch.autograd.forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            call(torch.autograd.forward_ad.make_dual(x, x))
        assert torch.equal(call(x), call(x.clone()))


def test_what_has_no_gradient_says_so() -> None:
    images = torch.ones(1, 1, 2, 2, requires_grad=True)
    made = ops.occlude(images, torch.tensor([[0, 0, 1, 0, 1]]), torch.zeros(1, 1, 1))
    with pytest.raises(RuntimeError, match="no autograd formula"):
        made.sum().backward()


class _Crops(torch.nn.Module):
    def forward(self, images: Tensor, index: Tensor, windows: Tensor, yx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        covered = ops.occlude(images, windows, torch.zeros(3, 1, 1))
        laid = ops.overlay_crop(images[:1], images[:1, :, :2, :2], yx, yx, (4, 4))
        return ops.crop_patches(images, index, yx, (4, 4)), covered, laid


def test_an_exported_graph_reads_nothing_outside_of_the_images() -> None:
    images, index, windows = torch.randn(2, 3, 8, 8), torch.tensor([0]), torch.tensor([[0, 1, 2, 3, 4]])
    yx = torch.tensor([[1, 2]])
    made = torch.export.export(_Crops(), (images, index, windows, yx)).module()
    for got, expected in zip(made(images, index, windows, yx), _Crops()(images, index, windows, yx), strict=True):
        assert torch.equal(got, expected)
    with pytest.raises((RuntimeError, IndexError), match=r"index|out of"):
        made(images, index + 100_000_000, windows, yx)
    if has_kernel("occlude", "CPU"):  # without it nothing reads memory by itself
        with pytest.raises(RuntimeError, match="window 0 lies outside"):
            made(images, index, windows + 100_000_000, yx)
        with pytest.raises(RuntimeError, match="row and column 0 lie too far away"):
            made(images, index, windows, yx + 2**32)


def test_traced_on_tensors_without_values() -> None:
    with FakeTensorMode():
        images, index, yx = (
            torch.empty(2, 3, 8, 8),
            torch.zeros(4, dtype=torch.long),
            torch.zeros(4, 2, dtype=torch.long),
        )
        assert ops.crop_patches(images, index, yx, (3, 2)).shape == (4, 3, 3, 2)
        windows, baseline = torch.zeros(4, 5, dtype=torch.long), torch.zeros(3, 1, 1)
        assert ops.occlude(images, windows, baseline).shape == (4, 3, 8, 8)
        draws, weights = torch.zeros(4, dtype=torch.float64), torch.ones(4)
        assert ops.grow_texture(images[0], yx.expand(5, 4, 2)[..., 0], index, draws, yx, weights).shape == (5, 4)
    assert ops.gram_matrix(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 3, 3)


def test_autocast_changes_no_precision() -> None:
    x = torch.randn(2, 60, 9, 9).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        made = ops.gram_matrix(x)
        (gradient,) = torch.autograd.grad(made.sum(), x)
    plain = ops.gram_matrix(x)
    assert torch.equal(made, plain)
    assert torch.equal(gradient, torch.autograd.grad(plain.sum(), x)[0])


def test_an_empty_result_lies_as_torch_would_lay_it() -> None:
    call = (torch.empty(1, 3, 0, 4), torch.tensor([[0, 0, 0, 1, 2]]), torch.zeros(3, 1, 1), True)
    torch.library.opcheck(torch.ops.cnnviz.occlude.default, call)
