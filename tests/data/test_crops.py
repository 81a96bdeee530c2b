"""Crops for training: the n-th is always the same, every file has its turn, and what cannot be read is told."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile

from cnnviz import CnnvizError, InputError
from cnnviz.data.crops import Crops

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Return a picture of each colour, of different sizes."""
    made = [tmp_path / f"{number}.png" for number in range(len(COLOURS))]
    for number, (path, colour) in enumerate(zip(made, COLOURS, strict=True)):
        Image.new("RGB", (40 + 9 * number, 31 + 7 * number), colour).save(path)
    return made


def seen(crops: Crops, n: int) -> tuple[int, ...]:
    return tuple((255 * crops(n).picture.mean((1, 2))).round().int().tolist())


def test_every_epoch_shows_each_file_once_in_another_order(paths: list[Path]) -> None:
    crops = Crops(paths, 16, seed=0)
    epochs = [[seen(crops, 4 * epoch + i) for i in range(4)] for epoch in range(6)]
    assert all(sorted(epoch) == sorted(COLOURS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_crop_is_the_same_whenever_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.effect_noise((50, 70), 100).convert("RGB").save(path)
    crops = Crops([path], 24, seed=3)
    made = [crops(n).picture for n in range(5)]
    assert all(crop.shape == (3, 24, 24) and 0 <= crop.min() < crop.max() <= 1 for crop in made)
    for n in reversed(range(5)):
        assert torch.equal(crops(n).picture, made[n])
    assert not any(torch.equal(made[0], other) for other in made[1:])
    assert not torch.equal(Crops([path], 24, seed=4)(0).picture, made[0])


def test_a_crop_lies_inside_and_is_mirrored_half_of_the_time(tmp_path: Path) -> None:
    """Brightness grows to the right in every crop that is not mirrored."""
    path = tmp_path / "ramp.png"
    Image.linear_gradient("L").rotate(90).convert("RGB").save(path)
    crops = Crops([path], 32, seed=0)
    slopes = [float(crop[0, :, -1].mean() - crop[0, :, 0].mean()) for crop in (crops(n).picture for n in range(60))]
    assert all(2 / 3 - 0.1 <= abs(slope) <= 1 for slope in slopes), "two thirds of the shorter side and more"
    assert 15 <= sum(slope > 0 for slope in slopes) <= 45


def test_batches_are_the_crops_one_after_the_other(paths: list[Path]) -> None:
    crops = Crops(paths, 16, seed=1)
    made = list(crops.batches(3, 2, 5, threads=2))
    assert len(made) == 3
    for number, (batch, left_out) in enumerate(made, start=2):
        assert left_out == {}
        assert torch.equal(batch, torch.stack([crops(3 * number + i).picture for i in range(3)]))


def test_what_cannot_be_read_is_told_and_replaced(paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:60])
    crops = Crops([*paths, broken], 16, seed=0)
    made = [crops(n) for n in range(5)]
    (reasons,) = [crop.left_out for crop in made if crop.left_out]
    assert list(reasons) == [broken]
    assert "broken.png" in reasons[broken]
    assert all(crop.picture.shape == (3, 16, 16) for crop in made)


def test_one_file_that_can_be_read_is_enough(paths: list[Path], tmp_path: Path) -> None:
    broken = [tmp_path / f"broken-{number}.png" for number in range(40)]
    for path in broken:
        path.write_bytes(b"no image")
    crops = Crops([*broken, paths[0]], 16, seed=0)
    assert {seen(crops, n) for n in range(41)} == {COLOURS[0]}


def test_nothing_to_be_read_is_an_error(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    crops = Crops(sorted(tmp_path.iterdir()), 16, seed=0)
    with pytest.raises(InputError, match=r"none of 3 images can be read; image '"):
        next(crops.batches(2, 0, 4, threads=2))


@pytest.mark.parametrize("ends", [False, True])
def test_what_cannot_be_read_for_now_stops(paths: list[Path], ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails when the file is opened, or when its pixels are read."""
    read = ImageFile.ImageFile.load if ends else Path.open

    def failing(source: Any, *given: str) -> object:
        place = source if isinstance(source, Path) else getattr(source.fp, "name", "")
        if Path(place).name == "2.png":
            raise OSError(errno.EIO, "Input/output error")
        return read(source, *given)

    monkeypatch.setattr(*(ImageFile.ImageFile, "load") if ends else (Path, "open"), failing)
    crops = Crops(paths, 16, seed=0)
    with pytest.raises(CnnvizError, match=r"2\.png' cannot be read for now: .*Input/output") as caught:
        [crops(n) for n in range(4)]
    assert not isinstance(caught.value, InputError)
    assert seen(Crops(paths[:2], 16, seed=0), 0) in COLOURS
