"""Batches follow from the budget, and running out of memory changes how it is computed, not what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnviz import Explainer, OptionError, Request, Technique, explain
from cnnviz.memory import DEFAULT, Batches, batch_size, parse_memory, ran_out
from cnnviz.models import Survey, survey

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MIB, GIB = 1 << 20, 1 << 30


# ---------------------------------------------------------------- the budget in bytes


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (None, GIB),
        (MIB, MIB),
        (5_000_000, 5_000_000),
        ("2GiB", 2 * GIB),
        ("2gib", 2 * GIB),
        ("2 GiB", 2 * GIB),
        (" 2GiB ", 2 * GIB),
        ("2g", 2 * GIB),
        ("2GB", 2 * 10**9),
        ("500 MB", 500 * 10**6),
        ("500MiB", 500 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("2048k", 2 * MIB),
        ("1TiB", 1024 * GIB),
        ("5000000", 5_000_000),
        ("5000000B", 5_000_000),
    ],
)
def test_budget_is_read(memory: int | str | None, expected: int) -> None:
    assert parse_memory(memory) == expected


@pytest.mark.parametrize(
    "memory",
    [
        0,
        -1,
        MIB - 1,
        "0",
        "-2GiB",
        "1023KiB",
        "2 apples",
        "GiB",
        "",
        "1e9",
        "2,5GiB",
        1e9,
        True,
        [GIB],
        "9" * 400,
        1 << 63,
    ],
)
def test_what_is_no_budget_is_told(memory: Any) -> None:
    with pytest.raises(OptionError, match=r"memory: got .*expected at least 1 MiB.*'2GiB'"):
        parse_memory(memory)


def test_default_is_the_same_on_every_machine() -> None:
    assert DEFAULT == GIB
    assert Explainer(nn.Flatten(), "saliency").memory == GIB


# ---------------------------------------------------------------- the size of a batch


def described(*, largest: int = 1000, working: int = 3000, kept: int = 10_000, weights: int = 0) -> Survey:
    return Survey((), None, None, largest=largest, working=working, kept=kept, weights=weights, draws=False, fixed=True)


def test_batch_fills_the_budget() -> None:
    assert batch_size(described(), 60_000, CUDA, backward=False) == 10
    assert batch_size(described(), 60_000, CUDA, backward=True) == 3


def test_batch_has_one_image_at_least() -> None:
    assert batch_size(described(), 1, CUDA, backward=True) == 1
    assert batch_size(described(largest=10**12), GIB, CPU, backward=False) == 1


def test_largest_tensor_of_a_batch_is_kept_small_on_a_cpu() -> None:
    size = batch_size(described(largest=MIB, working=1), 100 * GIB, CPU, backward=False)
    assert 16 <= size <= 32
    assert batch_size(described(largest=MIB, working=1), 100 * GIB, CUDA, backward=False) > 1000


def test_batch_grows_with_the_weights_that_it_reads_on_a_cpu() -> None:
    heavy = described(largest=16 * MIB, working=MIB, weights=512 * MIB)
    assert batch_size(heavy, GIB, CPU, backward=False) == 8
    assert batch_size(heavy, 8 * MIB, CPU, backward=False) == 4, "within the budget"


def test_weights_are_counted_once() -> None:
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    assert survey(net, torch.zeros(1, 8)).weights == 2 * 64 * 4
    net[1].weight = net[0].weight
    assert survey(net, torch.zeros(1, 8)).weights == 64 * 4


def test_network_without_operations_has_a_batch() -> None:
    assert batch_size(described(largest=0, working=0, kept=0), MIB, CPU, backward=True) >= 1


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(1, 10**8), st.integers(MIB, 10 * GIB))
def test_batch_grows_with_the_budget_and_stays_within_it(largest: int, working: int, kept: int, memory: int) -> None:
    about = described(largest=largest, working=working, kept=kept)
    for device in (CPU, CUDA):
        size = batch_size(about, memory, device, backward=True)
        assert size == 1 or size * (2 * working + kept) <= memory
        assert batch_size(about, 2 * memory, device, backward=True) >= size
        assert batch_size(about, memory, device, backward=False) >= size


def test_larger_images_make_smaller_batches() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    sizes = [batch_size(survey(net, torch.zeros(1, 3, s, s)), 8 * MIB, CUDA, backward=True) for s in (16, 32, 64)]
    assert sizes[0] > sizes[1] > sizes[2] >= 1


# ---------------------------------------------------------------- running out


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_errors_that_say_that_memory_ran_out(error: BaseException, expected: bool) -> None:
    assert ran_out(error) == expected


def test_allocation_that_fails_for_real_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out(caught.value)


@given(st.integers(0, 40), st.integers(1, 12))
def test_ranges_cover_everything_in_order(count: int, size: int) -> None:
    batches = Batches()
    parts = batches.run(count, size, lambda start, stop: (start, stop))
    assert [row for start, stop in parts for row in range(start, stop)] == list(range(count))
    assert all(stop - start <= size for start, stop in parts)
    assert batches.halvings == 0
    assert batches.sizes == {stop - start for start, stop in parts}


def limited(limit: int) -> Callable[[int, int], list[int]]:
    def work(start: int, stop: int) -> list[int]:
        if stop - start > limit:
            raise torch.OutOfMemoryError("simulated")
        return list(range(start, stop))

    return work


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_batches_are_halved_until_they_fit(count: int, size: int, limit: int) -> None:
    batches = Batches()
    parts = batches.run(count, size, limited(limit))
    assert [row for part in parts for row in part] == list(range(count))
    assert max(batches.sizes) <= limit
    assert (batches.halvings > 0) == (min(count, size) > limit)


def test_halving_is_remembered_for_later_runs() -> None:
    batches, tried = Batches(), []

    def work(start: int, stop: int) -> None:
        tried.append(stop - start)
        limited(3)(start, stop)

    batches.run(8, 8, work)
    batches.run(8, 8, work)
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert batches.halvings == 2


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="simulated"):
        Batches().run(8, 8, limited(0))


def test_other_errors_go_through_at_once() -> None:
    tried = []

    def work(start: int, stop: int) -> None:
        tried.append((start, stop))
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Batches().run(8, 8, work)
    assert tried == [(0, 8)]


# ---------------------------------------------------------------- in an explanation


class Net(nn.Module):
    """A network that runs out of memory beyond so many images at once; notes what it was tried with."""

    tried: ClassVar[list[int]] = []
    limit: ClassVar[int] = 10**9

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            Net.tried.append(len(x))
            if len(x) > Net.limit:
                raise torch.OutOfMemoryError("simulated")
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    Net.tried.clear()
    Net.limit = 10**9
    return Net().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, 3, 8, 8, dtype=torch.float64)


TECHNIQUES = {
    "saliency": {},
    "grad-cam": {"layer": "conv"},
    "guided-backprop": {},
    "activations": {"layer": "conv"},
    "occlusion": {"window": 4, "stride": 4},
}


@pytest.mark.parametrize(("technique", "options"), TECHNIQUES.items())
@pytest.mark.parametrize("limit", [1, 3])
def test_running_out_is_recorded_and_changes_nothing(
    net: nn.Module, x: Tensor, technique: str, options: dict[str, Any], limit: int
) -> None:
    expected = explain(net, x, technique, target=1, **options)
    assert expected.provenance.out_of_memory == 0
    Net.limit = limit
    got = explain(net, x, technique, target=1, **options)
    assert (got.values - expected.values).abs().max() <= 1e-9 * expected.values.abs().max()
    assert got.provenance.out_of_memory >= 1
    assert max(got.provenance.batch_sizes) <= limit


def test_batch_sizes_are_told(net: nn.Module, x: Tensor) -> None:
    Net.limit = 3
    assert explain(net, x, "saliency", target=1).provenance.batch_sizes == [3, 1]
    Net.limit = 2
    assert explain(net, x, "saliency", target=1).provenance.batch_sizes == [1]


def test_one_image_that_does_not_fit_is_told_and_leaves_the_model(net: nn.Module, x: Tensor) -> None:
    Net.limit = 0
    explainer = Explainer(net, "saliency")
    with pytest.raises(torch.OutOfMemoryError):
        explainer(x, 1)
    Net.limit = 10
    assert torch.isfinite(explainer(x, 1).values).all()


def test_small_budget_makes_small_batches_and_the_same_values(net: nn.Module) -> None:
    x = torch.rand(6, 3, 64, 64, dtype=torch.float64)
    small, large = (explain(net, x, "saliency", target=1, memory=memory) for memory in ("1MiB", "1GiB"))
    assert max(small.provenance.batch_sizes) < max(large.provenance.batch_sizes)
    assert small.provenance.memory == MIB
    assert (small.values - large.values).abs().max() <= 1e-9 * large.values.abs().max()


def test_same_call_makes_the_same_batches_and_bits(net: nn.Module, x: Tensor) -> None:
    first, second = (explain(net, x, "occlusion", target=1, window=4, stride=2) for _ in range(2))
    assert first.equals(second)


def test_sweep_runs_in_batches_of_the_budget(net: nn.Module) -> None:
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    explain(net, x, "occlusion", target=1, window=8, stride=2, memory="8MiB")
    about = survey(net, x)
    allowed = batch_size(about, 8 * MIB, CPU, backward=False)
    assert 1 < max(Net.tried) <= allowed


def test_progress_never_goes_back_when_memory_runs_out(net: nn.Module, x: Tensor) -> None:
    Net.limit = 3
    told: list[float] = []
    explain(net, x, "occlusion", target=1, window=4, stride=4, progress=lambda done, total: told.append(done / total))
    assert told == sorted(told)


def test_progress_never_goes_back_when_a_later_step_runs_out(net: nn.Module, x: Tensor) -> None:
    def late(request: Request, options: Any) -> Tensor:
        for step in range(4):
            if step == 2 and len(request.inputs) > 3:
                raise torch.OutOfMemoryError("simulated")
            request.progress(step + 1, 4)
        return request.inputs[:, :1]

    told: list[float] = []
    explain(net, x, Technique("late", late), progress=lambda done, total: told.append(done / total))
    assert told[-1] == 1
    assert told == sorted(told)
