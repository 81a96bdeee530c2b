"""`import cnnviz` is light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cnnviz

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


def test_import_takes_next_to_nothing_until_something_is_asked_for() -> None:
    """Not even torch is loaded: what follows is torch's own import and what the name asked for stands on."""
    code = "import sys, cnnviz; print([name for name in ('torch', 'numpy', 'PIL', 'pydantic') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_however_it_is_reached() -> None:
    names: dict[str, object] = {}
    exec("from cnnviz import *", names)
    assert set(cnnviz.__all__) <= names.keys()
    assert set(cnnviz.__all__) <= set(dir(cnnviz))
    assert all(names[name] is getattr(cnnviz, name) for name in cnnviz.__all__)
    with pytest.raises(AttributeError, match="Explainr"):
        _ = cnnviz.Explainr
