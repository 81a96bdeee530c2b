"""One global random generator for all threads: whoever must touch it takes turns, and puts it back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

turn = threading.RLock()
"""Held while a model that may draw random numbers runs."""


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Let what runs inside draw its random numbers from `seed`, and leave the global generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with turn, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        for gpu in devices:
            torch.cuda.default_generators[gpu.index or 0].manual_seed(seed)
        yield
