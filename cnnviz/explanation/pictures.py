"""Results for many pictures in one folder, each written as soon as it is there."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from PIL.PngImagePlugin import PngInfo

from .. import render
from ..writing import Kind, write_file
from .saving import FOLDER, save
from .types import Explanation, Gallery

MANIFEST: Final = "pictures.json"


class PictureFolder:
    """A folder of pictures that techniques made, named after what they were made of.

    A result that is one picture and nothing else is ``NAME.png``, with its provenance in the text chunk "cnnviz"; any
    other is a folder NAME, as `Explanation.save` writes it. ``pictures.json`` says which was made of what.

    Attributes:
        folder: its absolute path.
    """

    def __init__(self, folder: str | Path, sources: Mapping[str, str]) -> None:
        """Begin a folder, or one that is there anew; what it held of the same names is replaced.

        Args:
            folder: a new or empty one, or one that was written by this class.
            sources: for each name what its picture is made of.

        Raises:
            SaveError: the folder holds something else, or cannot be written.
        """
        known = _known(Path(folder).expanduser() / MANIFEST)
        self._made = known or {}
        self._sources = sources
        self._begun = False
        owned = [] if known is None else [MANIFEST, *known, *(f"{name}.png" for name in known)]
        self.folder = Kind("pictures made by cnnviz", tuple(map(_literal, owned))).check(folder)

    def add(self, name: str, result: Explanation) -> None:
        """Write a result; one of the same name that took the other form goes.

        Raises:
            SaveError: it cannot be written.
        """
        folder, file = self.folder / name, self.folder / f"{name}.png"
        if not self._begun:  # so that the folder is known again after it was killed
            self._tell({**self._made, **self._sources}, {})
            self._begun = True
        if (
            not isinstance(result, Gallery)
            or len(result.images) != 1
            or result.tensors().keys() & {"history", "values"}
        ):
            save(result, folder, any_name=True)
            if file.is_file():
                file.unlink()
        else:
            about = PngInfo()
            about.add_itxt("cnnviz", json.dumps(result.provenance and result.provenance.to_json()))
            encoded = io.BytesIO()
            render.to_pil(result.images[0]).save(encoded, "PNG", pnginfo=about)
            write_file(file, encoded.getvalue())
            if folder.is_dir():
                shutil.rmtree(FOLDER.check(folder, any_name=True))
        self._made[name] = self._sources[name]

    def finish(self, left_out: Mapping[str, str]) -> None:
        """Write down what was made of what, and what could not be, and why; nothing if nothing was made."""
        if self._begun:
            self._tell(self._made, left_out)

    def _tell(self, pictures: Mapping[str, str], left_out: Mapping[str, str]) -> None:
        told = {"pictures": dict(pictures), "left_out": dict(left_out)}
        write_file(self.folder / MANIFEST, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _known(manifest: Path) -> dict[str, str] | None:
    """Return what a folder's pictures were made of, by name; None where there is no manifest."""
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if isinstance(known, dict) else None


def _literal(name: str) -> str:
    """Return a pattern that only this name matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
