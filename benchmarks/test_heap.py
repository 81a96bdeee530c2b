"""Forward passes in a process that keeps freed memory, beside one that does not; each of them a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cnnviz.heap import _SETTINGS

CASES = {f"{name}, 16 x 224": name for name in ("mobilenet_v2", "efficientnet_b0")}
PASSES = """
import sys, torch, torchvision
from cnnviz.heap import keep_freed_memory
name, keep, count = sys.argv[1], sys.argv[2] == "keep", int(sys.argv[3])
assert not keep or keep_freed_memory(), "this C library has no such setting"
torch.manual_seed(0)
net, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(count, 3, 224, 224)
with torch.inference_mode():
    for _ in sys.stdin:
        print(float(net(x).double().sum()), flush=True)
"""


@contextmanager
def passes(name: str, how: str, count: int) -> Iterator[Callable[[], str]]:
    """Lend a call that has a process of its own run the network once, and returns the sum of its output."""
    command = [sys.executable, "-c", PASSES, name, how, str(count)]
    usual = {key: value for key, value in os.environ.items() if key not in _SETTINGS}
    with subprocess.Popen(command, env=usual, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin
        assert child.stdout
        ask, hear = child.stdin, child.stdout

        def once() -> str:
            ask.write("once\n")
            ask.flush()
            return hear.readline()

        yield once
        ask.close()


@pytest.mark.parametrize("case", CASES)
def test_forward_pass(case: str, race: Any, device: str) -> None:
    if device != "cpu":
        pytest.skip("of the C library's memory alone")
    race.rounds, race.prepared = min(race.rounds, 15), False
    count = 2 if race.quick else 16
    with passes(CASES[case], "keep", count) as kept, passes(CASES[case], "usual", count) as usual:
        assert (told := kept()) == usual() != ""
        assert float(told)
        race(kept, {"with the usual settings": usual})
