"""The C library's heap: whether memory that was freed goes back to the system, or serves the next tensors."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MAPPED: Final = (1 << 30, 32 << 20)  # older versions of glibc take no more than the second
_SETTINGS: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of memory that was freed, where that can be said and nobody said otherwise.

    By default glibc hands large blocks back to the system as soon as they are freed, and the system clears each page
    anew for the next tensor, whoever makes it; `benchmarks/test_heap.py` measures what that takes. It holds for the
    whole process, so no other function of cnnviz does it; its command line does. Older versions of glibc keep blocks of
    up to 32 MiB alone.

    Returns:
        Whether it was set: not with other C libraries than glibc, nor where the environment sets the same.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    trims = mallopt(_TRIM, (1 << 31) - 1)
    return any(mallopt(_MMAP, size) for size in _MAPPED) and bool(trims)
