"""What every test may ask for: real weights and photographs, seeded random numbers, slow tests on demand."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file

import cnnviz

# How long an example takes depends on what else the machine does.
settings.register_profile("cnnviz", deadline=None)
settings.load_profile("cnnviz")

Run = Callable[..., tuple[int, str, str]]

_DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"


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
    folder = Path(os.environ.get("CNNVIZ_TEST_DATA", _DEFAULT_DATA))
    if (folder / "images").is_dir():
        return folder
    told = f"no weights and photographs in '{folder}'; set CNNVIZ_TEST_DATA to the folder that holds them"
    if os.environ.get("CNNVIZ_REQUIRE_DATA") == "1":
        pytest.fail(f"{told} (CNNVIZ_REQUIRE_DATA=1 makes this a failure)")
    pytest.skip(told)


@pytest.fixture(scope="session")
def vgg(data: Path) -> cnnviz.Model:
    """VGG-16's trained features, without its head."""
    import torchvision

    with torch.device("meta"):
        features = torchvision.models.vgg16().features
    weights = load_file(data / "weights" / "vgg16_features.safetensors")
    features.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    units = cnnviz.Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return cnnviz.load_model(features.eval(), preprocess=units)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in an empty folder; returns exit code, output and errors."""
    from cnnviz.cli import main

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
