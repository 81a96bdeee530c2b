"""``cnnviz info``: what is installed, what it runs on, and what is wrong."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer

from .. import __version__, ops
from ..errors import ModelError, OptionError
from ..incremental import Unfollowed
from ..incremental import plan as plan_of
from ..registry import Registry, metrics, techniques
from .common import JsonOption, load, show_json, show_table


def info(
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan", metavar="MODEL", help="Show instead what occlusion recomputes of a model, call by call."
        ),
    ] = None,
    window: Annotated[int, typer.Option("--window", min=1, help="With --plan: side of the window in pixels.")] = 16,
    json: JsonOption = False,
) -> None:
    """Show versions, devices, native code and plugins; load every plugin and report faults."""
    if plan is not None:
        _plan(plan, window, json=json)
        return
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


def _plan(model: str, window: int, *, json: bool) -> None:
    loaded = load(model, "none", "cpu")  # what is computed does not depend on the weights
    room = min(loaded.example().shape[2:])
    if window > room:
        raise OptionError(f"--window: got {window}, expected at most the image's {room} pixels")
    try:
        steps = plan_of(loaded.module, loaded.example(), (window, window))
    except Unfollowed as error:
        raise ModelError(f"'{model}' cannot be followed, since {error}; occlusion runs whole images") from error
    whole, done = sum(step.whole for step in steps), sum(step.done for step in steps)
    told = {
        "model": loaded.name,
        "window": window,
        "calls": len(steps),
        "incremental": sum(step.patch is not None for step in steps),
        "times as many operations for whole images": round(whole / max(done, 1), 2),
    }
    if json:
        show_json({**told, "steps": [asdict(step) for step in steps]})
        return
    rows = [
        [step.call, _sized(step.size), _sized(step.patch), f"{step.done / step.whole:.3f}" if step.whole else ""]
        for step in steps
    ]
    show_table(["call", "maps", "of these computed", "share of operations"], rows)
    typer.echo()
    show_table(["", ""], list(told.items()))


def _sized(size: tuple[int, int] | None) -> str:
    return "" if size is None else f"{size[0]} x {size[1]}"
