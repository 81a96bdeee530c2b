"""``cnnviz list``: which techniques are installed."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import techniques
from .common import JsonOption, show_json, show_table


def list_(
    json: JsonOption = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Load each plugin and tell what it does.")] = False,
) -> None:
    """List the installed techniques and who brought them, without importing any (but for --long)."""
    known = techniques()
    offers = [{"name": o.name, "distribution": o.distribution, "version": o.version} for o in known.offers]
    if long:
        usable = known.usable()
        for row in offers:
            technique = usable.get(row["name"])
            row["family"] = technique.family if technique else "faulty"
            row["summary"] = technique.summary if technique else known.faults[row["name"]]
    if json:
        show_json(offers)
        return
    columns = ["name", "distribution", "version", *(["family", "summary"] if long else [])]
    show_table(columns, [[row[column] for column in columns] for row in offers])
