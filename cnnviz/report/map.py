"""A page with the map of an index: pan, zoom, look at an image and its neighbours."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from ..index import Index
from ..writing import write_file
from .template import render_page

_NEIGHBOURS: Final = 8
_ATLAS: Final = 2048  # pixels, which every browser can draw from
_QUALITY: Final = 85


def save_map(index: Index, points: Tensor, path: str | Path, *, method: str, layer: str | None = None) -> Path:
    """Write a page that shows where images lie, in one file that needs no network; return its absolute path.

    Args:
        index: the images.
        points: (N, 2), see `Index.points`.
        path: the file.
        method: how the points were found, in words.
        layer: whose features tell neighbours; the index's last by default.

    Raises:
        SaveError: the file cannot be written.
    """
    k = min(_NEIGHBOURS, len(index) - 1)
    near = torch.empty(len(index), 0, device="cpu")  # a single image has no neighbours
    if k:
        _, near = index.search(index.features(layer), k, layer=layer, skip=range(len(index)))
    groups = _groups(index)
    tiles = index.thumbnails()
    side = tiles.shape[-1]
    columns = max(1, min(_ATLAS // side, round(len(tiles) ** 0.5) or 1))
    down = max(1, _ATLAS // side)
    data = {
        "points": _packed(points.float()),
        "near": _packed(near.int()),
        "ids": list(index.ids),
        "groups": groups,
        "side": side,
        "k": k,
        "columns": columns,
        "rows": down,
        "spacing": _spacing(points),
        "atlases": [_atlas(tiles[i : i + columns * down], columns) for i in range(0, len(tiles), columns * down)],
    }
    page = render_page(
        "map.html.j2",
        title=f"{len(index):,} images, as {index.about['name']} sees them",
        subtitle=f"{method} of {index.layers[index.number(layer)]}; drag, scroll, click a class to see it alone",
        colours=[*groups, "none"],
        count=len(index),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    )
    return write_file(path, page)


def _groups(index: Index) -> dict[str, Any]:
    """Return what points can be coloured by: names, and the number of each image's, -1 where it has none."""
    made: dict[str, Any] = {}
    if any(label is not None for label in index.labels):
        made["label"] = _numbered(index.labels)
    predicted = index.predicted()
    if predicted is not None:
        made["prediction"] = _numbered(predicted)
    return made


def _numbered(values: Sequence[str | None]) -> dict[str, Any]:
    names = sorted({value for value in values if value is not None})
    number = {name: i for i, name in enumerate(names)}
    return {"names": names, "of": [-1 if value is None else number[value] for value in values]}


def _packed(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


def _spacing(points: Tensor) -> float:
    """Return about how far apart points lie, in their units."""
    spread = (points.amax(0) - points.amin(0)).clamp(min=1e-6)
    return float((spread.prod() / len(points)).sqrt())


def _atlas(tiles: Tensor, columns: int) -> str:
    """Return many small pictures, (n, 3, side, side) uint8, in rows as one JPEG, as a data URI."""
    missing = -len(tiles) % columns
    padded = torch.cat([tiles, tiles.new_full((missing, *tiles.shape[1:]), 255)])
    side = tiles.shape[-1]
    rows = padded.reshape(-1, columns, 3, side, side).permute(0, 3, 1, 4, 2)  # (rows, side, columns, side, 3)
    file = io.BytesIO()
    sheet = rows.reshape(-1, columns * side, 3).contiguous()
    Image.fromarray(sheet.numpy()).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
