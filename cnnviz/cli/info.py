"""``cnnviz info``: what is installed, what it runs on, and what is wrong."""

from __future__ import annotations

import platform

import torch
import typer

from .. import __version__, ops
from ..registry import techniques
from .common import JsonOption, show_json, show_table


def info(json: JsonOption = False) -> None:
    """Show versions, devices, native code and plugins; load every plugin and report faults."""
    known = techniques()
    known.usable()
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
    plugins = [
        {
            "name": offer.name,
            "distribution": offer.distribution,
            "version": offer.version,
            "status": known.faults.get(offer.name, "ok"),
        }
        for offer in known.offers
    ]
    plugins += [
        {"name": o.name, "distribution": o.distribution, "version": o.version, "status": "switched off"}
        for o in known.left_out
    ]
    if json:
        show_json({**told, "plugins": plugins})
        return
    show_table(["", ""], list(told.items()))
    typer.echo()
    columns = ["name", "distribution", "version", "status"]
    show_table(columns, [[row[column] for column in columns] for row in plugins])
