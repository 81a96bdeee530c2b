"""What is optimised stands for pictures, in the units of the network, within what can be shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cnnviz import Preprocess
from cnnviz.synthesis import Fourier, Pixels, affine, jitter

UNITS = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (7, 10), (1, 1)])
def test_canvas_begins_as_it_was_told(size: tuple[int, int]) -> None:
    given = 0.1 + 0.8 * pictures(*size)
    wanted = UNITS.normalise(given)
    for canvas in (Pixels(wanted, UNITS), Fourier(given, UNITS)):
        torch.testing.assert_close(canvas.image().detach(), wanted, rtol=0, atol=1e-9)
        mean = torch.tensor(UNITS.mean, dtype=torch.float64).reshape(3, 1, 1)
        torch.testing.assert_close(canvas.centred().detach(), given - mean, rtol=0, atol=1e-9)


def test_pixels_are_kept_between_black_and_white() -> None:
    canvas = Pixels(UNITS.normalise(pictures(4, 4)), UNITS)
    with torch.no_grad():
        canvas.leaves[0][0] += 10
        canvas.leaves[0][1] -= 10
    canvas.bound()
    shown = UNITS.inverse(canvas.image().detach())
    torch.testing.assert_close(canvas.image().detach(), UNITS.normalise(shown))
    assert float(shown[0].min()) == pytest.approx(1)
    assert float(shown[1].max()) == pytest.approx(0, abs=1e-12)


def test_any_fourier_coefficients_are_a_picture() -> None:
    canvas = Fourier(pictures(6, 5), UNITS)
    with torch.no_grad():
        canvas.leaves[0].mul_(1000)
    shown = canvas.image().detach()
    torch.testing.assert_close(UNITS.normalise(UNITS.inverse(shown)), shown)


def test_every_frequency_weighs_alike_in_pixels_of_a_photograph() -> None:
    """A step of the same size in each coefficient makes waves whose amplitude is inverse to their frequency."""
    canvas = Fourier(torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64), UNITS)
    amplitudes = []
    for column in (1, 2, 4):
        with torch.no_grad():
            canvas.leaves[0].zero_()
            canvas.leaves[0][0, 0, 0, column, 0] = 1e-3
        wave = canvas.image().detach()[0, 0]
        amplitudes.append(float(wave.max() - wave.min()))
    assert amplitudes[0] / amplitudes[1] == pytest.approx(2, rel=1e-3)
    assert amplitudes[0] / amplitudes[2] == pytest.approx(4, rel=1e-3)


def test_jitter_moves_pixels_around() -> None:
    x = pictures(6, 5)
    draws = torch.Generator().manual_seed(3)
    seen = {tuple(jitter(2)(x, draws).flatten(1)[0].tolist()) for _ in range(200)}
    assert seen == {tuple(x.roll((a, b), (2, 3)).flatten(1)[0].tolist()) for a in range(-2, 3) for b in range(-2, 3)}


def test_affine_without_extent_is_nothing() -> None:
    x = pictures(6, 9)
    torch.testing.assert_close(affine(0.0, 0.0)(x, torch.Generator().manual_seed(0)), x)


def test_affine_turns_a_rectangle_without_shearing_it() -> None:
    """What is round stays round in a picture that is no square."""
    ys, xs = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(81.0) - 40, indexing="ij")
    hill = torch.exp(-(ys**2 + xs**2) / 20).double()[None, None]
    middle = (..., slice(25, 56))  # further out the mirrored picture begins
    for seed in range(5):
        turned = affine(0.0, 90.0)(hill, torch.Generator().manual_seed(seed))
        assert float((turned - hill)[middle].abs().max()) < 0.03
        larger = affine(1.0, 0.0)(hill, torch.Generator().manual_seed(seed))
        assert float((larger - hill).abs().max()) > 0.02


def test_batches_are_treated_alike() -> None:
    x = pictures(8, 8)
    for transform in (jitter(3), affine(0.2, 20)):
        together = transform(x, torch.Generator().manual_seed(1))
        alone = torch.cat([transform(row[None], torch.Generator().manual_seed(1)) for row in x])
        assert torch.equal(together, alone)


def test_pixels_lie_in_memory_as_lbfgs_wants_them() -> None:
    wanted = UNITS.normalise(pictures(5, 6)).to(memory_format=torch.channels_last)
    (leaf,) = Pixels(wanted, UNITS).leaves
    assert leaf.is_contiguous()
    assert torch.equal(leaf, Pixels(wanted.contiguous(), UNITS).leaves[0])
