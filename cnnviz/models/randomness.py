"""One global random generator for all threads: whoever must touch it takes turns, and puts it back.

There is one in torch, one in Python, and one in NumPy, which counts where it is imported already.
"""

from __future__ import annotations

import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch

_turn = threading.RLock()
"""Held while a model that may draw random numbers runs."""


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Let what runs inside draw its random numbers from `seed`, and leave the global generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with _turn, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        for gpu in devices:
            torch.cuda.default_generators[gpu.index or 0].manual_seed(seed)
        state = _state()
        random.seed(seed)
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed(seed % 2**32)
        try:
            yield
        finally:
            _set(state)


@contextmanager
def undone_if(drawn: Callable[[], bool], gpu: torch.device | None) -> Iterator[None]:
    """Put the global generators back after what runs inside, if it did draw.

    Not otherwise: a thread of the caller's may be drawing meanwhile.
    """
    with _turn:
        state = torch.get_rng_state()
        gpu_state = None if gpu is None else torch.cuda.get_rng_state(gpu)
        try:
            yield
        finally:
            if drawn():
                torch.set_rng_state(state)
                if gpu is not None and gpu_state is not None:
                    torch.cuda.set_rng_state(gpu_state, gpu)


def drawn_by(run: Callable[[], None], again: Callable[[], None]) -> bool:
    """Run a network, and return whether it drew from Python's or NumPy's generator, which is put back then.

    Other threads draw from these too. So where numbers were drawn meanwhile, it is run again, and what it calls is
    looked at.
    """
    with _turn:
        state = _state()
        run()
        now = _state()
        if now[0] == state[0] and pickle.dumps(now[1]) == pickle.dumps(state[1]):
            return False
        drew = _names_random(again)
        if drew:
            _set(state)
        return drew


def _state() -> tuple[Any, Any]:
    numbers = sys.modules.get("numpy.random")
    return random.getstate(), numbers and numbers.get_state()


def _set(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    if state[1] is not None:
        sys.modules["numpy.random"].set_state(state[1])


def _names_random(run: Callable[[], None]) -> bool:
    """Whether a function that this thread calls meanwhile names Python's or NumPy's generator."""
    found = False

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal found
        found = found or (event == "call" and _draws(frame.f_code, frame.f_globals))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def _draws(code: CodeType, known: dict[str, Any]) -> bool:
    numbers = sys.modules.get("numpy.random", random)
    for name in code.co_names:
        value = known.get(name)
        bound = type(getattr(value, "__self__", None)).__name__ in _GENERATORS
        if name == "random" or bound or value is random or value is numbers:
            return True
    return False


_GENERATORS = ("Random", "RandomState")
