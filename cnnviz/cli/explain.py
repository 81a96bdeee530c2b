"""``cnnviz explain TECHNIQUE IMAGE…``: a command for each technique, with flags made from its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from ..data import find_images
from ..errors import InputError
from ..explainer import explain
from ..explanation import Explanation, Heatmap
from ..models import Model
from ..options import Options, expectation
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
    load,
    option_value,
    parse_target,
    progress,
    require_pictures,
    show_json,
    show_table,
)


class Techniques(TyperGroup):
    """Commands that are made when they are asked for, so that no plugin is imported for another's sake."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the techniques that work."""
        return list(techniques().usable())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of one technique."""
        made = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        technique = techniques()[cmd_name]
        made.command(cmd_name, help=inspect.getdoc(technique.function))(_command(technique))
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
    if technique.inputs != "none" and not paths:
        raise InputError(f"technique '{technique.name}' needs an image; give the path of one or more")
    loaded = load(model, weights, device)
    if paths:
        require_pictures(loaded, model)
    with progress(technique.name) as bar:
        result = explain(
            loaded,
            list(paths) or None,
            technique.name,
            target=_targets(target or [], len(paths)),
            layer=layer or None,
            seed=seed,
            memory=memory,
            progress=bar.step,
            **options,
        )
    folder = result.save(out or Path("cnnviz-out") / technique.name)
    _tell(result, loaded, paths, folder, json=json)


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
    flags = {name: _flag(technique, name, info) for name, info in technique.options.model_fields.items()}

    def command(**given: Any) -> None:
        options = {
            name: option_value(technique.options, name, value)
            for name in flags
            if (value := given.pop(_OPTION + name)) is not None
        }
        _run(technique, options, **given)

    common = [
        parameter
        for name, parameter in inspect.signature(_run, eval_str=True).parameters.items()
        if name in _COMMON
        and not (name == "layer" and technique.layers == "none")
        and not (name == "images" and technique.inputs == "none")
    ]
    shown = [
        parameter.replace(annotation=_COMMON[p], default=_DEFAULTS[p])
        for parameter in common
        for p in (parameter.name,)
    ]
    command.__signature__ = inspect.Signature([*shown, *flags.values()])  # type: ignore[attr-defined]
    return command


_OPTION: Final = "option_"
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


def _flag(technique: Technique, name: str, info: FieldInfo) -> inspect.Parameter:
    dashed = name.replace("_", "-")
    if name in _COMMON or name in ("debug", "help"):
        dashed = f"{technique.name}-{dashed}"
    default = "required" if info.is_required() else f"default: {_shown(info.get_default(call_default_factory=True))}"
    bounds = expectation(technique.options, name)
    is_bool = info.annotation is bool
    told = f"{info.description} ({default})" if is_bool else f"{info.description} ({bounds}; {default})"
    kind: Any = bool if is_bool else str
    option = typer.Option(
        f"--{dashed}/--no-{dashed}" if is_bool else f"--{dashed}",
        help=told[0].upper() + told[1:],
        metavar=None if is_bool else _metavar(technique.options, name),
        show_default=False,
        rich_help_panel=f"Options of {technique.name}",
    )
    return inspect.Parameter(
        _OPTION + name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind | None, option], default=None
    )


def _shown(default: Any) -> str:
    if isinstance(default, (tuple, list)):
        return ",".join(map(str, default))
    return "none" if default is None else str(default)


def _metavar(options: type[Options], name: str) -> str:
    schema = options.model_json_schema()["properties"][name]
    kinds = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    if any("metavar" in part for part in (schema, *kinds)):
        return "|".join(part.get("metavar", schema.get("metavar", "N")) for part in kinds[-1:])
    if any("enum" in part or "const" in part for part in kinds):
        return "|".join(str(item) for part in kinds for item in part.get("enum", [part.get("const")]))
    return {"integer": "N", "number": "X", "array": "X,X,…"}.get(kinds[0].get("type", ""), "TEXT")
