"""``cnnviz explain TECHNIQUE IMAGE…``: a command for each technique, with flags made from its options."""

from __future__ import annotations

import inspect
import itertools
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from ..data import find_images
from ..errors import InputError
from ..explainer import Explainer
from ..explanation import Explanation, Heatmap
from ..explanation.pictures import MANIFEST, PictureFolder
from ..explanation.saving import FOLDER
from ..models import Model
from ..registry import techniques
from ..technique import Technique
from .common import (
    DeviceOption,
    ImagesArgument,
    JsonOption,
    MemoryOption,
    ModelOption,
    SeedOption,
    TargetsOption,
    WeightsOption,
    keeping,
    load,
    parse_target,
    progress,
    readable,
    require_pictures,
    show_json,
    show_table,
    tell_left_out,
)
from .flags import with_flags


class Techniques(TyperGroup):
    """Commands that are made when they are asked for, so that no plugin is imported for another's sake."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the techniques that work."""
        return list(techniques().usable())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of one technique."""
        made = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        technique = techniques()[cmd_name]
        made.command(cmd_name, help=technique.description)(_command(technique))
        return typer.main.get_command(made)


app = typer.Typer(
    cls=Techniques,
    help="Explain images with a technique; 'cnnviz explain TECHNIQUE --help' shows its options.",
    no_args_is_help=True,
)


@app.callback()
def _callback() -> None:
    pass  # a Typer without any command of its own needs one


def _run(
    technique: Technique,
    options: dict[str, Any],
    *,
    images: list[Path] | None = None,
    model: str | None,
    weights: str,
    target: list[str] | None,
    layer: list[str] | None = None,
    out: Path | None,
    seed: int,
    memory: str,
    device: str,
    json: bool,
) -> None:
    paths = find_images(images or [])
    if technique.inputs in ("each", "all") and not paths:
        raise InputError(f"technique '{technique.name}' needs an image; give the path of one or more")
    loaded = load(model, weights, device)
    if paths:
        require_pictures(loaded, model)
    place = Path("cnnviz-out") / technique.name
    prepare = partial(Explainer, loaded, technique.name, layer=layer or None, memory=memory)
    if technique.whole and technique.inputs == "each" and (len(paths) > 1 or any(map(Path.is_dir, images or []))):
        pictures = out or place.with_name(f"{place.name}-pictures")
        _one_by_one(prepare, options, paths, _targets(target or [], 1), seed, pictures, json=json)
        return
    FOLDER.check(out or place)
    paths, left_out = readable(paths, images or [])
    explainer = prepare(**options)
    tell_left_out(left_out)
    with progress(technique.name) as bar, keeping(lambda: _kept(options.get("checkpoint"))):
        result = explainer(list(paths) or None, _targets(target or [], len(paths)), seed=seed, progress=bar.step)
        folder = result.save(out or place)
    if target and result.provenance is not None and result.provenance.target is None:
        typer.echo(f"'{technique.name}' explains no target, so that --target changes nothing", err=True)
    _tell(result, loaded, paths, folder, json=json)


def _kept(checkpoint: Any) -> str:
    """Say what is left of work that was interrupted."""
    if checkpoint is None or not Path(checkpoint).expanduser().exists():
        return "nothing was written"
    return f"the same command goes on from {checkpoint}"


def _one_by_one(
    prepare: Callable[..., Explainer],
    options: dict[str, Any],
    paths: list[Path],
    target: Any,
    seed: int,
    place: Path,
    *,
    json: bool,
) -> None:
    """Work on pictures of any sizes, such as the frames of a film, and write each result as soon as it is there."""
    explainer = prepare(**options)
    checkpoint = own = options.get("checkpoint")
    names = _names(paths)
    made = PictureFolder(place, {name: str(path) for name, path in zip(names, paths, strict=True)})
    left_out: dict[str, str] = {}

    def kept() -> str:
        return f"what was done is in {made.folder}" if (made.folder / MANIFEST).exists() else _kept(own)

    with progress("") as bar, keeping(kept):
        try:
            for number, (path, name) in enumerate(zip(paths, names, strict=True)):
                bar.label(f"{number + 1} of {len(paths)}: {path.name}")
                if checkpoint is not None:  # of each picture its own
                    own = str(Path(checkpoint).with_stem(f"{Path(checkpoint).stem}-{name}"))
                    explainer = prepare(**{**options, "checkpoint": own})
                try:
                    result = explainer(path, target, seed=seed, progress=bar.step)
                except InputError as error:
                    left_out[str(path)] = str(error)
                else:
                    made.add(name, result)
        finally:
            made.finish(left_out)
    if len(left_out) == len(paths):
        raise InputError(f"nothing could be made of {len(paths)} images; {next(iter(left_out.values()))}")
    if json:
        show_json({"folder": str(made.folder), "left_out": left_out})
        return
    tell_left_out(left_out)
    typer.echo(made.folder)


def _names(paths: list[Path]) -> list[str]:
    """Return what each picture's result is called, no two alike: as the picture, by as much of its path as it takes."""
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100  # resolve() would follow links
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    stems = ["-".join(path.relative_to(root).with_suffix("").parts) for path in absolute]
    counts = Counter(stems)
    names: dict[str, None] = {}
    for stem, path in zip(stems, absolute, strict=True):
        wanted = stem if counts[stem] == 1 else f"{stem}{path.suffix.replace('.', '-')}"
        others = (f"{wanted}-{number}" for number in itertools.count(2))
        names[next(name for name in itertools.chain([wanted], others) if name not in names)] = None
    return list(names)


def _targets(texts: list[str], images: int) -> Any:
    """Return what to explain: of each image, or of nothing, one target or several."""
    parsed = [parse_target(text) for text in texts]
    if len(parsed) <= 1:
        return parsed[0] if parsed else None
    return [parsed] * images if images else parsed


def _tell(result: Explanation, model: Model, paths: list[Path], folder: Path, *, json: bool) -> None:
    figures = sorted(folder.glob("figure-*.png"))
    rows: list[dict[str, Any]] = []
    scores = result.scores if isinstance(result, Heatmap) else None
    classes = result.target if isinstance(result, Heatmap) else None
    each = 1 if scores is None else len(scores) // max(len(paths), 1)  # several targets give several rows
    for i, path in enumerate(path for path in paths for _ in range(each)):
        row: dict[str, Any] = {"image": str(path)}
        if classes is not None:
            row |= {"target": int(classes[i]), "label": model.label(int(classes[i]))}
        if scores is not None:
            row["score"] = round(float(scores[i]), 6)
        rows.append(row)
    if json:
        told = result.provenance.to_json() if result.provenance else None
        show_json({"folder": str(folder), "figures": list(map(str, figures)), "results": rows, "provenance": told})
        return
    if rows and len(rows[0]) > 1:
        columns = list(rows[0])
        show_table(columns, [[row[column] for column in columns] for row in rows])
    for figure in figures:
        typer.echo(figure)


def _command(technique: Technique) -> Callable[..., None]:
    """Return a function whose signature typer turns into the technique's command."""
    defaults = {**_DEFAULTS, "images": None} if technique.inputs == "any" else _DEFAULTS
    common = [
        parameter.replace(annotation=_COMMON[name], default=defaults[name])
        for name, parameter in inspect.signature(_run, eval_str=True).parameters.items()
        if name in _COMMON
        and not (name == "layer" and technique.layers == "none")
        and not (name == "images" and technique.inputs == "none")
    ]
    return with_flags(partial(_run, technique), technique.name, technique.options, common)


_COMMON: Final[dict[str, Any]] = {
    "images": ImagesArgument,
    "model": ModelOption,
    "weights": WeightsOption,
    "target": TargetsOption,
    "layer": Annotated[
        list[str] | None,
        typer.Option("--layer", help="Module name, NAME#K for the K-th call; repeatable where many are taken."),
    ],
    "out": Annotated[Path | None, typer.Option("--out", help="Folder to write; cnnviz-out/TECHNIQUE by default.")],
    "seed": SeedOption,
    "memory": MemoryOption,
    "device": DeviceOption,
    "json": JsonOption,
}
_DEFAULTS: Final[dict[str, Any]] = {
    "images": inspect.Parameter.empty,
    "model": None,
    "weights": "DEFAULT",
    "target": None,
    "layer": None,
    "out": None,
    "seed": 0,
    "memory": "1GiB",
    "device": "cpu",
    "json": False,
}
