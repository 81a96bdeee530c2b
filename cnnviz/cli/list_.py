"""``cnnviz list``: which techniques and metrics are installed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..registry import Registry, techniques
from ..registry import metrics as known_metrics
from .common import JsonOption, show_json, show_table


def list_(
    json: JsonOption = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Load each plugin and tell what it does.")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="List the metrics that techniques are compared by.")
    ] = False,
) -> None:
    """List the installed techniques and who brought them, without importing any (but for --long)."""
    known: Registry[Any] = known_metrics() if metrics else techniques()
    kind = "better" if metrics else "family"
    rows = [{"name": o.name, "distribution": o.distribution, "version": o.version} for o in known.offers]
    if long:
        usable = known.usable()
        for row in rows:
            item = usable.get(row["name"])
            row[kind] = getattr(item, kind) if item else "faulty"
            row["summary"] = item.summary if item else known.faults[row["name"]]
    if json:
        show_json(rows)
        return
    columns = ["name", "distribution", "version", *([kind, "summary"] if long else [])]
    show_table(columns, [[row[column] for column in columns] for row in rows])
