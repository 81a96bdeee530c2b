"""What several commands share: choosing a model, reading a target, progress, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..data import open_image
from ..errors import InputError, ModelError, OptionError, TargetError
from ..models import Model, load_model
from ..options import RESERVED, Options
from ..registry import Registry
from ..request import Progress as Step
from ..targets import Channel, Neuron, Top, channel, neuron, top
from . import INTERRUPTED
from .flags import option_value

ImagesArgument: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.", show_default=False)
]
_MODELS = "torchvision name, timm:NAME, module:function, or a file that train-style wrote"
ModelOption: TypeAlias = Annotated[
    str | None, typer.Option("--model", help=f"{_MODELS}; the embedded MobileNetV2 by default.")
]
WeightsOption: TypeAlias = Annotated[
    str, typer.Option("--weights", help="DEFAULT, none (random), or a .safetensors or state-dict file.")
]
DeviceOption: TypeAlias = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")]
_TARGETS = "Class index or label, top:K, channel:LAYER:C[:max], or neuron:LAYER:C:Y:X"
TargetOption: TypeAlias = Annotated[str | None, typer.Option("--target", help=f"{_TARGETS}; top class by default.")]
TargetsOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--target", help=f"{_TARGETS}; repeatable; top class by default.")
]
SeedOption: TypeAlias = Annotated[int, typer.Option("--seed", help="Seed of the random numbers.")]
MemoryOption: TypeAlias = Annotated[str, typer.Option("--memory", help="Budget for batches.")]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def load(model: str | None, weights: str, device: str) -> Model:
    """Load the model that the flags name; ``module:function`` is looked for in the current folder too.

    There last, so that no file in it stands for a library.
    """
    if model is not None and ":" in model and not model.startswith("timm:") and "" not in sys.path:
        sys.path.append("")
    try:
        place = torch.device(device)
        torch.empty(1, device=place).cpu()  # of "meta" there is nothing to copy
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]  # torch may go on for a page
        raise ModelError(f"device '{device}' cannot be used here: {why}; try --device cpu") from error
    return load_model(model, weights=None if weights.lower() == "none" else weights, device=place)


def require_pictures(loaded: Model, model: str | None) -> None:
    """Refuse a model, named so by a flag, that cannot be fed image files."""
    if loaded.preprocess is None:
        raise InputError(f"model '{model}' has no preprocessing for images; return a cnnviz.Model from the function")


def parse_target(text: str | None) -> int | str | Channel | Neuron | Top | None:
    """Read ``--target``: ``281``, ``tabby``, ``top:3``, ``channel:layer4:7``, ``neuron:layer4:7:3:3``."""
    if text is None:
        return None
    if text.removeprefix("-").isdecimal():
        return int(text)
    kind, *parts = text.split(":")
    wanted = {"top": "top:K", "channel": "channel:LAYER:C[:mean|max]", "neuron": "neuron:LAYER:C:Y:X"}.get(kind)
    if wanted is None or not parts:
        return text
    try:
        if kind == "top":
            (k,) = parts
            return top(int(k))
        if kind == "neuron":
            layer, c, y, x = parts
            return neuron(layer, int(c), int(y), int(x))
        layer, c, reduce = parts if len(parts) == 3 else (*parts, "mean")
        return channel(layer, int(c), reduce)  # type: ignore[arg-type]  # it is checked there
    except ValueError as error:
        raise TargetError(f"--target: got '{text}', expected {wanted}") from error


def read_spec(text: str, known: Registry[Any]) -> tuple[str, dict[str, Any]]:
    """Read ``NAME:option=value:…``: the name of a technique or metric, and its options; a technique's layer too."""
    name, *pairs = text.split(":")
    options: type[Options] = known[name].options
    given: dict[str, Any] = {}
    for pair in pairs:
        option, equals, value = pair.partition("=")
        option = option.replace("-", "_")
        if not equals:
            raise OptionError(f"'{text}': got '{pair}' after the name, expected option=value")
        if option in RESERVED - {"layer"}:
            raise OptionError(f"'{text}': '{option}' is no option of '{name}', but a flag of its own")
        given[option] = option_value(options, option, value) if option in options.model_fields else value
    return name, given


def show_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, as wide as it needs where nobody watches."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))  # no markup, no emoji codes
    if not console.is_terminal:
        console = Console(width=1000)
    console.print(table)


@contextmanager
def progress(label: str) -> Iterator[Bar]:
    """Show a progress bar on standard error; gone when it is done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield Bar(bars, label)


@contextmanager
def keeping(note: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C say what was kept, where otherwise nothing is."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"cnnviz: interrupted; {note()}", err=True)
        sys.exit(INTERRUPTED)


def readable(found: Sequence[Path], named: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """Return the image files that were named, and of those found in folders the ones that can be read; why others not.

    Raises:
        InputError: none can be read.
    """
    paths, left_out = [], {}
    for path in found:
        if path not in named:  # somebody who names a file wants that one
            try:
                open_image(path)
            except InputError as error:
                left_out[str(path)] = str(error)
                continue
        paths.append(path)
    if left_out and not paths:
        raise InputError(f"none of {len(left_out)} images can be read; {next(iter(left_out.values()))}")
    return paths, left_out


def tell_left_out(left_out: Mapping[str, str]) -> None:
    """Say on standard error which images could not be read, and why."""
    for image, why in left_out.items():
        typer.echo(f"{image} is left out: {why}", err=True)


class Bar:
    """One line of progress, renamed as the work goes on."""

    def __init__(self, bars: Progress, label: str) -> None:
        self._bars = bars
        self._task = bars.add_task(label, total=None)
        self.step: Step = self._step

    def _step(self, done: int, total: int) -> None:
        self._bars.update(self._task, completed=done, total=total)

    def rename(self, text: str) -> None:
        """Say what is being done, in work that goes on."""
        self._bars.update(self._task, description=text)

    def label(self, text: str) -> None:
        """Begin another piece of work."""
        self._bars.reset(self._task, description=text, total=None)
