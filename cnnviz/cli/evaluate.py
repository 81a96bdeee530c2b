"""``cnnviz evaluate FOLDER``: techniques compared by metrics over many images."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import typer
from torch import Tensor

from ..data import find_images, open_image
from ..errors import InputError
from ..explainer import Explainer
from ..metrics import available, evaluate
from ..models import Model
from ..registry import techniques
from ..report import evaluation_folder, save_evaluation
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
    read_spec,
    require_pictures,
    show_json,
    show_table,
    tell_left_out,
)


def evaluate_(
    images: ImagesArgument,
    model: ModelOption = None,
    weights: WeightsOption = "DEFAULT",
    technique: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:option=value:…; repeatable. By default all attributions that take seconds."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:option=value:…; repeatable. By default all that do not explain again."),
    ] = None,
    target: TargetOption = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="CSV file with the columns image, left, top, right, bottom in pixels of the image, and maybe label: "
            "the class to explain there."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("cnnviz-out/evaluation"),
    seed: SeedOption = 0,
    memory: MemoryOption = "1GiB",
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Measure how faithful, stable and well placed each technique's maps are; write a page with table and plots."""
    paths = find_images(images)
    loaded = load(model, weights, device)
    require_pictures(loaded, model)
    specs = {text: read_spec(text, techniques()) for text in technique or []}
    explainers = {text: Explainer(loaded, name, memory=memory, **given) for text, (name, given) in specs.items()}
    metrics: dict[str, dict[str, Any]] = {}
    for name, given in (read_spec(text, available()) for text in metric or []):
        if name in metrics:
            raise InputError(f"--metric {name} is named twice; evaluate once more with other options")
        metrics[name] = given
    evaluation_folder(metrics).check(out)
    marked = None if boxes is None else _Marked(boxes, paths, loaded)
    if target is not None and marked is not None and marked.labels is not None:
        raise InputError(f"{boxes} has labels, and --target was given; leave one of them out")
    with progress("loading") as bar:
        made = evaluate(
            loaded,
            paths,
            explainers or None,
            metrics or None,
            target=parse_target(target) if marked is None or marked.labels is None else marked.labels,
            boxes=None if marked is None else marked.boxes,
            seed=seed,
            memory=memory,
            progress=bar.step,
            started=bar.rename,
        )
    folder = save_evaluation(made, out)
    if json:
        show_json({"folder": str(folder), **made.to_json()})
        return
    show_table(*made.table())
    for (label, name), why in made.failures.items():
        typer.echo(f"{label}{f', {name}' if name else ''} could not be done: {why}", err=True)
    tell_left_out(made.left_out)
    typer.echo(folder / "index.html")


_SIDES = ("left", "top", "right", "bottom")
_Box: TypeAlias = tuple[str, list[float]]  # where it was read, and its sides


class _Marked:
    """Boxes, and maybe labels, of images, from a CSV file.

    Attributes:
        boxes: of each image, in pixels of what the network sees.
        labels: of each image, or None where the file has none.
    """

    def __init__(self, file: Path, paths: list[Path], model: Model) -> None:
        boxes: dict[Path, list[_Box]] = {path: [] for path in paths}
        labels: dict[Path, set[str]] = {path: set() for path in paths}
        for number, row in _lines(file):
            place = f"{file}, line {number}"
            path = _meant(_cell(row, "image", place, "the name of one"), paths, place)
            boxes[path].append((place, _sides(row, place)))
            labels[path] |= {row["label"]} if row.get("label") else set()
        self.boxes = [_moved(path, boxes[path], model) for path in paths]
        self.labels: list[Any] | None = None
        if any(labels.values()):
            wrong = next((path for path in paths if len(labels[path]) != 1), None)
            if wrong is not None:
                raise InputError(f"{file}: '{wrong}' has no label or several; give each image one, or none any")
            self.labels = [parse_target(next(iter(labels[path]))) for path in paths]


def _lines(file: Path) -> list[tuple[int, dict[str, str]]]:
    needed = ("image", *_SIDES)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{file}: its first line has no column {missing[0]}; expected {','.join(needed)}")
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{file}' cannot be read as CSV: {error}") from error


def _cell(row: dict[str, str], column: str, place: str, expected: str) -> str:
    text = row[column]
    if text is None or not text.strip():  # a short row has None
        raise InputError(f"{place}: nothing in column {column}; expected {expected}")
    return text


def _sides(row: dict[str, str], place: str) -> list[float]:
    sides: list[float] = []
    for column in _SIDES:
        text = _cell(row, column, place, "four numbers")
        try:
            sides.append(float(text))
        except ValueError as error:
            raise InputError(f"{place}, column {column}: {error}; expected four numbers") from error
    return sides


def _meant(name: str, paths: list[Path], place: str) -> Path:
    """Return the image that a path means, or a name, or the end of a path."""
    absolute = {path: Path(os.path.abspath(path)) for path in paths}  # noqa: PTH100  # resolve() would follow links
    parts = Path(name).parts
    found = [path for path, whole in absolute.items() if whole == Path(os.path.abspath(name))]  # noqa: PTH100
    found = found[:1] or [path for path, whole in absolute.items() if whole.parts[-len(parts) :] == parts]
    if len(found) != 1:
        told = "is none of the images" if not found else f"may be {found[0]} or {found[1]}; give more of its path"
        raise InputError(f"{place}: '{name}' {told}")
    return found[0]


def _moved(path: Path, rows: list[_Box], model: Model) -> Tensor:
    for place, (left, top, right, bottom) in rows:
        if not (left <= right and top <= bottom):  # NaN neither
            told = f"got {[left, top, right, bottom]}, expected {', '.join(_SIDES)}, in this order"
            raise InputError(f"{place}, boxes of '{path}': {told}")
    try:
        picture = open_image(path) if rows else None
    except InputError:  # it will be left out
        picture = None
    if picture is None:
        return torch.zeros(0, 4)
    assert model.preprocess is not None
    return model.preprocess.boxes(torch.tensor([sides for _, sides in rows]), (picture.height, picture.width))
