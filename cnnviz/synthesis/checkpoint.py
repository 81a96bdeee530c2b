"""An optimisation on disk, to be continued after an interruption with the bits it would have had."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import SaveError
from ..request import Progress
from ..writing import write_file

_SECONDS = 15.0
_RARELY = 10  # times as long as it took to write the file, at least, pass before it is written again
_FORMAT = "cnnviz-optimisation-1"
_TENSOR = "tensor:"


class Checkpoint:
    """A ``.safetensors`` file with the state of each part of a run.

    Attributes:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        """Read the file if there is one.

        Args:
            path: the file, whose name ends in ``.safetensors``.
            identity: what the run is of, as JSON has it; a file of anything else is refused.

        Raises:
            SaveError: the file is damaged, or of another run.
        """
        self.path = Path(path).expanduser().absolute()
        self._identity = json.dumps(identity, sort_keys=True)
        self._states: dict[str, Any] = {}
        self._tensors: dict[str, Tensor] = {}
        self._written, self._took = time.monotonic(), 0.0
        if self.path.suffix != ".safetensors":
            raise SaveError(f"checkpoint '{path}': expected a file name that ends in .safetensors")
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError) as error:
            raise SaveError(f"checkpoint '{self.path}' cannot be read ({error}); delete it to begin anew") from error
        if about.get("format") != _FORMAT:
            raise SaveError(f"'{self.path}' is no checkpoint of cnnviz; give another file")
        if about["identity"] != self._identity:
            mine, theirs = json.loads(self._identity), json.loads(about["identity"])
            other = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
            raise SaveError(
                f"checkpoint '{self.path}' belongs to another run: it differs in {', '.join(other)}; give another "
                "file, or delete it to begin anew"
            )
        self._states = json.loads(about["states"])

    def state(self, part: str) -> Any:
        """Return what was kept of a part of the run, or None."""
        return _unpacked(self._states[part], self._tensors) if part in self._states else None

    def keep(self, part: str, state: Callable[[], Any], *, done: bool = False, now: bool = False) -> None:
        """Write the state of a part: nested dictionaries and lists of tensors and plain values.

        A file of many parts grows, so that it is written the more rarely the longer that takes.

        Args:
            part: its name.
            state: returns its state, which replaces what was kept of it before.
            done: the part is finished, so that its state is noted if the file is not to be written yet.
            now: the file is written in any case.

        Raises:
            SaveError: the file cannot be written; what was there is as it was.
        """
        begun = time.monotonic()
        due = now or begun - self._written >= max(0.0 if done else _SECONDS, _RARELY * self._took)
        if not (done or due):
            return
        prefix = f"{part}/"
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if not name.startswith(prefix)}
        self._states[part] = _packed(state(), self._tensors, prefix)
        if not due:
            return
        about = {"format": _FORMAT, "identity": self._identity, "states": json.dumps(self._states)}
        write_file(self.path, save(self._tensors, about))
        self._written = time.monotonic()
        self._took = self._written - begun


def advance(done: int, total: int, progress: Progress, keep: Callable[[bool, bool], None]) -> None:
    """Keep the state now and then, and tell how far the work is.

    Args:
        done: steps done.
        total: steps in all.
        progress: is told; may raise to cancel.
        keep: keeps the state; is told whether the work is done, and whether to do so at once, as when progress cancels.
    """
    keep(done == total, False)
    try:
        progress(done, total)
    except BaseException:
        keep(done == total, True)
        raise


def _packed(value: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """Return `value` with names in place of its tensors, which are put into `tensors`."""
    match value:
        case Tensor():
            name = f"{prefix}{len(tensors)}"
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return _TENSOR + name
        case dict():
            return {str(key): _packed(item, tensors, prefix) for key, item in value.items()}
        case list() | tuple():
            return [_packed(item, tensors, prefix) for item in value]
        case _:
            return value


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case str() if value.startswith(_TENSOR):
            return tensors[value.removeprefix(_TENSOR)].clone()
        case dict():
            return {int(key) if key.isdecimal() else key: _unpacked(item, tensors) for key, item in value.items()}
        case list():
            return [_unpacked(item, tensors) for item in value]
        case _:
            return value
