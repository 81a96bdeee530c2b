"""The door to native code: what is loaded, what takes its place, and that nobody can tell but by speed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cnnviz
from cnnviz import ops
from cnnviz.ops import _native

from .drawn import LEVELS, has_kernel

OPERATORS = [
    "changed_spans",
    "conv_cat",
    "conv_crops",
    "crop_patches",
    "crop_patches_backward",
    "gram_matrix",
    "grow_texture",
    "guided_relu",
    "guided_relu_backward",
    "occlude",
    "overlay_cat",
    "overlay_crop",
    "winograd_crops",
    "winograd_kernel",
]
OFF = os.environ.get("CNNVIZ_NATIVE") == "0"


@pytest.mark.parametrize("device", ["CPU", "CUDA"])
def test_status_tells_which_kernels_are_in_use(device: str) -> None:
    told = ops.status()[device.lower()]
    assert told.startswith("native (") == has_kernel("occlude", device)
    # Without AVX2 a processor multiplies by PyTorch; a GPU has a library for that, and nothing for pixel after pixel.
    own = {"CPU": ("gram_matrix",), "CUDA": ("changed_spans", "grow_texture", "overlay_cat")}[device]
    without = (*own, "conv_cat", "conv_crops", "winograd_crops", "winograd_kernel")
    needed = [operator for operator in OPERATORS if operator not in without]
    assert all(has_kernel(operator, device) == told.startswith("native") for operator in needed)


@pytest.mark.skipif(os.environ.get("CNNVIZ_REQUIRE_NATIVE") != "1", reason="only where native code is required")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_native_code_is_there_where_it_is_required(device: str) -> None:
    told = ops.status()[device]
    assert told == "PyTorch: switched off by CNNVIZ_NATIVE=0" if OFF else told.startswith("native ("), told


def _elsewhere(code: str, **environment: str) -> str:
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


RESULTS = """
import json, torch
from cnnviz import ops
x = torch.randn(2, 70, 9, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
yx, index = torch.tensor([[-2, 3], [5, 7]]), torch.tensor([1, 0])
made = [
    ops.gram_matrix(x),
    torch.autograd.grad(ops.guided_relu(x).square().sum(), x)[0],
    ops.occlude(x.detach(), torch.tensor([[1, 2, 4, 3, 9]]), torch.ones(70, 1, 1), channels_last=True),
    torch.autograd.grad(ops.crop_patches(x, index, yx, (5, 6)).square().sum(), x)[0],
    ops.overlay_crop(x[:1].detach(), x[:, :, :3, :4].detach(), yx, yx - 1, (6, 6), pad=1.0),
    ops.grow_texture(x[0].detach(), index.expand(3, 2), index, index.double() / 3, yx, x[1, 0, 0, :2].detach().abs()),
]
errors = []
for call in (
    lambda: ops.crop_patches(x, index + 1, yx, (5, 6)),
    lambda: ops.occlude(x, torch.tensor([[0, 0, 1, 0, 1], [1, 2, 10, 3, 9], [3, 0, 0, 0, 0]]), torch.ones(1, 1, 1)),
):
    try:
        call()
    except ValueError as error:
        errors.append(str(error))
print(json.dumps([ops.status()["cpu"], errors, [m.double().flatten().tolist() for m in made]]))
"""


def test_without_native_code_the_results_and_the_messages_are_the_same() -> None:
    here, there = (json.loads(_elsewhere(RESULTS, CNNVIZ_NATIVE=switch)) for switch in ("1", "0"))
    assert there[0] == "PyTorch: switched off by CNNVIZ_NATIVE=0"
    assert here[1] == there[1]
    assert len(here[1]) == 2
    gram, *moved = zip(here[2], there[2], strict=True)
    torch.testing.assert_close(*map(torch.tensor, gram), rtol=1e-5, atol=1e-7)
    assert all(a == b for a, b in moved)


BLOCKS = """
import torch
from cnnviz import ops
worst = 0.0
for shape in [(1, 3, 5, 7), (2, 64, 30, 30), (1, 100, 17, 40), (2, 200, 12, 23), (2, 300, 5, 5), (1, 520, 9, 9)]:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            x = x.contiguous(memory_format=layout)
            flat = x.double().flatten(2)
            off = (ops.gram_matrix(x, normalise=False).double() - flat @ flat.mT).abs().amax() / shape[2] / shape[3]
            # Rounding errors of a sum grow with the root of its length.
            worst = max(worst, float(off) / torch.finfo(dtype).eps / (4 + flat.shape[2] ** 0.5))
print(torch._C._dispatch_has_kernel_for_dispatch_key("cnnviz::gram_matrix", "CPU"), worst)
"""


@pytest.mark.parametrize("instructions", LEVELS)
def test_gram_matrices_on_lesser_processors(instructions: str) -> None:
    native, worst = _elsewhere(BLOCKS, ATEN_CPU_CAPABILITY=instructions).split()
    if has_kernel("gram_matrix", "CPU"):
        assert (native == "True") == (instructions != "default")
    assert float(worst) < 1


ROWS = """
import torch
from cnnviz import ops
from tests.reference import ops as twin
generator = torch.Generator().manual_seed(3)
def places(low, high):
    return torch.randint(low, high, (7, 2), generator=generator)
for dtype in (torch.float16, torch.float32, torch.float64):
    for width in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65):
        images = torch.randn(2, 3, 6, 80, generator=generator).to(dtype)
        patch = torch.randn(7, 3, 3, max(1, width // 2), generator=generator).to(dtype)
        size, index, corner, at = (5, width), torch.arange(7) % 2, places(-9, 60), places(-9, 40)
        assert torch.equal(ops.crop_patches(images, index, corner, size, pad=2.5),
                           twin.crop_patches(images, index, corner, size, pad=2.5))
        assert torch.equal(ops.overlay_crop(images[:1], patch, at + 2, at, size, pad=2.5),
                           twin.overlay_crop(images[:1], patch, at + 2, at, size, pad=2.5))
"""


@pytest.mark.parametrize("instructions", LEVELS)
def test_rows_of_every_length_on_lesser_processors(instructions: str) -> None:
    _elsewhere(ROWS, ATEN_CPU_CAPABILITY=instructions)


CONVOLUTIONS = """
import torch
from torch.nn import functional
from cnnviz import ops
draws = torch.Generator().manual_seed(0)
ours, theirs = [], []  # how far from double precision, by the root of the number of products
def measure(found, x, weight, bias, *settings):
    precise = functional.conv2d(x.double(), weight.double(), bias.double(), *settings)
    for errors, made in ((ours, found), (theirs, functional.conv2d(x, weight, bias, *settings))):
        errors.append(float((made.double() - precise).abs().max()) / weight[0].numel() ** 0.5)
for channels, made in ((3, 1), (20, 24), (64, 70), (100, 130), (40, None)):
    groups, count = (channels, channels) if made is None else (1, made)
    x = torch.randn(3, channels, 9, 8, generator=draws)
    weight, bias = (torch.randn(shape, generator=draws) for shape in ((count, channels // groups, 3, 2), (count,)))
    found = ops.conv_crops(x, ops.packed_kernel(weight, groups), bias, stride=(1, 2), dilation=(2, 1))
    measure(found, x, weight, bias, (1, 2), 0, (2, 1), groups)
    if groups == 1:
        weight = torch.randn(count, channels, 3, 3, generator=draws)
        measure(ops.winograd_crops(x, ops.winograd_kernel(weight), bias), x, weight, bias)
print(ops.conv_crops_is_native(), max(ours), max(theirs))
"""


@pytest.mark.parametrize("instructions", LEVELS)
def test_convolutions_on_lesser_processors(instructions: str) -> None:
    native, ours, theirs = _elsewhere(CONVOLUTIONS, ATEN_CPU_CAPABILITY=instructions).split()
    if has_kernel("conv_crops", "CPU"):
        assert (native == "True") == (instructions != "default")
    # Without a kernel it is PyTorch that sums up.
    assert float(ours) < (4e-6 if native == "True" else 2 * float(theirs))


MISSING = """
import sys
for name in ("cnnviz._C", "cnnviz._C_cuda", "cnnviz._host"):
    sys.modules[name] = None
import torch
from cnnviz import ops
print(ops.status()["cpu"])
print(ops.gram_matrix(torch.ones(1, 1, 2, 2)).item())
"""


def test_a_missing_module_costs_no_more_than_speed() -> None:
    told, value = _elsewhere(MISSING).splitlines()
    assert told.startswith("PyTorch: ")
    assert float(value) == 1


def test_a_module_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"{name}: undefined symbol: torch_list_push_back")

    monkeypatch.delenv("CNNVIZ_NATIVE", raising=False)
    monkeypatch.setattr(_native.importlib, "import_module", fail)
    assert _native._load("_C") == "it does not load: cnnviz._C: undefined symbol: torch_list_push_back"


def test_cuda_kernels_are_compiled_for_the_architectures() -> None:
    libraries = list(Path(cnnviz.__file__).parent.glob("_C_cuda.*"))
    if not libraries:
        pytest.skip("CUDA kernels were not built")
    assert _compiled_for(libraries[0].read_bytes()) >= {("elf", 80), ("elf", 90), ("ptx", 90)}


def _compiled_for(library: bytes) -> set[tuple[str, int]]:
    """Read what nvcc packed: containers begin with a magic number; kind, size and architecture lead each entry."""
    found, place = set(), 0
    while (place := library.find(struct.pack("<I", 0xBA55ED50), place)) >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", library, place)
        entry, place = place + header, place + header + size
        while entry < place:
            kind, _, header, size = struct.unpack_from("<HHIQ", library, entry)
            (architecture,) = struct.unpack_from("<I", library, entry + 28)
            found.add(({1: "ptx", 2: "elf"}[kind], architecture))
            entry += header + size
    return found
