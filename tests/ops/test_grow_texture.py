from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cnnviz import ops
from tests.reference import ops as twin

from .drawn import LEVELS, drawn


def around(radius: int) -> Tensor:
    """Return all places of a square but its middle, row by row."""
    side = torch.arange(-radius, radius + 1)
    every = torch.cartesian_prod(side, side)
    return every[(every != 0).any(1)]


@st.composite
def calls(draw: st.DrawFn) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Return arguments with any offsets, any pixels known, values that tie and values that do not."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    few = draw(st.booleans())

    def values(*shape: int) -> Tensor:
        made = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (torch.floor(made * 3) / 4 if few else made).to(dtype)

    def window() -> tuple[Tensor, Tensor]:
        offset = st.tuples(st.integers(-2, 2), st.integers(-2, 2))
        offsets = torch.tensor(draw(st.lists(offset, max_size=6)), dtype=torch.long).reshape(-1, 2)
        return offsets, values(len(offsets)) + 0.25

    rows, columns = draw(st.integers(5, 8)), draw(st.integers(5, 8))
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    sources = torch.randint(-1, rows * columns, (height, width), generator=generator)
    sources[torch.rand(height, width, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = -1
    count = draw(st.integers(0, 8))
    places = torch.randint(0, height * width, (count,), generator=generator)
    draws = torch.rand(count, generator=generator, dtype=torch.float64)
    channels = draw(st.integers(0, 4))
    sample = values(channels, rows, columns)
    if draw(st.booleans()):
        sample = sample.mT.contiguous().mT
    guide = None
    if draw(st.booleans()):
        depth = draw(st.sampled_from([1, channels]))
        guide = ops.Guide(values(depth, height, width), values(depth, rows, columns), *window())
    tolerance = draw(st.sampled_from([0.0, 0.1, 2.0]))
    return (sample, sources, places, draws, *window()), {
        "guide": guide,
        "tolerance": tolerance,
        "wrap": draw(st.booleans()),
    }


@drawn
@given(calls())
def test_any_offsets_around_any_canvas(call: tuple[tuple[Tensor, ...], dict[str, Any]]) -> None:
    arguments, options = call
    before = arguments[1].clone()
    made = ops.grow_texture(*arguments, **options)
    assert torch.equal(made, twin.grow_texture(*arguments, **options))
    assert torch.equal(arguments[1], before)


def grown(side: tuple[int, int], radius: int, dtype: torch.dtype, channels: int = 3, count: int = 12) -> Tensor:
    """Return a small canvas, the lower half of which is chosen from a large sample."""
    generator = torch.Generator().manual_seed(side[0])
    sample = torch.rand(channels, *side, generator=generator).to(dtype)
    smooth = torch.nn.functional.avg_pool2d(sample, 3, 1, 1)
    offsets = around(radius)
    weights = (1 + offsets.square().sum(1)).to(dtype).reciprocal()
    sources = torch.full((6, 7), -1)
    sources[:3] = torch.arange(21).reshape(3, 7) * 11 % (side[0] * side[1])
    draws = torch.rand(count, generator=generator, dtype=torch.float64)
    maps = torch.rand(channels, 6, 7, generator=generator).to(dtype)
    guide = ops.Guide(maps, smooth, offsets[:5] * 2, weights[:5])
    places = torch.arange(21, 21 + count)
    return ops.grow_texture(smooth, sources, places, draws, offsets, weights, guide=guide, tolerance=0.3)


CASES = [
    ((side, width), radius, dtype, channels)
    for side, width, radius, channels in [(9, 9, 2, 3), (12, 31, 1, 1), (20, 32, 2, 3), (11, 65, 3, 2), (40, 97, 2, 3)]
    for dtype in (torch.float32, torch.float64)
]

ELSEWHERE = """
from tests.ops.test_grow_texture import CASES, grown
print([grown(*case).tolist() for case in CASES])
"""


@pytest.mark.parametrize(
    "environment",
    [{"CNNVIZ_NATIVE": "0"}, *({"ATEN_CPU_CAPABILITY": level} for level in LEVELS)],
    ids=str,
)
def test_every_implementation_chooses_the_same(environment: dict[str, str]) -> None:
    told = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        env={**os.environ, "CNNVIZ_NATIVE": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.strip() == str([grown(*case).tolist() for case in CASES])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_choose_what_one_alone_does(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        made = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            made.append(grown((190, 210), 2, dtype, count=4))  # so large that threads share a search
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_draws_take_each_of_equals_and_zero_the_first() -> None:
    sample, sources = torch.zeros(1, 2, 3), torch.full((1, 1), -1)
    nothing = torch.empty(0, 2, dtype=torch.long), torch.empty(0)

    def taken(draw: float) -> int:
        places, draws = torch.zeros(1).long(), torch.tensor([draw], dtype=torch.float64)
        return int(ops.grow_texture(sample, sources, places, draws, *nothing))

    assert [taken((i + 0.5) / 6) for i in range(6)] == [0, 1, 2, 3, 4, 5]
    assert taken(0.0) == 0
    assert taken(1 - 2**-53) == 5


def test_numbers_out_of_range_are_all_equally_far() -> None:
    sample = torch.tensor([[[1e30, -1e30, 1e30, -1e30]]])
    sources, places = torch.tensor([[0, -1]]), torch.tensor([1])
    draws = torch.tensor([0.0], dtype=torch.float64)
    guide = ops.Guide(torch.zeros(1, 1, 2), sample, torch.zeros(1, 2).long(), torch.ones(1))
    made = ops.grow_texture(sample, sources, places, draws, torch.tensor([[0, -1]]), torch.ones(1), guide=guide)
    assert made.tolist() == [[0, 1]]


SAMPLE, SOURCES = torch.rand(3, 5, 6), torch.full((4, 4), -1)
PLACES, DRAWS = torch.tensor([0, 5]), torch.zeros(2, dtype=torch.float64)
OFFSETS, WEIGHTS = torch.tensor([[0, -1], [-2, 1]]), torch.ones(2)


def call(**changed: Any) -> Tensor:
    given = {"sample": SAMPLE, "sources": SOURCES, "places": PLACES, "draws": DRAWS}
    return ops.grow_texture(**{**given, "offsets": OFFSETS, "weights": WEIGHTS, **changed})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"sample": SAMPLE.half()},
            r"sample is \(3, 5, 6\) torch.float16, expected a float32 or float64 .* \(C, H, W\)",
        ),
        ({"sample": SAMPLE[0]}, r"sample is \(5, 6\) torch.float32"),
        ({"sample": SAMPLE / 0}, "sample has inf, expected finite numbers"),
        ({"sources": SOURCES.int()}, r"sources is .* torch.int32, expected an int64 tensor \(H, W\)"),
        ({"sources": SOURCES + 31}, r"sources\[0, 0\] is 30, expected -1 to 29"),
        ({"places": PLACES + 11}, r"places\[1\] is 16, expected 0 to 15"),
        ({"draws": DRAWS.float()}, r"draws is \(2,\) torch.float32, expected \(2\) torch.float64 on cpu"),
        ({"draws": DRAWS[:1]}, r"draws is \(1,\) torch.float64, expected \(2\)"),
        ({"draws": DRAWS + 1}, r"draws has 1.0, expected numbers in \[0, 1\)"),
        ({"offsets": OFFSETS[:, :1]}, r"offsets is \(2, 1\) .*, expected an int64 tensor \(T, 2\)"),
        ({"offsets": OFFSETS * 3}, r"sample is 5 x 6, expected at least 7 x 7, which the offsets reach over"),
        ({"weights": WEIGHTS.double()}, r"weights is \(2,\) torch.float64, expected \(2\) torch.float32"),
        ({"weights": WEIGHTS - 1}, "weights has 0.0, expected positive numbers"),
        ({"tolerance": -0.1}, "tolerance is -0.1, expected a number of at least 0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        (
            {"guide": ops.Guide(torch.ones(1, 4, 4), SAMPLE, OFFSETS, WEIGHTS)},
            r"guide.sample is \(3, 5, 6\) torch.float32, expected \(1, 5, 6\)",
        ),
        (
            {"guide": ops.Guide(torch.ones(1, 4, 5), SAMPLE[:1], OFFSETS, WEIGHTS)},
            r"guide.canvas is \(1, 4, 5\) torch.float32, expected \(G, 4, 4\)",
        ),
        (
            {"guide": ops.Guide(torch.ones(1, 4, 4), SAMPLE[:1], OFFSETS * 3, WEIGHTS)},
            r"sample is 5 x 6, expected at least 7 x 7",
        ),
    ],
)
def test_bad_input_is_told_with_what_is_expected(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call(**changed)


def test_good_input_is_taken() -> None:
    assert (call() >= 0).sum() == 2


class _Grown(torch.nn.Module):
    def forward(self, sample: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        return ops.grow_texture(sample, sources, places, DRAWS, OFFSETS, WEIGHTS)


def test_an_exported_graph_reads_nothing_outside() -> None:
    made = torch.export.export(_Grown(), (SAMPLE, SOURCES, PLACES)).module()
    assert torch.equal(made(SAMPLE, SOURCES, PLACES), call())
    for sources, places in ((SOURCES, PLACES + 10**8), (SOURCES + 10**8, PLACES)):
        with pytest.raises((RuntimeError, IndexError), match=r"outside|out of range|out of bounds"):
            made(SAMPLE, sources, places)
