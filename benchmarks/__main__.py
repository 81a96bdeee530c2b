"""Run the benchmarks and print one table: ``python -m benchmarks [--device cuda] [--quick] [--results FILE]``."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnviz import __version__, ops

# With the C library's usual settings a result of more than 32 MiB is mapped anew by the kernel each time, whoever asks
# for it, and paging it in takes many times as long as writing it. Kept memory shows what operators do, and the command
# that builds an index keeps it too. Techniques are measured as users of the library have them.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(1 << 30),
}


HERE = Path(__file__).parent
TECHNIQUES = ("attribution", "fast_style", "heap", "occlusion", "synthesis")
AS_USERS_HAVE_IT = [HERE / f"test_{name}.py" for name in TECHNIQUES]


def main() -> int:
    """Measure, tell, and keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that everything runs")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where all figures go (bench.json)")
    parser.add_argument("--results", type=Path, help="a Markdown file of which a section is written anew")
    parser.add_argument("--section", help="which, as <!-- NAME --> begins it; that of the device by default")
    parser.add_argument("-k", dest="only", default="", help="which of them to run, as pytest takes it")
    chosen = parser.parse_args()
    measured: list[dict[str, Any]] = []
    failed = 0
    for where, memory in (
        ([HERE, *(f"--ignore={file}" for file in AS_USERS_HAVE_IT)], KEPT_MEMORY),
        (AS_USERS_HAVE_IT, {}),
    ):
        command = [sys.executable, "-m", "pytest", *map(str, where), "-q", "-p", "no:cacheprovider"]
        # One of the two may have nothing that -k selects.
        command += ["-W", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"]
        command += ["--benchmark-disable-gc", "--benchmark-quiet", f"--benchmark-json={chosen.json}"]
        command += [f"--device={chosen.device}", *["--quick"] * chosen.quick, *["-k", chosen.only] * bool(chosen.only)]
        chosen.json.unlink(missing_ok=True)  # what an earlier run wrote
        done = subprocess.run(command, env={**os.environ, **memory}, check=False)
        if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
            continue
        failed = failed or done.returncode
        if chosen.json.exists():
            measured += json.loads(chosen.json.read_text())["benchmarks"]
    chosen.json.write_text(json.dumps(measured, indent=1))
    table = _table(measured)
    told = f"{_machine(chosen.device)}\n\n{table}\n"
    print(told)
    if chosen.results:
        _replace(chosen.results, chosen.section or chosen.device, told)
    if failed:
        print("some benchmarks failed, see above; the table has the others", file=sys.stderr)
    return failed


def _machine(device: str) -> str:
    where = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {torch.get_num_threads()} threads"
    versions = f"cnnviz {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return f"{where}; {versions}; {ops.status()[device]}; {datetime.date.today().isoformat()}."


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def _table(measured: list[dict[str, Any]]) -> str:
    rows = [
        "| operator | case | cnnviz | beside | of it | ceiling | share of it |",
        "|---|---|---:|---|---:|---|---:|",
    ]
    for one in measured:
        more = one["extra_info"]
        calls, stats = more.get("calls", 1), one["stats"]
        operator = Path(one["fullname"].split("::")[0]).stem.removeprefix("test_")
        kind = one["name"].split("[")[0].removeprefix("test_").replace("_", " ")
        ceiling = share = ""
        if "ceiling" in more:
            unit = "GB/s" if more["ceiling"] == "copy" else "GFLOP/s"
            ceiling, share = f"{more['ceiling']} {more['best'] / 1e9:.0f} {unit}", f"{more['share']:.2f}"
        mine = _time(stats["median"] / calls, stats["iqr"] / calls)
        rows += [
            f"| `{operator}` | {kind}: {more['case']} | {mine} | "
            f"{other['expression']}: {_time(other['median'] / calls, other['spread'] / calls)} | "
            f"{other['times']:.2f}× | {ceiling} | {share} |"
            for other in more["beside"]
        ]
    return "\n".join(rows)


def _time(seconds: float, spread: float) -> str:
    unit, factor = ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * factor:.3g} ± {spread * factor:.2g} {unit}"


def _replace(file: Path, section: str, told: str) -> None:
    text = file.read_text()
    begin, end = f"<!-- {section} -->\n", f"<!-- end of {section} -->\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    file.write_text(f"{before}{begin}\n{told}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
