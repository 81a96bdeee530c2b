"""Freed memory serves the next tensors, where that is asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cnnviz import heap

PAGES = """
import resource, sys, torch
from cnnviz.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def once():
    return torch.ones(6 << 20), torch.ones(12 << 20)  # 24 and 48 MiB, freed at once
for _ in range(10):  # the heap grows until a place for each is kept
    once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def usual(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in heap._SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_kept_memory_is_not_paged_in_anew() -> None:
    def pages(how: str) -> int:
        command = [sys.executable, "-c", PAGES, how]
        return int(subprocess.run(command, env=os.environ, check=True, capture_output=True, text=True).stdout)

    usual, kept = pages("usual"), pages("keep")
    assert usual > 10 * 12_288 * 0.9  # all pages of the larger one, each time
    assert kept < usual / 100


@pytest.mark.parametrize("name", heap._SETTINGS)
def test_what_the_environment_sets_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not heap.keep_freed_memory()


@pytest.mark.parametrize("most", [1 << 30, 32 << 20, 1 << 20])
def test_an_older_glibc_gets_what_it_takes(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {}

    def mallopt(setting: int, value: int) -> int:
        if setting == heap._MMAP and value > most:
            return 0
        taken[setting] = value
        return 1

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.28"))
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert heap.keep_freed_memory() == (most >= 32 << 20)
    assert taken[heap._TRIM] == (1 << 31) - 1
    assert taken.get(heap._MMAP) == (most if most >= 32 << 20 else None)


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not heap.keep_freed_memory()
