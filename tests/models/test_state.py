"""Stamp, fingerprint and digest change when the weights do, and only then."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnviz.models import digest, fingerprint
from cnnviz.models.state import _stamp, named_tensors, stamp
from cnnviz.ops._native import host

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int64,
    torch.bool,
    torch.complex64,
]
# Around the edges of the 4,072-byte rows in which large tensors are summed.
SIZES = [0, 1, 2, 3, 7, 8, 9, 509, 1017, 1018, 1019, 2036, 4072, 4073, 10_007]


def numbers(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(0, 2 if dtype == torch.bool else 100, (size,)).to(dtype)


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))


def test_equal_tuples_and_numbers_of_any_class_leave_the_stamp_as_it_is(net: nn.Module) -> None:
    net.size, net.kind = torch.Size((3, 4)), type("Kind", (int,), {})(7)
    before = stamp(net)
    net.size, net.kind = torch.Size((3, 4)), type("Kind", (int,), {})(7)
    assert stamp(net) == before
    net.size = torch.Size((3, 5))
    assert stamp(net) != before


# ---------------------------------------------------------------- fingerprints of tensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_equal_tensors_have_equal_fingerprints(size: int, dtype: torch.dtype) -> None:
    tensor = numbers(size, dtype)
    assert re.fullmatch(r"[0-9a-f]{32}", fingerprint(tensor))
    assert fingerprint(tensor) == fingerprint(tensor.clone())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [size for size in SIZES if size])
def test_any_changed_element_changes_the_fingerprint(size: int, dtype: torch.dtype) -> None:
    tensor = numbers(size, dtype)
    before = fingerprint(tensor)
    for place in {0, size // 2, size - 1}:
        changed = tensor.clone()
        changed[place] = ~changed[place] if dtype == torch.bool else changed[place] + 1
        assert fingerprint(changed) != before


@settings(max_examples=100)
@given(st.integers(0, 3999), st.integers(0, 3999), st.integers(0, 2**32 - 1))
def test_swapped_elements_change_the_fingerprint(first: int, second: int, seed: int) -> None:
    tensor = torch.rand(4000, generator=torch.Generator().manual_seed(seed))
    swapped = tensor.clone()
    swapped[[first, second]] = tensor[[second, first]]
    assert (fingerprint(swapped) == fingerprint(tensor)) == bool(tensor[first] == tensor[second])


def test_signs_of_zero_and_bits_of_nan_count() -> None:
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))
    assert fingerprint(torch.tensor([float("nan")])) == fingerprint(torch.tensor([float("nan")]))


def test_shape_and_dtype_count() -> None:
    tensor = torch.zeros(6)
    others = [tensor, tensor.reshape(2, 3), tensor.reshape(3, 2), tensor.int(), torch.zeros(7), torch.zeros(12).half()]
    assert len({fingerprint(other) for other in others}) == len(others)


def test_empty_tensors_are_told_apart_by_shape() -> None:
    assert fingerprint(torch.zeros(0, 3)) != fingerprint(torch.zeros(3, 0))
    assert fingerprint() != fingerprint(torch.zeros(0))


def test_order_and_division_of_tensors_count() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    assert len({fingerprint(a, b), fingerprint(b, a), fingerprint(torch.cat([a, b])), fingerprint(a)}) == 4


def test_scalars_have_fingerprints() -> None:
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor(2.0))


def inference_copy(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed twice": lambda t: t.t().contiguous().t(),
    "every second": lambda t: torch.stack([t, t * 2], -1)[..., 0],
    "behind an odd offset": lambda t: torch.cat([torch.zeros(1), t.flatten()])[1:].reshape(t.shape),
    "asking for gradients": lambda t: t.clone().requires_grad_(),
    "a parameter": nn.Parameter,
    "in inference mode": inference_copy,
}


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(3, 5), (40, 33)])
def test_layout_does_not_count(lay: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> None:
    tensor = torch.rand(shape)
    assert fingerprint(lay(tensor)) == fingerprint(tensor)


@pytest.mark.parametrize("offset", range(9))
def test_bytes_at_any_address_are_taken(offset: int) -> None:
    raw = torch.randint(0, 256, (9000,), dtype=torch.uint8)
    assert fingerprint(raw[offset:]) == fingerprint(raw[offset:].clone())


def test_number_of_threads_does_not_count() -> None:
    tensor = torch.rand(3_000_000)
    before, threads = fingerprint(tensor), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert fingerprint(tensor) == before
    finally:
        torch.set_num_threads(threads)


def test_fingerprint_is_the_same_in_every_process_and_version() -> None:
    # Written into provenance: a change makes old results look as if they came from other weights.
    assert fingerprint(torch.arange(5000, dtype=torch.float32)) == "598b4aafc64e0444bd461d26f82f93c7"


# ---------------------------------------------------------------- digests of models


def test_digest_is_the_same_for_the_same_weights(net: nn.Module) -> None:
    twin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
    assert digest(twin) != digest(net)
    twin.load_state_dict(net.state_dict())
    assert digest(twin) == digest(net)


def test_digest_of_every_weight_and_buffer_counts(net: nn.Module) -> None:
    seen = {digest(net)}
    for _, tensor in named_tensors(net):
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(digest(net))
    assert len(seen) == 1 + len(list(named_tensors(net)))


def test_digest_does_not_depend_on_the_order_of_modules() -> None:
    a, b = nn.Conv2d(3, 4, 1), nn.Linear(2, 2)
    assert digest(nn.ModuleDict({"a": a, "b": b})) == digest(nn.ModuleDict({"b": b, "a": a}))


def test_digest_depends_on_names_dtype_and_shape() -> None:
    weight = torch.zeros(2, 3)
    made = []
    for name, value in (("w", weight), ("v", weight), ("w", weight.t()), ("w", weight.half()), ("w", weight[:1])):
        net = nn.Module()
        net.register_buffer(name, value)
        made.append(digest(net))
    assert len(set(made)) == len(made)


def test_digest_is_the_sha256_that_is_documented() -> None:
    net = nn.Module()
    net.register_buffer("b", torch.tensor([1.0, 2.0]))
    net.register_parameter("a", nn.Parameter(torch.zeros(0, 3)))
    expected = hashlib.sha256(b"a torch.float32 (0, 3)\n" + b"b torch.float32 (2,)\n" + net.b.numpy().tobytes())
    assert digest(net) == expected.hexdigest()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digest_takes_every_dtype(dtype: torch.dtype) -> None:
    net = nn.Module()
    net.register_buffer("b", numbers(7, dtype))
    before = digest(net)
    net.b = numbers(7, dtype).roll(1).logical_not().to(dtype)
    assert digest(net) != before


def test_digest_looks_inside_of_wrappers(net: nn.Module) -> None:
    assert digest(nn.DataParallel(net)) == digest(net)


# ---------------------------------------------------------------- stamps


def replace_parameter(net: nn.Module) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())


def step(net: nn.Module) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    optimiser.step()


@torch.no_grad()
def write(net: nn.Module) -> None:
    net[2].bias += 1


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "in place": write,
    "an optimiser's step": step,
    "training alone": lambda net: net(torch.rand(2, 3, 8, 8)),
    "other weights loaded": lambda net: net.load_state_dict(net.state_dict()),
    "another parameter": replace_parameter,
    "other data": lambda net: setattr(net[0].weight, "data", torch.zeros_like(net[0].weight)),
    "a buffer": lambda net: net[1].running_mean.add_(1),
    "another buffer": lambda net: setattr(net[1], "running_mean", torch.zeros(4)),
    "another module": lambda net: net.__setitem__(2, nn.Conv2d(4, 5, 1)),
    "a module more": lambda net: net.append(nn.ReLU()),
    "a module less": lambda net: net.__delitem__(2),
    "another dtype": lambda net: net.double(),
    "a private attribute": lambda net: setattr(net[1], "_scale", 2.0),
    "a module once more": lambda net: net.append(net[2]),
    "another class": lambda net: setattr(net[1], "__class__", type("Other", (nn.BatchNorm2d,), {})),
    "another order": lambda net: net._modules.update({"0": net[2], "2": net[0]}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_stamp_changes_with(net: nn.Module, change: Callable[[nn.Module], object]) -> None:
    before = stamp(net)
    change(net)
    assert stamp(net) != before


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "an object": (lambda: SimpleNamespace(scale=1.0), lambda held: setattr(held, "scale", 2.0)),
    "within a dictionary": (lambda: {"head": {"scale": 1.0}}, lambda held: held["head"].update(scale=2.0)),
    "within a list": (lambda: [[1.0], (2, [3.0])], lambda held: held[1][1].append(4)),
    "a tensor within": (lambda: {"a": [torch.zeros(2)]}, lambda held: held["a"][0].add_(1)),
    "a generator": (lambda: torch.Generator().manual_seed(1), lambda held: torch.rand(1, generator=held)),
}


@pytest.mark.parametrize("name", HELD)
def test_stamp_changes_with_what_an_attribute_holds(net: nn.Module, name: str) -> None:
    make, change = HELD[name]
    net.held = make()
    before = stamp(net)
    assert stamp(net) == before
    change(net.held)
    assert stamp(net) != before


def test_stamp_takes_what_holds_itself_or_far_too_much(net: nn.Module) -> None:
    net.held = [{}]
    net.held[0]["self"] = net.held
    net.other = SimpleNamespace(net=net, log=logging.getLogger("cnnviz"), kind=nn.Module, module=torch)
    net.many = [[number] for number in range(100_000)]
    before = stamp(net)
    assert stamp(net) == before
    net.held[0]["more"] = 1
    assert stamp(net) != before


USES: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda net: None,
    "a forward pass": lambda net: net.eval()(torch.rand(2, 3, 8, 8)),
    "gradients": lambda net: net.eval()(torch.rand(2, 3, 8, 8)).sum().backward(),
    "freezing": lambda net: net.requires_grad_(False),
    "a hook": lambda net: net.register_forward_hook(lambda *_: None),
    "compiling": lambda net: net.compile(),
    "reading": lambda net: (fingerprint(*net.parameters()), digest(net), net.state_dict()),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_stamp_stays_with(net: nn.Module, use: Callable[[nn.Module], object]) -> None:
    before = stamp(net)
    use(net)
    assert stamp(net) == before


@pytest.mark.skipif(host() is None, reason="there is no native code")
def test_stamps_by_native_code_and_by_python_are_equal(net: nn.Module) -> None:
    net.append(net[0])  # twice the same
    net.append(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Dropout(0.25)))
    net.register_module("none", None)
    with torch.inference_mode():
        net.register_buffer("mean", torch.zeros(2))
    net.kept = [net[1].weight, {"scale": 2}, {"a", "b"}, (1, (2.5, "x")), (True, None), torch.Size((3, 4)), -0.5, ""]
    for at, value in enumerate(net.kept):
        setattr(net, f"kept_{at}", value)
    vars(net).update({"": 1, "ñ": 2, "training_too": 3})
    assert stamp(net) == _stamp(net)
    assert len(stamp(net)) > 60
    net.training_too = 4
    assert stamp(net) == _stamp(net)


def test_stamp_takes_inference_tensors_and_missing_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
    with torch.inference_mode():
        net.register_buffer("mean", torch.zeros(2))
    before = stamp(net)
    assert hash(before) == hash(stamp(net))
    net.mean = torch.zeros(2)
    assert stamp(net) != before
