"""Panels side by side, with a caption above and a labelled scale below: what is saved, shown and reported."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .colour import colour_bar, palette
from .normalise import Scale

_MARGIN = 10
_TEXT = 14
_INK = (32, 32, 32)
_SMALLEST = 224


@cache
def _font(size: int) -> Any:
    """Return DejaVu Sans, which has far more letters than Pillow's own font, from where matplotlib keeps it."""
    spec = find_spec("matplotlib")  # which is not imported for that
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)


def compose(panels: Sequence[Image.Image], *, caption: str = "", scale: Scale | None = None) -> Image.Image:
    """Return panels of equal height on white, with a wrapped caption above and, given a scale, a colour bar below."""
    factor = max(1, round(_SMALLEST / max(panels[0].size)))
    panels = [p.resize((p.width * factor, p.height * factor), Image.Resampling.NEAREST) for p in panels]
    inner = max(sum(p.width for p in panels) + _MARGIN * (len(panels) - 1), _SMALLEST)
    lines = _wrapped(caption, inner)
    line = _TEXT + 5
    top = _MARGIN + len(lines) * line + (4 if lines else 0)
    body = max(p.height for p in panels)
    bottom = 2 * _MARGIN + 12 + line if scale else _MARGIN
    canvas = Image.new("RGB", (inner + 2 * _MARGIN, top + body + bottom), "white")
    draw = ImageDraw.Draw(canvas)
    for row, text in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + row * line), text, fill=_INK, font=_font(_TEXT))
    left = _MARGIN
    for panel in panels:
        canvas.paste(panel, (left, top))
        left += panel.width + _MARGIN
    if scale:
        _draw_scale(canvas, draw, scale, top + body + _MARGIN, inner)
    return canvas


def _draw_scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, scale: Scale, top: int, width: int) -> None:
    canvas.paste(colour_bar(scale, width, 12), (_MARGIN, top))
    for place, label in scale.ticks():
        anchor = {0.0: "la", 1.0: "ra"}.get(place, "ma")
        draw.text((_MARGIN + place * width, top + 16), label, fill=_INK, font=_font(_TEXT - 1), anchor=anchor)


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _fits(f"{lines[-1]} {word}", width):
            lines[-1] += f" {word}"
        else:
            lines += _pieces(word, width)
    return lines


def _pieces(word: str, width: int) -> list[str]:
    """Return a word, such as a long path, in as many pieces as it takes."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and not _fits(pieces[-1] + letter, width):
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _fits(text: str, width: int) -> bool:
    return bool(_font(_TEXT).getlength(text) <= width)


def legible(text: str) -> str:
    r"""Return a text that can be drawn: bytes of a file's name that are no UTF-8 stand as ``\udce9``."""
    return text.encode(errors="backslashreplace").decode()


def matplotlib_figure(panels: Sequence[tuple[Image.Image, str, Scale | None]], *, note: str = "") -> Any:
    """Return a matplotlib figure with one axes per panel (picture, title, scale), each with its colour bar.

    Args:
        panels: from left to right, row by row; of none the figure says so.
        note: a line above all of them.
    """
    import cmap
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if not panels:
        empty = Figure(figsize=(3.2, 1))
        empty.text(0.5, 0.5, "nothing to show", ha="center", va="center", fontsize=9)
        return empty
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 4.2 * rows), layout="constrained")
    if note:
        figure.suptitle(note, fontsize=9)
    for place, (image, title, scale) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image)
        axes.set_title(textwrap.fill(legible(title), 36), fontsize=9, parse_math=False)
        axes.set_axis_off()
        if scale:
            colours = cmap.Colormap(palette(scale)).to_mpl()
            shown = ScalarMappable(Normalize(scale.low, scale.high), colours)
            figure.colorbar(shown, ax=axes, orientation="horizontal", fraction=0.05, pad=0.02)
    return figure
