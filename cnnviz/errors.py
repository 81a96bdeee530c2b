"""What cnnviz raises: each message says what was got, what is expected and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CnnvizError(Exception):
    """Base of every error that cnnviz raises on purpose."""


class InputError(CnnvizError, ValueError):
    """An image or a tensor that cannot be explained."""


class OptionError(CnnvizError, ValueError):
    """An option or argument that is unknown, of the wrong type or out of bounds."""


class TargetError(CnnvizError, ValueError):
    """A class, label, channel, neuron or callable that does not fit the model's output."""


class LayerError(CnnvizError, ValueError):
    """A layer that the model does not have, does not call, or that a technique cannot use."""


class ModelError(CnnvizError, ValueError):
    """A model that cannot be loaded, or that cannot be explained without changing it."""


class PluginError(CnnvizError):
    """A technique plugin that is unknown, faulty, or offered twice."""


class SaveError(CnnvizError, OSError):
    """A result that cannot be written to, or read back from, the folder given."""


def reason(error: BaseException) -> str:
    """Return why work failed: an error of ours in its own words, any other with its type."""
    return str(error) if isinstance(error, CnnvizError) else repr(error)


def nearest(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return ``"; nearest: 'a', 'b'"`` for the known names closest to `name`, or ``""``."""
    close = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return "; nearest: " + ", ".join(map(repr, close)) if close else ""
