"""Plots of an evaluation, drawn by matplotlib."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..render import legible

if TYPE_CHECKING:
    from .evaluation import Evaluation

_BAR = 0.34  # inches for each technique


def figure(evaluation: Evaluation, metric: str) -> Any:
    """Return a figure of one metric: means with standard errors, best first; beside them mean curves, if there are."""
    from matplotlib.figure import Figure

    declared = evaluation.metrics[metric]
    sign = -1 if declared.better == "higher" else 1
    cells = {name: evaluation.cell(name, metric) for name in evaluation.techniques}
    names = sorted((n for n in cells if cells[n].count), key=lambda name: sign * cells[name].mean)
    colours = _colours(evaluation)
    curved = [name for name in names if evaluation.measurements[name, metric].curves is not None]
    height = 1.4 + _BAR * max(len(names), 6)
    made = Figure(figsize=(11 if curved else 6, height), layout="constrained")
    bars, *rest = made.subplots(1, 2 if curved else 1, squeeze=False)[0]
    places = range(len(names))
    errors = [0 if math.isnan(cells[name].error) else cells[name].error for name in names]
    bars.barh(
        places, [cells[n].mean for n in names], xerr=errors, color=[colours[n] for n in names], height=0.7, capsize=2
    )
    bars.set_yticks(places, [legible(name) for name in names], parse_math=False)  # a label of one's own may have a $
    bars.invert_yaxis()
    bars.set_title(f"{metric}: {declared.better} is better", fontsize=11, loc="left")
    most = max((cell.count for cell in cells.values()), default=0)
    bars.set_xlabel(f"mean and standard error over {most} image{'s' if most != 1 else ''}")
    for axes in rest:
        _curves(axes, evaluation, metric, curved, colours)
    for axes in (bars, *rest):
        axes.spines[["top", "right"]].set_visible(False)
    return made


def _curves(axes: Any, evaluation: Evaluation, metric: str, names: list[str], colours: dict[str, str]) -> None:
    for name in names:
        made = evaluation.measurements[name, metric]
        assert made.curves is not None
        assert made.places is not None
        known: Tensor = made.curves[~made.curves.isnan().any(1)].double()
        mean, places = known.mean(0), made.places.tolist()
        axes.plot(places, mean.tolist(), color=colours[name], label=legible(name), linewidth=1.6)
        if len(known) > 1:
            error = known.std(0) / math.sqrt(len(known))
            low, high = (mean - error).tolist(), (mean + error).tolist()
            axes.fill_between(places, low, high, color=colours[name], alpha=0.12, linewidth=0)
    across, up = evaluation.measurements[names[0], metric].axes
    axes.set_xlabel(across)
    axes.set_ylabel(f"{up}, mean")
    legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _colours(evaluation: Evaluation) -> dict[str, str]:
    """Return a colour for each technique, the same in every plot."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    names = evaluation.techniques
    shades: Any = colormaps["tab10" if len(names) <= 10 else "tab20"]
    return {name: to_hex(shades(place % shades.N)) for place, name in enumerate(names)}
