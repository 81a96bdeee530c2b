"""`import cnnviz` is light."""

from __future__ import annotations

import re
import subprocess
import sys

HEAVY = (
    "torchvision",
    "matplotlib",
    "cnnviz_techniques",
    "typer",
    "rich",
    "jinja2",
    "fastapi",
    "uvicorn",
    "timm",
    "cmap",
)


def test_import_loads_no_plugin_web_or_plotting_module() -> None:
    code = f"import sys, cnnviz; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_techniques_imports_no_plugin() -> None:
    asked = "'grad-cam' in list(cnnviz.techniques()), 'cnnviz_techniques' in sys.modules"
    code = f"import sys, cnnviz; print({asked})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_import_takes_a_fifth_of_a_second_more_than_torch() -> None:
    """The best of many processes by `-X importtime`: what a busy machine adds, at times for minutes, is not ours."""
    extra: list[float] = []
    while len(extra) < 50 and (not extra or min(extra) > 0.2):
        extra.append(_extra_seconds())
    assert min(extra) <= 0.2, extra


def _extra_seconds() -> float:
    command = [sys.executable, "-X", "importtime", "-c", "import cnnviz"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {name: int(time) for time, name in re.findall(r"\|\s+(\d+) \| +(\S+)$", told, flags=re.MULTILINE)}
    return (found["cnnviz"] - found["torch"]) / 1e6
