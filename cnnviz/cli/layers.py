"""``cnnviz layers``: every layer of a model that can be named."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .. import models
from ..errors import OptionError
from ..models import Layer
from .common import DeviceOption, JsonOption, WeightsOption, load, show_json, show_table


def layers(
    model: Annotated[str | None, typer.Argument(help="As for --model; the embedded MobileNetV2 by default.")] = None,
    weights: WeightsOption = "none",
    size: Annotated[str | None, typer.Option(metavar="H[,W]", help="Input size; the model's own by default.")] = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """List the addressable layers of a model, in the order in which they finish.

    Sizes and strides are those of the receptive field, in input pixels; a layer behind a global operation has none.
    """
    loaded = load(model, weights, device)
    found = models.layers(loaded, loaded.example(_size(size)))
    if json:
        show_json([asdict(layer) for layer in found])
        return
    columns = ["layer", "type", "output", "receptive field", "stride", "parameters"]
    show_table(columns, [_row(layer) for layer in found])


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise OptionError(f"--size: got '{text}', expected H or H,W in pixels")
    return int(parts[0]), int(parts[-1])


def _row(layer: Layer) -> list[object]:
    field = layer.receptive_field
    shape = " x ".join(map(str, layer.shape)) if layer.shape is not None else ""
    if field is None:
        return [layer.name, layer.type, shape, "", "", layer.parameters]
    size, stride = (" x ".join(map(str, pair)) for pair in (field.size, field.stride))
    return [layer.name, layer.type, shape, size, stride, layer.parameters]
