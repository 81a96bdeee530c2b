"""What the Ray engine does beside Ray: actors tell what went wrong, and the session is as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest

from cnnviz import CnnvizError
from cnnviz.data import open_dataset
from cnnviz.engines.on_ray import _Actor, run_ray
from cnnviz.index import Job, Recipe, begin
from tests.index.conftest import fill, small_model


@pytest.fixture
def job(tmp_path: Path) -> Any:
    dataset = open_dataset(fill(tmp_path / "images", 3))
    with begin(tmp_path / "index", small_model(), dataset, Recipe(("1",), 2, 2), add=False) as made:
        yield made


def test_an_actor_without_memory_says_what_to_do(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnviz.engines.on_ray.keep_freed_memory", lambda: False)  # it would hold for all tests
    actor = _Actor(job, small_model())
    assert actor({"part": numpy.array([1])})["error"] == [""]

    def full(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(actor._observer, "observe", full)
    (told,) = actor({"part": numpy.array([0])})["error"]
    assert told.startswith("a batch of 2 images does not fit into memory; build another index with less memory=")


@pytest.mark.parametrize("bars", [True, False])
def test_the_sessions_progress_bars_are_as_they_were(job: Job, bars: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    context, seen = SimpleNamespace(enable_progress_bars=bars), []

    def from_items(*_: Any, **__: Any) -> None:
        seen.append(context.enable_progress_bars)
        raise CnnvizError("the cluster is gone")

    ray, data = ModuleType("ray"), ModuleType("ray.data")
    vars(data).update(DataContext=SimpleNamespace(get_current=lambda: context), from_items=from_items)
    vars(ray).update(data=data, is_initialized=lambda: True, exceptions=SimpleNamespace(RayError=ZeroDivisionError))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", data)
    with pytest.raises(CnnvizError, match="the cluster is gone"):
        run_ray(job, small_model(), [0, 1], actors=1, progress=lambda done, total: None)
    assert seen == [False]
    assert context.enable_progress_bars is bars
