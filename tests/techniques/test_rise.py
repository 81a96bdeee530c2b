from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz.metrics import measure
from tests.reference.rise import centred, masks, rise
from tests.techniques.measure import assert_same_map

SIZE = (20, 14)


class Seen(nn.Module):
    """Says how much of the upper left quarter shows, as log-probabilities of two classes."""

    def forward(self, x: Tensor) -> Tensor:
        share = x[:, :, :10, :7].mean((1, 2, 3)).clamp(0.01, 0.99)
        return torch.stack([share, 1 - share], 1).log()


def probability(image: Tensor) -> float:
    return float(Seen()(image[None]).softmax(1)[0, 0])


def explained(x: Tensor, **options: Any) -> cnnviz.Heatmap:
    made = cnnviz.explain(Seen(), x, "rise", target=0, seed=5, **options)
    assert isinstance(made, cnnviz.Heatmap)
    return made


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, *SIZE, dtype=torch.float64)


@pytest.mark.parametrize(("cells", "keep"), [((7, 7), 0.5), ((3, 5), 0.2)])
def test_rise_equals_its_twin(x: Tensor, cells: tuple[int, int], keep: float) -> None:
    shown = masks(40, cells, keep, SIZE, seed=5)
    expected = torch.stack([rise(shown, probability, image, keep) for image in x])[:, None]
    made = explained(x, masks=40, cells=cells, keep=keep)
    torch.testing.assert_close(made.values, expected, rtol=1e-9, atol=0)
    assert made.draws is not None
    assert made.draws.tolist() == [40, 40]
    assert made.scores is not None
    torch.testing.assert_close(made.scores, torch.tensor([probability(image) for image in x], dtype=torch.float64))


def test_the_error_is_that_of_the_mean(x: Tensor) -> None:
    shown = masks(60, (7, 7), 0.5, SIZE, seed=5)
    each = torch.stack([probability(x[0] * mask) * mask / 0.5 for mask in shown])
    made = explained(x[:1], masks=60)
    assert made.errors is not None
    torch.testing.assert_close(made.errors[0, 0], each.std(0) / 60**0.5, rtol=1e-9, atol=0)


def test_with_a_tolerance_scores_are_centred(x: Tensor) -> None:
    shown = masks(50, (7, 7), 0.5, SIZE, seed=5)
    scores = [probability(x[0] * mask) for mask in shown]
    made = explained(x[:1], masks=50, tolerance=1e-6)
    torch.testing.assert_close(made.values[0, 0], centred(shown, scores, 0.5), rtol=1e-9, atol=0)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e6])
def test_the_size_of_scores_hides_nothing(monkeypatch: pytest.MonkeyPatch, x: Tensor, offset: float) -> None:
    """With a tolerance what all scores have in common counts neither in the error nor in when it settles."""
    import cnnviz_techniques.attribution.rise as module

    monkeypatch.setattr(module, "_CHUNK", 100 * 4 * SIZE[0] * SIZE[1])

    def score(output: Tensor) -> Tensor:
        return output.softmax(1)[:, 0] + offset

    given: dict[str, Any] = {"target": score, "seed": 5, "masks": 3000, "tolerance": 0.2}
    made = cnnviz.explain(Seen(), x[:1], "rise", **given)
    alone = cnnviz.explain(Seen(), x[:1], "rise", **{**given, "target": lambda output: output.softmax(1)[:, 0]})
    assert isinstance(made, cnnviz.Heatmap)
    assert isinstance(alone, cnnviz.Heatmap)
    assert made.draws is not None
    assert made.draws.equal(alone.draws)
    assert 200 <= int(made.draws) < 3000
    torch.testing.assert_close(made.errors, alone.errors, rtol=1e-6, atol=0)
    torch.testing.assert_close(made.values - offset, alone.values, rtol=0, atol=1e-15 * max(1.0, offset))


def test_nothing_settles_on_few_masks_or_on_equal_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    import cnnviz_techniques.attribution.rise as module

    monkeypatch.setattr(module, "_CHUNK", 4 * 4 * SIZE[0] * SIZE[1])  # as of a large image: a few masks at once
    made = explained(torch.rand(1, 3, *SIZE), masks=3000, tolerance=0.9)
    assert made.draws is not None
    assert 200 <= int(made.draws) < 210

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1e4, 0.0]]).expand(len(x), 2) + 0 * x.sum()

    sure = cnnviz.explain(Sure(), torch.rand(1, 3, *SIZE), "rise", target=0, masks=300, tolerance=0.5)
    assert isinstance(sure, cnnviz.Heatmap)
    assert sure.draws is not None
    assert sure.draws.tolist() == [300]


@pytest.mark.parametrize("measured", [False, True])
def test_a_single_score_has_no_probability(measured: bool) -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).eval(), torch.rand(2, 3, 4, 4)
    call: Callable[[], object] = (
        (lambda: measure(net, x, torch.rand(2, 1, 4, 4), "deletion", steps=3))
        if measured
        else (lambda: cnnviz.explain(net, x, "rise", masks=4, cells=2))
    )
    with pytest.raises(cnnviz.TargetError, match=r"one score for each input, whose softmax is 1 .*give a callable"):
        call()
    made = cnnviz.explain(net, x, "rise", target=lambda output: output[:, 0].sigmoid(), masks=4, cells=2)
    assert made.values.shape == (2, 1, 4, 4)
    assert cnnviz.explain(net, x, "saliency").values.shape == (2, 1, 4, 4)


def test_a_tolerance_ends_early_and_is_kept(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    import cnnviz_techniques.attribution.rise as module

    monkeypatch.setattr(module, "_CHUNK", 100 * 4 * SIZE[0] * SIZE[1])
    flat = torch.full_like(x[:1], 0.2)
    both = torch.cat([x[:1], flat])
    made = explained(both, masks=20_000, tolerance=0.1)
    assert made.errors is not None
    assert made.draws is not None
    assert (made.draws < 20_000).all()
    for n in range(2):
        spread = made.values[n].max() - made.values[n].min()
        assert made.errors[n].max() <= 0.1 * spread
        alone = explained(both[n : n + 1], masks=20_000, tolerance=0.1)
        assert alone.draws is not None
        assert int(alone.draws) == int(made.draws[n])
        assert_same_map(made.values[n], alone.values[0])
    # The promise holds: against many more masks the map is off by what it says.
    exact = explained(both, masks=20_000, tolerance=1e-6).values
    off = ((made.values - exact) / made.errors).abs()
    assert off.mean() < 1.5


def test_both_estimators_expect_the_same(x: Tensor) -> None:
    plain, smooth = explained(x, masks=20_000), explained(x, masks=20_000, tolerance=1e-6)
    assert plain.errors is not None
    assert smooth.errors is not None
    both = (plain.errors.square() + smooth.errors.square()).sqrt()
    assert ((plain.values - smooth.values).abs() / both).max() < 6
    assert smooth.errors.mean() < 0.7 * plain.errors.mean()


def test_the_mask_of_the_deciding_quarter_is_found() -> None:
    made = explained(torch.ones(1, 3, *SIZE), masks=4000, tolerance=0.02).values[0, 0]
    assert made[:10, :7].mean() > made[10:].max()
    assert made[:10, :7].mean() > made[:, 10:].max()


def test_masks_are_never_all_there_at_once() -> None:
    x = torch.ones(1, 3, 64, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watched:
        cnnviz.explain(Seen(), x, "rise", target=0, masks=8000)
    largest = max(event.self_cpu_memory_usage for event in watched.events())
    assert largest < 8000 * 64 * 64 * 4 / 2
