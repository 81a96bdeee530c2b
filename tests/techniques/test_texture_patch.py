from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cnnviz
from cnnviz import ops, render
from cnnviz.data import open_image
from tests.reference import texture_patch as twin

PERIOD = 12  # of all patterns
METHODS = ["efros-leung", "wei-levoy"]
SMALL: dict[str, dict[str, Any]] = {"efros-leung": {}, "wei-levoy": {"levels": 2}}


def textured(sample: Tensor, seed: int = 0, **options: Any) -> Tensor:
    """Return the texture of one sample, (3, h, w)."""
    (image,) = cnnviz.explain(None, sample[None], "texture-patch", seed=seed, **options).images
    return image


def noise(height: int, width: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.rand(3, height, width, generator=generator, dtype=torch.float64).to(dtype)


def stripes(height: int, width: int, *, down: int = 0, across: int = 0, period: int = 4) -> Tensor:
    """Return a ramp of colours that comes again after a period."""
    phase = (down * torch.arange(height)[:, None] + across * torch.arange(width)) % period
    return torch.stack([phase / period, 1 - phase / period, (phase == 0).float()]).float()


def checkers(height: int, width: int, side: int = 2) -> Tensor:
    rows, columns = torch.arange(height) // side % 2, torch.arange(width) // side % 2
    dark = (rows[:, None] != columns).float()
    return torch.stack([dark, dark, 1 - dark])


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((9, 8), (7, 9), {"window": 3}),
        ((9, 11), (6, 5), {"window": 5, "tolerance": 0.5, "seed_patch": 2}),
        ((7, 7), (4, 6), {"window": 7, "tolerance": 0.0}),
        ((5, 6), (1, 9), {"window": 3, "seed_patch": 4}),
        ((6, 5), (2, 2), {"window": 3, "seed_patch": 9}),
    ],
)
def test_efros_leung_equals_plain_loops(shape: tuple[int, int], size: tuple[int, int], options: dict[str, Any]) -> None:
    sample = noise(*shape, dtype=torch.float64)
    given = {"tolerance": 0.1, "seed_patch": 3, **options}
    expected = twin.efros_leung(sample, size, generator=torch.Generator().manual_seed(5), **given)
    assert torch.equal(textured(sample, 5, size=size, **options), expected.float())


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((7, 8), (5, 6), {"window": 3, "levels": 1, "passes": 1}),
        ((7, 6), (5, 4), {"window": 5, "levels": 1, "passes": 2}),
        ((10, 12), (6, 8), {"window": 5, "levels": 2, "passes": 1}),
        ((10, 10), (4, 6), {"window": 5, "levels": 2, "passes": 3}),
        ((12, 16), (4, 8), {"window": 3, "levels": 3, "passes": 2}),
    ],
)
def test_wei_levoy_equals_plain_loops(shape: tuple[int, int], size: tuple[int, int], options: dict[str, Any]) -> None:
    sample = noise(*shape, dtype=torch.float64)
    expected = twin.wei_levoy(sample, size, generator=torch.Generator().manual_seed(5), **options)
    assert torch.equal(textured(sample, 5, method="wei-levoy", size=size, **options), expected.float())


@pytest.mark.parametrize("method", METHODS)
def test_every_pixel_is_one_of_the_sample(method: str) -> None:
    sample = noise(14, 17)
    image = textured(sample, method=method, window=5, size=(19, 12), **SMALL[method])
    assert image.shape == (3, 19, 12)
    colours = {tuple(colour) for colour in sample.flatten(1).T.tolist()}
    assert {tuple(colour) for colour in image.flatten(1).T.tolist()} <= colours


@pytest.mark.parametrize("method", METHODS)
def test_one_colour_stays_one_colour(method: str) -> None:
    colour = torch.tensor([0.25, 0.5, 0.75])[:, None, None]
    image = textured(colour.expand(3, 12, 12), method=method, window=5, size=9, **SMALL[method])
    assert torch.equal(image, colour.expand(3, 9, 9))


PATTERNS: dict[str, Callable[[int, int], Tensor]] = {
    "across": partial(stripes, across=1),
    "down": partial(stripes, down=1),
    "slanting": partial(stripes, down=1, across=1),
    "checkers": checkers,
    "larger checkers": partial(checkers, side=3),
}


def is_part(image: Tensor, pattern: Callable[[int, int], Tensor]) -> bool:
    """Whether an image is what one sees of a pattern somewhere."""
    height, width = image.shape[1:]
    whole = pattern(height + PERIOD, width + PERIOD)
    return any(
        torch.equal(image, whole[:, y : y + height, x : x + width]) for y in range(PERIOD) for x in range(PERIOD)
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_continued_exactly(name: str, seed: int) -> None:
    pattern = PATTERNS[name]
    image = textured(pattern(17, 18), seed, window=9, size=(20, 26), seed_patch=5)
    assert is_part(image, pattern)


@pytest.mark.parametrize("name", PATTERNS)
def test_wei_levoy_goes_on_at_its_other_side(name: str) -> None:
    """Where noise leaves no fault in a pattern, there is none where copies of the texture meet either."""
    pattern = PATTERNS[name]
    given = {"method": "wei-levoy", "window": 13, "size": 2 * PERIOD, "levels": 1}
    images = (textured(pattern(36, 36), seed, **given) for seed in range(6))
    faultless = next(image for image in images if is_part(image, pattern))
    assert is_part(faultless.repeat(1, 2, 2), pattern)


def seam(image: Tensor, dim: int) -> float:
    """Return how much neighbours across the border differ, in units of what neighbours elsewhere do."""
    differences = (image - image.roll(1, dim)).square().transpose(0, dim).flatten(1).mean(1)
    return float(differences[0] / differences[1:].mean())


@pytest.mark.skipif(ops.status()["cpu"].startswith("PyTorch"), reason="takes minutes, and chooses the same pixels")
def test_a_second_pass_mends_the_seams(data: Path) -> None:
    gravel = render.to_tensor(open_image(data / "images" / "gravel.png").resize((64, 64)))

    def seams(passes: int) -> list[float]:
        given = {"method": "wei-levoy", "window": 9, "size": 64, "passes": passes}
        images = [textured(gravel, seed, **given) for seed in range(4)]
        return [sum(seam(image, dim) for image in images) / len(images) for dim in (1, 2)]

    assert max(seams(2)) < 1.15
    assert seams(1)[0] > 1.25  # the last rows were chosen without a look at the first


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_is_a_texture(method: str) -> None:
    sample, given = noise(14, 14), {"method": method, "window": 5, "size": 12, **SMALL[method]}
    assert torch.equal(textured(sample, 3, **given), textured(sample, 3, **given))
    assert not torch.equal(textured(sample, 3, **given), textured(sample, 4, **given))


@pytest.mark.parametrize("method", METHODS)
def test_threads_change_nothing(method: str) -> None:
    sample, threads, made = noise(150, 150), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            made.append(textured(sample, method=method, window=5, size=(4, 8), **SMALL[method]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)


@pytest.mark.parametrize("method", METHODS)
def test_several_samples_draw_the_same(method: str) -> None:
    samples = torch.stack([noise(14, 14), noise(14, 14).flip(1)])
    given = {"method": method, "window": 5, "size": 9, **SMALL[method]}
    together = cnnviz.explain(None, samples, "texture-patch", **given)
    assert torch.equal(together.images, torch.stack([textured(sample, **given) for sample in samples]))
    assert together.captions == (f"texture of 9 x 9 by {method}, window 5",) * 2


@pytest.mark.parametrize("method", METHODS)
def test_progress_goes_on_to_the_end_and_may_cancel(method: str) -> None:
    class Cancelled(Exception):
        pass

    seen: list[float] = []

    def watch(done: int, total: int) -> None:
        seen.append(done / total)
        if cancel and len(seen) == 3:
            raise Cancelled

    given = {"method": method, "window": 5, "size": 40, **SMALL[method]}
    cancel = False
    cnnviz.explain(None, noise(14, 14)[None], "texture-patch", progress=watch, **given)
    assert seen == sorted(seen)
    assert seen[0] < 0.2
    assert seen[-1] == 1
    seen.clear()
    cancel = True
    with pytest.raises(Cancelled):
        cnnviz.explain(None, noise(14, 14)[None], "texture-patch", progress=watch, **given)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": 8}, "'window': got 8, expected an odd number; give 7 or 9"),
        ({"window": 15}, "'window': got 15, but the sample is 12 x 14; give a smaller window"),
        (
            {"method": "wei-levoy", "window": 7},
            "'levels': got 3, but the coarsest level of the sample has a side of 3, less than the window of 7",
        ),
        ({"window": 1}, "'window'.*got 1.*from 3 to 99"),
        ({"size": 0}, "'size'.*got 0"),
        ({"method": "quilting"}, "'method'.*'efros-leung', 'wei-levoy'"),
        ({"tolerance": -1}, "'tolerance'.*got -1"),
    ],
)
def test_a_wrong_option_is_named_with_what_fits(options: dict[str, Any], told: str) -> None:
    with pytest.raises(cnnviz.OptionError, match=told):
        textured(noise(12, 14), **options)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (torch.rand(1, 12, 12), r"got a tensor with 1 channels, expected 3"),
        (torch.rand(3, 12, 12) + 0.5, r"got values from 0\.5.* to 1\..* give pictures in \[0, 1\]"),
        (-torch.rand(3, 12, 12), r"give pictures in \[0, 1\]"),
        (torch.full((3, 12, 12), float("nan")), r"got values from nan to nan.* give pictures in \[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_refused(sample: Tensor, told: str) -> None:
    with pytest.raises(cnnviz.InputError, match=told):
        textured(sample)
