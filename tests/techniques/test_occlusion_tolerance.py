"""With a tolerance few windows are run: the ones that the slow twin would run, with its map."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import cnnviz
from cnnviz.data import demo_picture
from tests.reference.occlusion import coarse_to_fine, occlusion, windows
from tests.techniques.networks import images, network
from tests.techniques.test_occlusion import Sum

Span = tuple[int, int]


def explained(x: Tensor, model: Any = None, **arguments: Any) -> cnnviz.Heatmap:
    made = cnnviz.explain(model or Sum(), x, "occlusion", **arguments)
    assert isinstance(made, cnnviz.Heatmap)
    return made


def smooth(height: int, width: int, seed: int) -> Tensor:
    coarse = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    window=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tolerance=st.floats(0.001, 0.9),
    seed=st.integers(0, 9),
)
def test_the_twin_runs_the_same_windows(
    height: int, width: int, window: tuple[int, int], stride: tuple[int, int], tolerance: float, seed: int
) -> None:
    x = smooth(height, width, seed)
    made = explained(x, window=window, stride=stride, target=0, tolerance=tolerance, method="dense")

    # A window's drop is the sum of what it covers, so what the twin looks at is known.
    rows, columns = windows(height, window[0], stride[0]), windows(width, window[1], stride[1])
    drops = torch.tensor(
        [[float(x[0, 0, slice(*row), slice(*column)].sum()) for column in columns] for row in rows], dtype=torch.float64
    )
    apart = [side / step for side, step in zip(window, stride, strict=True)]
    steps = tuple(4 if times >= 16 else 2 if times >= 8 else 1 for times in apart)
    filled, run = coarse_to_fine(drops, set(), (steps[0], steps[1]), tolerance)
    assert made.draws is not None
    # Corners that differ by as much as the tolerance allows may fall to either side.
    assert abs(int(made.draws[0]) - len(run)) <= 0.02 * drops.numel() + 1
    if int(made.draws[0]) == len(run):
        expected = spread(filled, rows, columns, (height, width))
        assert float((made.values[0, 0] - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


def spread(drops: Tensor, rows: list[Span], columns: list[Span], size: tuple[int, int]) -> Tensor:
    """Return the mean of the drops of the windows that cover each pixel."""
    total, covering = torch.zeros(size, dtype=drops.dtype), torch.zeros(size)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            total[slice(*row), slice(*column)] += drops[i, j]
            covering[slice(*row), slice(*column)] += 1
    return total / covering.clamp(min=1)


@pytest.mark.parametrize("method", ["dense", "incremental"])
def test_no_tolerance_to_speak_of_gives_the_exact_map(method: str) -> None:
    x, net = images(torch.float64), network("squeezenet1_1", torch.float64)
    given = {"window": 16, "stride": 8, "target": [3, 7], "method": method}
    exact, made = explained(x, net, **given), explained(x, net, tolerance=1e-12, **given)
    assert exact.draws is None
    assert made.draws is not None
    assert float((made.values - exact.values).abs().max()) <= 1e-9 * float(exact.values.abs().max())


def test_a_plane_needs_the_first_windows_alone() -> None:
    """Between the corners of a plane, interpolation is exact; the tolerance is large enough for it not to look."""
    x = torch.arange(32.0, dtype=torch.float64).expand(1, 1, 32, 32)
    made = explained(x, window=8, stride=1, target=0, tolerance=0.5)
    expected = occlusion(lambda image, _: image.sum(), x, (8, 8), (1, 1), torch.zeros(1, 32, 32))
    assert float((made.values - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    assert made.draws is not None
    assert made.draws.tolist() == [13 * 13], "of 25 x 25 every second"


@pytest.mark.parametrize("method", ["dense", "incremental"])
def test_each_target_and_image_runs_its_own(method: str) -> None:
    x, net = images(torch.float64, count=2), network("squeezenet1_1", torch.float64)
    given: dict[str, Any] = {"window": 24, "stride": 3, "tolerance": 0.5, "method": method}
    together = explained(x, net, target=[[3, 7], [5, 2]], **given)
    assert together.draws is not None
    for row, (i, target) in enumerate([(0, 3), (0, 7), (1, 5), (1, 2)]):
        alone = explained(x[i : i + 1], net, target=target, **given)
        difference = (together.values[row] - alone.values[0]).abs().max()
        assert float(difference) <= 1e-9 * float(alone.values.abs().max())
        assert alone.draws is not None
        assert together.draws[row] == alone.draws[0] < 15 * 15


@functools.cache
def cat(tolerance: float | None, method: str) -> cnnviz.Heatmap:
    model = cnnviz.load_model()
    x = model.prepare([demo_picture()])
    return explained(x, model, window=48, stride=6, target=285, tolerance=tolerance, method=method)


@pytest.mark.parametrize("method", ["dense", "incremental"])
def test_a_photograph_is_nearly_as_it_was_for_a_fraction_of_the_windows(method: str) -> None:
    made, expected = cat(0.3, method), cat(None, "auto").values[0, 0].numpy()
    alike = structural_similarity(
        made.values[0, 0].numpy(), expected, data_range=float(expected.max() - expected.min()), gaussian_weights=True
    )
    assert made.draws is not None
    assert int(made.draws[0]) < 31 * 31 / 2
    assert alike > 0.9


@pytest.mark.parametrize("tolerance", [0, 1, -0.5, "much"])
def test_no_share(tolerance: Any) -> None:
    with pytest.raises(cnnviz.OptionError, match="tolerance"):
        explained(smooth(16, 16, 0), window=8, stride=4, tolerance=tolerance)
