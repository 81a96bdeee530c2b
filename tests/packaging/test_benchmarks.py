"""The benchmarks' command keeps what was measured, whatever fails beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from cnnviz import ops

ONE = {
    "fullname": "benchmarks/test_call.py::test_on_32_numbers[occlude]",
    "name": "test_on_32_numbers[occlude]",
    "stats": {"median": 2e-6, "iqr": 1e-7},
    "extra_info": {
        "case": "occlude",
        "beside": [{"expression": "clone", "median": 1e-6, "spread": 1e-7, "times": 0.5}],
    },
}
RESULTS = "before\n<!-- cpu -->\nold\n<!-- end of cpu -->\nafter\n"


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, codes: list[int], made: list[Any]) -> int:
    """Run the command with these exit codes of its two pytest processes, and what each of them measures."""
    left = list(zip(codes, made, strict=True))

    def pretended(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        code, benchmarks = left.pop(0)
        if benchmarks:
            (folder / "bench.json").write_text(json.dumps({"benchmarks": benchmarks}))
        return subprocess.CompletedProcess(command, code)

    (folder / "results.md").write_text(RESULTS)
    monkeypatch.setattr(bench.subprocess, "run", pretended)
    monkeypatch.setattr(ops, "status", lambda: {"cpu": "native"})
    monkeypatch.setattr(sys, "argv", ["bench", "--json", f"{folder}/bench.json", "--results", f"{folder}/results.md"])
    return bench.main()


@pytest.mark.parametrize(
    ("codes", "made", "rows", "expected"),
    [
        ([0, 0], [[ONE], [ONE]], 2, 0),
        ([1, 0], [[ONE], [ONE]], 2, 1),  # one of several failed
        ([0, 1], [[ONE], []], 1, 1),  # nothing was measured by the second
        ([5, 0], [[], [ONE]], 1, 0),  # nothing was selected
    ],
)
def test_what_was_measured_is_written(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    codes: list[int],
    made: list[Any],
    rows: int,
    expected: int,
) -> None:
    assert run(monkeypatch, tmp_path, codes, made) == expected
    row = "| `call` | on 32 numbers: occlude | 2 ± 0.1 µs | clone: 1 ± 0.1 µs | 0.50× |  |  |\n"
    told = capsys.readouterr()
    assert told.out.count(row) == (tmp_path / "results.md").read_text().count(row) == rows
    assert "old" not in (tmp_path / "results.md").read_text()
    assert len(json.loads((tmp_path / "bench.json").read_text())) == rows
    assert ("some benchmarks failed" in told.err) == bool(expected)
