"""Results on disk: a folder with pictures, a lossless tensor file and a JSON sidecar, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import warnings
from dataclasses import fields as fields_of
from functools import partial
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import render
from ..errors import SaveError
from ..writing import UNENCODABLE, Kind
from .provenance import Provenance
from .types import Explanation, Gallery

SIDECAR: Final = "explanation.json"
TENSORS: Final = "tensors.safetensors"
VIDEO: Final = "animation.mp4"
FORMAT: Final = 1
FOLDER: Final = Kind(
    "an explanation",
    (SIDECAR, TENSORS, VIDEO, "figure-*.png", "image-*.png"),
    sidecar=SIDECAR,
    keys=("format", "kind", "sha256"),
)


def save(explanation: Explanation, folder: Path, *, any_name: bool = False) -> Path:
    """Write `explanation` to `folder`, be it called as a file is; see `Explanation.save`."""
    return FOLDER.write(folder, partial(_write, explanation), any_name=any_name)


def _write(explanation: Explanation, folder: Path) -> None:
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in explanation.tensors().items()}
    save_file(tensors, folder / TENSORS)
    for number, image in enumerate(explanation.draw()):
        image.save(folder / f"figure-{number:03d}.png", optimize=True)
    if isinstance(explanation, Gallery):
        for number, picture in enumerate(explanation.images):
            render.to_pil(picture).save(folder / f"image-{number:03d}.png")
        if explanation.frame_rate is not None:
            _film(folder, explanation.frame_rate)
    # Fields that are no tensors, such as captions, are JSON; the sidecar comes last and vouches for the rest.
    given = {field.name: getattr(explanation, field.name) for field in fields_of(explanation)}
    plain = {name: value for name, value in given.items() if name != "provenance" and not isinstance(value, Tensor)}
    sidecar = {
        "format": FORMAT,
        "kind": explanation.kind,
        "provenance": explanation.provenance and explanation.provenance.to_json(),
        "fields": {name: value for name, value in plain.items() if value is not None},
        "sha256": {TENSORS: hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()},
    }
    text = json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n"
    (folder / SIDECAR).write_text(text, encoding="utf-8", errors=UNENCODABLE)


def _film(folder: Path, frame_rate: float) -> None:
    """Make a video of the pictures in a folder, where ffmpeg is installed; pictures without one are a result too."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        return
    command = [ffmpeg, "-loglevel", "error", "-framerate", str(frame_rate), "-i", "image-%03d.png"]
    # Sides must be even, and players know no other pixel format.
    command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", VIDEO]
    try:
        done = subprocess.run(  # noqa: S603  # arguments of our own
            command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        why = str(error.strerror)
    else:
        if done.returncode == 0:
            return
        why = done.stderr.strip()[-300:] or f"exit code {done.returncode}"
    (folder / VIDEO).unlink(missing_ok=True)
    warnings.warn(f"ffmpeg could not make a video of the pictures, which are saved without it: {why}", stacklevel=2)


def load(folder: str | Path) -> Explanation:
    """Read back what `Explanation.save` wrote; the result equals what was written, with its tensors on the CPU.

    Raises:
        SaveError: there is no explanation, or one that is damaged or was written by a newer version.

    Example:
        >>> import tempfile, torch
        >>> made = cnnviz.Heatmap(values=torch.ones(1, 1, 2, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cnnviz.load(made.save(folder)).equals(made)
        True
    """
    place = Path(folder).expanduser()
    try:
        sidecar: dict[str, Any] = json.loads((place / SIDECAR).read_text(encoding="utf-8"))
        raw = (place / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise SaveError(f"'{folder}' holds no explanation ({error.filename} is missing)") from error
    except (OSError, ValueError) as error:
        raise SaveError(f"the explanation in '{folder}' cannot be read: {error}") from error
    try:
        if sidecar["format"] != FORMAT or sidecar["kind"] not in Explanation.kinds:
            told = f"format {sidecar['format']}, kind {sidecar['kind']}"
            raise SaveError(
                f"'{folder}' was written by another version of cnnviz ({told}); this one reads format {FORMAT}"
            )
        if hashlib.sha256(raw).hexdigest() != sidecar["sha256"][TENSORS]:
            raise SaveError(f"'{place / TENSORS}' is damaged: its SHA-256 is not the one in {SIDECAR}; save it again")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in sidecar["fields"].items()
        }
        fields |= load_file(place / TENSORS)
        fields["provenance"] = sidecar["provenance"] and Provenance.from_json(sidecar["provenance"])
        return Explanation.kinds[sidecar["kind"]](**fields)
    except (KeyError, TypeError, SafetensorError) as error:
        raise SaveError(f"the explanation in '{folder}' is damaged: {error!r}") from error
