"""The one door to native code: loads its modules, and does in PyTorch what a missing one would have done.

The operators need no door of their own: a loaded module has added its kernels to them, and where it has not, torch
calls the reference.
"""

from __future__ import annotations

import importlib
import json
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


def _load(name: str) -> ModuleType | str:
    """Return a native module, or why there is none."""
    if os.environ.get("CNNVIZ_NATIVE", "1") == "0":
        return "switched off by CNNVIZ_NATIVE=0"
    try:
        return importlib.import_module(f"cnnviz.{name}")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            return f"it does not load: {error}"
    try:
        built = json.loads((Path(__file__).parents[1] / "_build.json").read_text())
    except (OSError, ValueError):
        built = {}
    return str(built.get(name, "it was not built"))


_CPU = _load("_C")
_CUDA = _load("_C_cuda")
_HOST = _load("_host")


def host() -> ModuleType | None:
    """Return the module with what is no operator, or None where it is not in use."""
    return None if isinstance(_HOST, str) else _HOST


@cache
def runs_on_cpu(operator: str) -> bool:
    """Whether a kernel of our own runs an operator on this processor."""
    there: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"cnnviz::{operator}", "CPU")
    return there


def status() -> dict[str, str]:
    """Return for "cpu" and "cuda" which kernels are in use and, where they are PyTorch's, why."""
    facts = {} if isinstance(_HOST, str) else _HOST.facts()
    built = f"native ({facts.get('compiler', 'compiler unknown')}, built with torch {facts.get('torch', 'unknown')})"
    return {
        "cpu": f"PyTorch: {_CPU}" if isinstance(_CPU, str) else built,
        "cuda": f"PyTorch: {_CUDA}" if isinstance(_CUDA, str) else f"native ({facts.get('cuda', 'CUDA')})",
    }


def first_outside(values: Tensor, start: int, stop: int) -> int:
    """Return the place of the first number that is not in [start, stop), or -1; int64 on the CPU, counted flat."""
    if isinstance(_HOST, str):
        return _first(((values < start) | (values >= stop)).flatten())
    values = values.contiguous()
    place: int = _HOST.first_outside(values.data_ptr(), values.numel(), start, stop)
    return place


def first_bad_window(windows: Tensor, images: int, height: int, width: int) -> int:
    """Return the place of the first window that leaves its image or is turned, or -1; (K, 5) int64 on the CPU."""
    if isinstance(_HOST, str):
        row, top, bottom, left, right = windows.unbind(1)
        on_image = (row >= 0) & (row < images)
        rows = (top >= 0) & (top <= bottom) & (bottom <= height)
        return _first(~(on_image & rows & (left >= 0) & (left <= right) & (right <= width)))
    windows = windows.contiguous()
    place: int = _HOST.first_bad_window(windows.data_ptr(), len(windows), images, height, width)
    return place


def _first(wrong: Tensor) -> int:
    return int(torch.nonzero(wrong)[0]) if bool(wrong.any()) else -1
