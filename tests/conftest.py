"""What every test may ask for: real weights and photographs, seeded random numbers, slow tests on demand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import cnnviz
from tests.trained import data_folder, vgg16_features

# How long an example takes depends on what else the machine does.
settings.register_profile("cnnviz", deadline=None)
settings.load_profile("cnnviz")

Run = Callable[..., tuple[int, str, str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take more than half a minute")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of trained weights and photographs; without it the test is skipped, or fails where it is required."""
    return data_folder()


@pytest.fixture(scope="session")
def vgg(data: Path) -> cnnviz.Model:
    """VGG-16's trained features, without its head."""
    features, units = vgg16_features(data)
    return cnnviz.load_model(features, preprocess=units)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in an empty folder; returns exit code, output and errors."""
    from cnnviz.cli import main

    monkeypatch.setattr("cnnviz.cli.keep_freed_memory", lambda: False)  # it would hold for all tests
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cnnviz", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr()
        return int(stop.value.code or 0), told.out, told.err

    return call


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
