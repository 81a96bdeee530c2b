"""``cnnviz info``: what is installed, what it runs on, and what is wrong."""

from __future__ import annotations

import platform
from typing import Any

import torch
import typer

from .. import __version__, ops
from ..registry import Registry, metrics, techniques
from .common import JsonOption, show_json, show_table


def info(json: JsonOption = False) -> None:
    """Show versions, devices, native code and plugins; load every plugin and report faults."""
    kinds: dict[str, Registry[Any]] = {"technique": techniques(), "metric": metrics()}
    kernels = ops.status()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    told = {
        "cnnviz": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu threads": torch.get_num_threads(),
        "cuda": ", ".join(devices) or "none",
        "cpu operators": kernels["cpu"],
        "cuda operators": kernels["cuda"],
    }
    plugins = []
    for kind, known in kinds.items():
        known.usable()
        status = [(offer, known.faults.get(offer.name, "ok")) for offer in known.offers]
        for offer, how in [*status, *((offer, "switched off") for offer in known.left_out)]:
            row = {"name": offer.name, "kind": kind, "distribution": offer.distribution, "version": offer.version}
            plugins.append({**row, "status": how})
    if json:
        show_json({**told, "plugins": plugins})
        return
    show_table(["", ""], list(told.items()))
    typer.echo()
    columns = ["name", "kind", "distribution", "version", "status"]
    show_table(columns, [[row[column] for column in columns] for row in plugins])
