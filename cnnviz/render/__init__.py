"""From numbers to pictures: normalising, colouring, laying over, arranging, captioning."""

from .colour import DIVERGING, SEQUENTIAL, colour, colour_bar
from .figure import compose, legible, matplotlib_figure
from .grid import grid, settle
from .normalise import Scale
from .overlay import overlay, resize, resize_map, to_pil, to_tensor

__all__ = [
    "DIVERGING",
    "SEQUENTIAL",
    "Scale",
    "colour",
    "colour_bar",
    "compose",
    "grid",
    "legible",
    "matplotlib_figure",
    "overlay",
    "resize",
    "resize_map",
    "settle",
    "to_pil",
    "to_tensor",
]
