"""Races: contenders take turns in one process, warm, on the same inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from cnnviz import ops

Call = Callable[[], Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"])
    parser.addoption("--quick", action="store_true", help="a few rounds, to see that everything runs")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    chosen: str = request.config.getoption("--device")
    told = ops.status()[chosen]
    assert told.startswith("native"), f"these measure native code: {told}"
    return chosen


@dataclass(frozen=True)
class Ceiling:
    """What the machine does at best: so much work in one call."""

    name: str
    call: Call
    work: float


@dataclass
class Race:
    """Times our call in turns with one or more others, and notes how they compare.

    Attributes:
        rounds: how often each is timed.
        warm: rounds before these.
        prepared: run each call once more just before it is timed, so that what it finds in the caches is what it left
            there itself; for calls of seconds that does not matter.
    """

    benchmark: BenchmarkFixture
    device: str
    rounds: int
    case: str
    quick: bool
    warm: int = 3
    prepared: bool = True

    def __call__(
        self, ours: Call, theirs: Mapping[str, Call], *, work: float = 0, ceiling: Ceiling | None = None
    ) -> None:
        """Race `ours`, which does so much work in the ceiling's unit, against others, by what they are called."""
        others = [*theirs.values(), *([ceiling.call] if ceiling else [])]
        seconds: list[list[float]] = [[] for _ in others]

        def take_turns() -> None:
            """Time the others and make ready for ours."""
            for call, noted in zip(others, seconds, strict=True):
                if self.prepared:
                    self._finish(call)
                begun = time.perf_counter()
                self._finish(call)
                noted.append(time.perf_counter() - begun)
            if self.prepared:
                self._finish(ours)

        self.benchmark.pedantic(
            self._finish, args=(ours,), setup=take_turns, rounds=self.rounds, warmup_rounds=self.warm, iterations=1
        )
        mine = self.benchmark.stats.stats.median
        # The warm-up's rounds came first.
        kept = [noted[-self.rounds :] for noted in seconds]
        medians = [statistics.median(noted) for noted in kept]
        beside = [
            {"expression": name, "median": median, "spread": _spread(noted), "times": median / mine}
            for name, median, noted in zip(theirs, medians, kept, strict=False)
        ]
        self.benchmark.extra_info.update(case=self.case, beside=beside)
        if ceiling:
            best = ceiling.work / medians[-1]
            self.benchmark.extra_info.update(ceiling=ceiling.name, best=best, share=work / mine / best)

    def _finish(self, call: Call) -> None:
        call()
        if self.device == "cuda":
            torch.cuda.synchronize()


def _spread(seconds: list[float]) -> float:
    low, _, high = statistics.quantiles(seconds, n=4)
    return high - low


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, device: str) -> Race:
    quick = request.config.getoption("--quick")
    return Race(benchmark, device, 3 if quick else 41, request.node.callspec.id, quick)


@pytest.fixture(scope="session")
def copy(device: str) -> Callable[[int], Ceiling]:
    """A copy into memory that is there already, which moves so many bytes: half of them read, half written."""

    def of(moved: int) -> Ceiling:
        source = torch.zeros(moved // 2, dtype=torch.uint8, device=device)
        target = torch.ones_like(source)
        return Ceiling("copy", lambda: target.copy_(source), moved)

    return of


@pytest.fixture(scope="session")
def product(device: str) -> Callable[[torch.dtype], Ceiling]:
    """A product of two large square matrices, in multiplications and additions."""

    def of(dtype: torch.dtype) -> Ceiling:
        side = 8192 if device == "cuda" else 2048
        lacking = [torch.float16, *[torch.bfloat16] * (torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"))]
        if device == "cpu" and dtype in lacking:
            side = 512  # a larger one takes PyTorch half a minute
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return Ceiling("product", lambda: a @ b, 2 * side**3)

    return of
