"""``cnnviz train-style IMAGES``: a network that paints in given styles, in one pass."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..synthesis import StyleTraining, train_style
from ..synthesis.training import CHECKPOINT, NETWORK
from .common import (
    DeviceOption,
    ImagesArgument,
    JsonOption,
    MemoryOption,
    SeedOption,
    WeightsOption,
    keeping,
    load,
    progress,
    show_json,
    tell_left_out,
)
from .flags import with_flags

_OUT: Final = Path("cnnviz-out/train-style")


def _run(
    options: dict[str, Any],
    *,
    images: ImagesArgument,
    model: Annotated[
        str, typer.Option("--model", help="Whose features tell style: torchvision name, timm:NAME or module:function.")
    ] = "vgg16",
    weights: WeightsOption = "DEFAULT",
    out: Annotated[Path, typer.Option("--out", help="Folder to write, and to go on in.")] = _OUT,
    seed: SeedOption = 0,
    memory: MemoryOption = "1GiB",
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    loaded = load(model, weights, device)

    folder = out.expanduser()

    def kept() -> str:
        there = (folder / CHECKPOINT).exists()
        return f"the same command goes on from the last step in {folder}" if there else "nothing was kept"

    with progress("train-style") as bar, keeping(kept):
        made = train_style(loaded, images, folder, seed=seed, memory=memory, progress=bar.step, **options)
    network = made.folder / NETWORK
    if json:
        show_json({"network": str(network), "left_out": made.left_out, **made.network.about})
        return
    tell_left_out(made.left_out)
    typer.echo(network)


_COMMON: Final = list(inspect.signature(_run, eval_str=True).parameters.values())[1:]

command = with_flags(_run, "train-style", StyleTraining, _COMMON)
command.__doc__ = """Train a network that paints any picture in one or several styles; an interrupted training goes on.

Its file is then the model of the technique fast-style.
"""
