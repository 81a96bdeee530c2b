"""One global random generator for all threads: whoever must touch it takes turns, and puts it back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        yield


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
