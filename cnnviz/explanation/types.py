"""What a technique gives back: heatmaps, pictures, maps of points, neighbours."""

from __future__ import annotations

import base64
import io
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .. import render
from .provenance import Provenance

_SHOWN = 16
_CHANNELS_SHOWN = 64
_LARGE = 96  # pixels; a smaller picture is shown in a grid
_TILE = 48
_TILES_SHOWN = 1024
_FRAMES = 5  # of an animation that are shown
_GAP = 8
_MAP = 1600  # pixels
_CELLS = 40  # in a row of it
_LARGEST_TILE = 96
_DOT = (40, 90, 160)  # colours
_MARK = (220, 30, 50)

Panel = tuple[Image.Image, str, "render.Scale | None"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation(ABC):
    """A result with the pictures it explains and its provenance.

    Attributes:
        pictures: what was explained, (N, 3, H, W) in [0, 1], or None where nothing was.
        captions: a line for each sample or picture; may be empty.
        provenance: how it was made; None only before cnnviz has filled it in.
    """

    pictures: Tensor | None = None
    captions: tuple[str, ...] = ()
    provenance: Provenance | None = None

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Explanation]]] = {}

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__
        Explanation.kinds[cls.kind] = cls

    @abstractmethod
    def panels(self, limit: int | None = None) -> list[list[Panel]]:
        """Return what is drawn: for each result its panels of picture, title and scale; at most `limit` results."""

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that belongs to the result, by the name of its field."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def equals(self, other: object) -> bool:
        """Whether kind and all fields are equal: tensors bit for bit, wherever they lie, provenance but for time."""
        if not isinstance(other, Explanation) or type(self) is not type(other):
            return False
        return all(_same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    def draw(self, limit: int | None = None) -> list[Image.Image]:
        """Return one picture for each result, with its caption and scale."""
        return [_drawn(row) for row in self.panels(limit)]

    def figure(self) -> Any:
        """Return a matplotlib figure of the result, or of the first 16 where it has more."""
        rows, note = self._first()
        return render.matplotlib_figure([row[-1] for row in rows], note=note)

    def save(self, folder: str | Path) -> Path:
        """Write PNG pictures, a lossless ``.safetensors`` and a JSON sidecar to `folder`; all of it, or nothing.

        An explanation that is there already is replaced; a folder with anything else in it is refused.

        Raises:
            SaveError: the folder cannot be written, or holds something else.
        """
        from .saving import save

        return save(self, Path(folder))

    def _first(self) -> tuple[list[list[Panel]], str]:
        """Return what a notebook shows, and a line that says so where that is not all."""
        rows = self.panels(_SHOWN + 1)
        return rows[:_SHOWN], f"The first {_SHOWN}; save(folder) writes all." if len(rows) > _SHOWN else ""

    def _repr_html_(self) -> str:
        rows, note = self._first()
        images = "".join(
            f'<img alt="{escape(self._described(row[0][1]))}" style="max-width:100%" '
            f'src="data:image/png;base64,{_png(_drawn(row))}">'
            for row in rows
        )
        note = note if rows else f"{self!r}: nothing to show"
        below = f"<p>{escape(note)}</p>" if note else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{images}</div>{below}'

    def _described(self, caption: str) -> str:
        """Return what a picture is, for those who do not see it."""
        return ": ".join(filter(None, (self.kind, render.legible(caption))))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={tuple(value.shape)}" for name, value in self.tensors().items())
        return f"{self.kind}({self.provenance.technique if self.provenance else '?'}: {shapes})"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Heatmap(Explanation):
    """A value for each place of each image.

    Attributes:
        values: (N, 1, h, w) or (N, C, h, w), not normalised; signed where the technique is.
        scores: (N,), the explained score of each sample, or None where nothing was scored.
        target: (N,) class indices, or None where the target is no class.
        errors: standard error of each value, where they were estimated from random draws and it was asked for.
        draws: (N,), how many random draws, or windows, each sample's values were estimated from.
    """

    values: Tensor
    scores: Tensor | None = None
    target: Tensor | None = None
    errors: Tensor | None = None
    draws: Tensor | None = None

    def panels(self, limit: int | None = None) -> list[list[Panel]]:
        """Return for each sample its map and the map over the picture; of many channels, a grid of them."""
        if self.values.numel() == 0:
            return []
        return [self._row(i) for i in range(len(self.values))[:limit]]

    def _row(self, i: int) -> list[Panel]:
        values, caption = self.values[i], self.captions[i] if i < len(self.captions) else ""
        picture = self.pictures[i] if self.pictures is not None else None
        scale = render.Scale.of(values)
        if len(values) == 1:
            return self._map(values[0], picture, scale, caption)
        if len(values) == 3 and scale.signed:
            coloured = render.to_pil(scale.unit(values))
            before: list[Panel] = [] if picture is None else [(render.to_pil(picture), caption, None)]
            return [*before, (coloured, caption, replace(scale, grey=True))]
        tiles = [Image.fromarray(render.colour(channel, scale)) for channel in values[:_CHANNELS_SHOWN]]
        shown = f", channels 0 to {len(tiles) - 1} of {len(values)}" if len(values) > len(tiles) else ""
        return [(render.grid(tiles, tile=max(48, tiles[0].height)), caption + shown, scale)]

    def _map(self, values: Tensor, picture: Tensor | None, scale: render.Scale, caption: str) -> list[Panel]:
        if picture is None:
            return [(Image.fromarray(render.colour(values, scale)), caption, scale)]
        large = render.resize_map(values, (picture.shape[-2], picture.shape[-1]))
        return [
            (Image.fromarray(render.colour(large, scale)), caption, None),
            (render.overlay(picture, values, scale), caption, scale),
        ]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Gallery(Explanation):
    """Pictures, made or collected.

    Attributes:
        images: (M, 3, h, w) in [0, 1].
        rows: (M,) which row (filter, channel, sample) each picture belongs to, or None.
        values: the numbers that the pictures show, (M, …), where they come from numbers.
        history: (M, steps), objective per step of synthesised pictures, or None.
        frame_rate: pictures in a second where they are an animation, or None.
        sources: (M,), which of `pictures` each was made from and is shown beside, or None.
    """

    images: Tensor
    rows: Tensor | None = None
    values: Tensor | None = None
    history: Tensor | None = None
    frame_rate: float | None = None
    sources: Tensor | None = None

    def panels(self, limit: int | None = None) -> list[list[Panel]]:
        """Return small pictures in one grid; of large ones each by itself, or those of one source beside it."""
        if self.images.numel() == 0:
            return []
        if max(self.images.shape[-2:]) >= _LARGE:
            return [[self._strip(list(places))] for places in self._groups()[:limit]]
        tiles = [render.to_pil(image) for image in self.images[:_TILES_SHOWN]]
        more = f" (first {len(tiles)} of {len(self.images)})" if len(tiles) < len(self.images) else ""
        caption = self.captions[0] + more if self.captions else more.strip()
        return [[(render.grid(tiles, tile=_TILE), caption, None)]]

    def _groups(self) -> list[range]:
        """Return the places of consecutive pictures that were made from the same source."""
        count = len(self.images)
        if self.sources is None:
            return [range(i, i + 1) for i in range(count)]
        sources = self.sources.tolist()
        begins = [i for i in range(count) if i == 0 or sources[i] != sources[i - 1]]
        return [range(a, b) for a, b in zip(begins, [*begins[1:], count], strict=True)]

    def _strip(self, places: list[int]) -> Panel:
        """Return pictures side by side, after their source; of an animation a few."""
        if self.frame_rate is not None:
            places = [places[round(i * (len(places) - 1) / (_FRAMES - 1))] for i in range(_FRAMES)]
        shown = [self.images[i] for i in places]
        if self.sources is not None and self.pictures is not None:
            shown.insert(0, self.pictures[int(self.sources[places[0]])])
        tiles = [render.to_pil(picture) for picture in shown]
        caption = "; ".join(dict.fromkeys(self.captions[i] for i in places if i < len(self.captions)))
        if len(tiles) == 1:
            return tiles[0], caption, None
        side = max(self.images.shape[-2:])
        return render.grid(tiles, columns=len(tiles), tile=side, gap=_GAP), caption, None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Projection(Explanation):
    """Items laid out in the plane, near each other where the network finds them alike; `pictures` are their thumbnails.

    Attributes:
        points: (M, 2), in the units of the method.
        items: name of each item; may be empty.
        marked: numbers of the items that are framed, such as those that were placed into a map.
    """

    points: Tensor
    items: tuple[str, ...] = ()
    marked: tuple[int, ...] = ()

    def panels(self, limit: int | None = None) -> list[list[Panel]]:  # noqa: ARG002  # it is always one
        """Return one map: thumbnails on a grid, none over another, or dots where there are none; of no items none."""
        if len(self.points) == 0:
            return []
        caption = self.captions[0] if self.captions else ""
        if self.pictures is None:
            return [[(self._dots(), caption, None)]]
        side = max(4, min(_CELLS, math.ceil(math.sqrt(2 * len(self.points)))))
        cells = render.settle(self.points, side, self.marked)
        tile = min(_LARGEST_TILE, _MAP // side)
        canvas = Image.new("RGB", (side * tile, side * tile), "white")
        for cell, point in cells.items():
            picture = render.grid([render.to_pil(self.pictures[point])], tile=tile - 1)
            corner = (cell % side * tile, cell // side * tile)
            canvas.paste(picture, corner)
            if point in self.marked:
                ends = (corner[0] + tile - 2, corner[1] + tile - 2)
                ImageDraw.Draw(canvas).rectangle((corner, ends), outline=_MARK, width=max(2, tile // 12))
        left_out = len(self.points) - len(cells)
        return [[(canvas, f"{caption}; {left_out} lie behind others" if left_out else caption, None)]]

    def _dots(self) -> Image.Image:
        points = self.points.detach().float().cpu()
        low, high = points.amin(0), points.amax(0)
        places = (points - low) / (high - low).clamp(min=torch.finfo(points.dtype).tiny)
        canvas = Image.new("RGB", (_MAP // 2, _MAP // 2), "white")
        corners = (places * (_MAP // 2 - 5)).round().int().tolist()
        marked = [corners[number] for number in self.marked]
        for dots, colour in ((corners, _DOT), (marked, _MARK)):
            for x, y in dots:
                down = _MAP // 2 - 5 - y
                canvas.paste(colour, (x, down, x + 5, down + 5))
        return canvas


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Neighbours(Explanation):
    """The nearest items of each query; `pictures` are the queries.

    Attributes:
        indices: (Q, k) item numbers, nearest first.
        distances: (Q, k), in the units of the metric.
        found: (Q, k, 3, h, w) pictures of the neighbours, or None.
    """

    indices: Tensor
    distances: Tensor
    found: Tensor | None = None

    def panels(self, limit: int | None = None) -> list[list[Panel]]:
        """Return a row for each query: itself, then its neighbours; its caption, or their numbers and distances."""
        rows: list[list[Panel]] = []
        for q in range(len(self.indices))[:limit]:
            if q < len(self.captions):
                caption = self.captions[q]
            else:
                pairs = zip(self.indices[q].tolist(), self.distances[q].tolist(), strict=True)
                caption = ", ".join(f"{index} ({round(distance, 6):.3g})" for index, distance in pairs)
            shown = [] if self.pictures is None else [self.pictures[q]]
            shown += [] if self.found is None else list(self.found[q])
            tiles = [render.to_pil(picture) for picture in shown] or [Image.new("RGB", (_LARGE, 8), "white")]
            rows.append([(render.grid(tiles, columns=len(tiles), tile=2 * _TILE, gap=6), caption, None)])
        return rows


def _drawn(row: list[Panel]) -> Image.Image:
    return render.compose([panel[0] for panel in row], caption=row[0][1], scale=row[-1][2])


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return not isinstance(a, Tensor) and not isinstance(b, Tensor) and bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
