"""A small network with preprocessing, and a folder of images of three kinds."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

import cnnviz
from cnnviz import Model, Preprocess

COUNT = 23


def small_model(seed: int = 0) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
        )  # fmt: skip
    preprocess = Preprocess(resize=16, crop=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    return cnnviz.load_model(net.eval(), preprocess=preprocess, labels=("ant", "bee", "cat", "dog"))


def fill(folder: Path, count: int = COUNT, first: int = 0) -> Path:
    """Write images of three labels, noise of three colours."""
    for number in range(first, first + count):
        draws = numpy.random.default_rng(number)
        label = ("blue", "green", "red")[number % 3]
        pixels = draws.integers(0, 90, (20, 18, 3), dtype=numpy.uint8)
        pixels[..., 2 - number % 3] += 150
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / label / f"{number:03}.png")
    return folder


@pytest.fixture
def model() -> Model:
    return small_model()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return fill(tmp_path / "images")
