"""``cnnviz report IMAGE…``: every technique's picture on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data import find_images
from ..report import Report, make_report
from ..writing import check_file
from .common import (
    DeviceOption,
    ImagesArgument,
    JsonOption,
    MemoryOption,
    ModelOption,
    SeedOption,
    TargetOption,
    WeightsOption,
    load,
    parse_target,
    progress,
    readable,
    show_json,
    tell_left_out,
)


def report(
    images: ImagesArgument,
    model: ModelOption = None,
    weights: WeightsOption = "DEFAULT",
    technique: Annotated[
        list[str] | None, typer.Option(help="Only this technique; repeatable. By default all that take seconds.")
    ] = None,
    target: TargetOption = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("cnnviz-report/index.html"),
    seed: SeedOption = 0,
    memory: MemoryOption = "1GiB",
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Explain images with every suitable technique and write one self-contained HTML page."""
    check_file(out)
    paths, left_out = readable(find_images(images), images)
    loaded = load(model, weights, device)
    with progress("loading") as bar:
        made = make_report(
            loaded,
            paths,
            names=technique or None,
            target=parse_target(target),
            seed=seed,
            memory=memory,
            progress=bar.step,
            started=lambda name, image: bar.label(f"{name}: {image}"),
        )
    _tell(made, made.write(out), left_out, json=json)


def _tell(made: Report, path: Path, left_out: dict[str, str], *, json: bool) -> None:
    """Print what the page says in a few lines, and its path last."""
    if json:
        sections = [
            {
                "image": section.name,
                "predictions": [{"label": label, "probability": p} for label, p in section.predictions],
                "techniques": {n: e.provenance and e.provenance.to_json() for n, e in section.explanations.items()},
                "failures": {failure.technique: failure.reason for failure in section.failures},
            }
            for section in made.sections
        ]
        show_json({"report": str(path), "model": made.model.name, "sections": sections, "left_out": left_out})
        return
    tell_left_out(left_out)
    for section in made.sections:
        top = ", ".join(f"{label} {100 * p:.0f} %" for label, p in section.predictions[:3])
        typer.echo(f"{section.name}: {top or 'no class scores'}")
        for failure in section.failures:
            typer.echo(f"{failure.technique} could not run: {failure.reason}", err=True)
    typer.echo(path)
