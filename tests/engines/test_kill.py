"""Killed at any moment and started again, an index has every image once, with the bits that it would have had."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from cnnviz.data import open_dataset
from cnnviz.engines import build_index
from cnnviz.index import Index, verify
from tests.index.conftest import fill, small_model

COUNT = 120
BUILD = """
import sys, time
import cnnviz.engines.build as build
from tests.index.conftest import small_model
build._LARGEST = 4
slowly = lambda done, total: time.sleep(0.02)
build.build_index(small_model(), sys.argv[1], sys.argv[2], engine=sys.argv[3], workers=2, progress=slowly)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("pictures"), COUNT)


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnnviz.engines.build._LARGEST", 4)
        return build_index(small_model(), pictures, tmp_path_factory.mktemp("whole"), workers=0)


def begun(pictures: Path, folder: Path, engine: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", BUILD, str(pictures), str(folder), engine]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def parts_in(folder: Path) -> int:
    return len(list(folder.glob("*-0*.safetensors")))


def check(folder: Path, whole: Index, pictures: Path) -> None:
    made = Index(folder)
    expected = [item.id for item in open_dataset(pictures).items]
    assert Counter(made.ids) == Counter(expected), "no image is lost, none is there twice"
    assert made.ids == whole.ids
    assert verify(folder) == []
    assert torch.equal(made.features(), whole.features())
    assert torch.equal(made.strongest().places, whole.strongest().places)
    assert torch.equal(made.threshold(0.9), whole.threshold(0.9))


@pytest.mark.parametrize(
    ("engine", "kills"),
    [
        ("local", 2),
        pytest.param("local", 20, marks=pytest.mark.slow),
        pytest.param("ray", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_builds_end_complete(engine: str, kills: int, pictures: Path, whole: Index, tmp_path: Path) -> None:
    draws = random.Random(0)
    for _ in range(kills):
        before = parts_in(tmp_path)
        build = begun(pictures, tmp_path, engine)
        while parts_in(tmp_path) == before and build.poll() is None:  # the kill should fall into its work
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.4))
        build.kill()
        _, told = build.communicate()
        assert build.returncode in (0, -signal.SIGKILL), told.decode()
        if build.returncode == 0:  # it was faster: begin another
            check(tmp_path, whole, pictures)
            for path in tmp_path.iterdir():
                path.unlink()
    build = begun(pictures, tmp_path, engine)
    _, told = build.communicate(timeout=300)
    assert build.returncode == 0, told.decode()
    check(tmp_path, whole, pictures)


@pytest.mark.slow
def test_a_killed_actor_is_replaced(pictures: Path, whole: Index, tmp_path: Path) -> None:
    build = begun(pictures, tmp_path, "ray")
    while not parts_in(tmp_path):
        assert build.poll() is None, build.communicate()[1].decode()
        time.sleep(0.01)
    actors = [process for process in Path("/proc").glob("[0-9]*") if _is_actor(process)]
    assert actors
    os.kill(int(actors[0].name), signal.SIGKILL)
    _, told = build.communicate(timeout=300)
    assert build.returncode == 0, told.decode()
    check(tmp_path, whole, pictures)


def _is_actor(process: Path) -> bool:
    try:
        return b"MapWorker" in (process / "cmdline").read_bytes()
    except OSError:
        return False
