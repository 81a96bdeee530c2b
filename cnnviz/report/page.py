"""Run techniques on photographs and lay the results out as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from .. import render
from ..data import open_image
from ..errors import CnnvizError, reason
from ..explainer import attempt, explain
from ..explanation import Explanation
from ..models import Model
from ..registry import techniques
from ..request import Progress
from ..targets import Target
from ..technique import Technique
from ..writing import write_file
from .template import render_page

_BAR = 320
_ROWS = 12  # of one result that are shown


@dataclass(frozen=True)
class Failure:
    """A technique that could not run on this model or picture, and why."""

    technique: str
    reason: str


@dataclass(frozen=True)
class Section:
    """One photograph with everything that was found out about it.

    Attributes:
        name: file name of the photograph.
        picture: the part of it that the network sees.
        predictions: label and probability of the five most probable classes; empty where the output is no class score.
        explanations: by technique.
        failures: techniques that could not run.
    """

    name: str
    picture: Image.Image
    predictions: tuple[tuple[str, float], ...]
    explanations: dict[str, Explanation]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Report:
    """Sections about one model, ready to be written as a page."""

    model: Model
    sections: tuple[Section, ...]

    def html(self) -> str:
        """Return the page: self-contained, readable without a network, on a phone and in the dark."""
        known = techniques()
        return render_page(
            "report.html.j2",
            model=self.model,
            digest=self.model.digest,
            sections=[_view(section, known) for section in self.sections],
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            versions=_versions(self.sections),
        )

    def write(self, path: str | Path) -> Path:
        """Write the page to `path`, all of it or nothing, and return its absolute path.

        Raises:
            SaveError: the file cannot be written.
        """
        return write_file(path, self.html())


def make_report(
    model: Model,
    photographs: Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    target: Target = None,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Progress | None = None,
    started: Any = None,
) -> Report:
    """Explain photographs with every suitable technique and its default options.

    Args:
        model: with preprocessing.
        photographs: paths of image files.
        names: techniques to run; None takes all installed ones that work on single images or on the model alone,
            take seconds, and whose options all have defaults. One that fails is reported there.
        target: as for `explain`.
        seed: as for `explain`.
        memory: as for `explain`.
        progress: called with steps done and their total within one technique; may raise to cancel.
        started: called with the name of each technique and photograph before it runs.

    Raises:
        InputError: a photograph cannot be opened.
        PluginError: a technique that was named does not exist.
    """
    for path in photographs:  # none is found to be unreadable after the work on others
        open_image(path)
    chosen = {name: techniques()[name] for name in names} if names is not None else _suitable()
    sections = []
    for path in photographs:
        name, image = Path(path).name, open_image(path)  # one is held at a time
        inputs = model.prepare([image])
        found: dict[str, Explanation] = {}
        failures: list[Failure] = []
        for technique in chosen.values():
            if started is not None:
                started(technique.name, name)
            given = None if technique.inputs == "none" else inputs
            made = _attempt(model, given, technique.name, progress, target=target, seed=seed, memory=memory)
            if isinstance(made, Failure):
                failures.append(made)
            else:
                found[technique.name] = made
        assert model.preprocess is not None
        picture = model.preprocess.picture(image)
        sections.append(Section(name, picture, tuple(model.predict(inputs)[0]), found, tuple(failures)))
    return Report(model, tuple(sections))


def _attempt(
    model: Model, inputs: Tensor | None, technique: str, progress: Progress | None, **arguments: Any
) -> Explanation | Failure:
    """Run a technique; one that fails, in whatever way, takes no other down. Cancelling goes through."""

    def explained(step: Progress) -> tuple[Explanation, bool]:
        made = explain(model, inputs, technique, progress=step, **arguments)
        return made, bool(made.panels(1))  # one that cannot be drawn has failed as well

    made, error = attempt(explained, progress)
    if error is not None:
        blamed = "" if isinstance(error, CnnvizError) else f", from {techniques().offer(technique)}"
        return Failure(technique, reason(error) + blamed)
    assert made is not None
    explanation, shows = made
    return explanation if shows else Failure(technique, "it gave nothing to show")


def _suitable() -> dict[str, Technique]:
    return {
        name: technique
        for name, technique in techniques().usable().items()
        if (technique.inputs == "each" or (technique.inputs == "none" and technique.layers != "none"))
        and technique.quick
        and not technique.whole
    }


_View: TypeAlias = dict[str, Any]


def _view(section: Section, known: Any) -> _View:
    cards = [_card(explanation, known) for explanation in section.explanations.values()]
    return {"section": section, "cards": sorted(cards, key=lambda card: (card["family"], card["name"]))}


def _card(explanation: Explanation, known: Any) -> _View:
    provenance = explanation.provenance
    assert provenance is not None
    technique = known[provenance.technique]
    rows = explanation.panels(_ROWS + 1)
    scales = [row[-1][2] for row in rows[:_ROWS]]
    readings = dict.fromkeys(_reading(scale, technique.family) for scale in scales if scale is not None)
    return {
        "name": provenance.technique,
        "family": technique.family,
        "summary": technique.summary,
        "rows": [_row(row) for row in rows[:_ROWS]],
        "reading": " ".join(readings),
        "more": f"The first {_ROWS}; cnnviz explain {provenance.technique} writes all." if len(rows) > _ROWS else "",
        "provenance": provenance,
    }


def _row(panels: list[tuple[Image.Image, str, render.Scale | None]]) -> _View:
    """Return what is shown of one target of a result: pictures side by side, with their caption and scale."""
    scale = panels[-1][2]
    return {
        "caption": panels[0][1],
        "panels": [_enlarged(image) for image, _, _ in panels],
        "bar": None if scale is None else render.colour_bar(scale, _BAR, 10),
        "ticks": [] if scale is None else [label for _, label in scale.ticks()],
    }


def _reading(scale: render.Scale, family: str) -> str:
    """Say how the colours are read."""
    if scale.grey:
        return "Grey is 0, in each colour channel by itself."
    if scale.signed and family == "attribution":
        return "Red speaks for the target, blue against it."
    return "Red is positive, blue negative." if scale.signed else "The brighter, the more."


def _enlarged(image: Image.Image) -> Image.Image:
    """Enlarge small grids by whole factors, so that browsers do not blur them."""
    factor = max(1, _BAR // image.width)
    return (
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) if factor > 1 else image
    )


def _versions(sections: Sequence[Section]) -> dict[str, str]:
    for section in sections:
        for explanation in section.explanations.values():
            if explanation.provenance is not None:
                return explanation.provenance.versions
    return {"torch": torch.__version__}
