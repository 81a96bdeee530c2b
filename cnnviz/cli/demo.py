"""``cnnviz demo``: a page about a real photograph, with what is in the package alone."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from .common import JsonOption
from .report import report


def demo(
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("cnnviz-report/index.html"),
    json: JsonOption = False,
) -> None:
    """Explain the photograph of a cat with the embedded MobileNetV2 and write the report; needs no network."""
    with as_file(files("cnnviz.data") / "pictures" / "chelsea.png") as photograph:
        report([photograph], out=out, json=json)
