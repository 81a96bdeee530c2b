"""Max-pools of a network by a kernel of our own, while it runs as it is."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import torch
from torch import Tensor, nn

from ..ops import max_pool, max_pool_is_native
from .diverted import Diverted, is_ordinary
from .state import distinct

_TYPES: Final = (torch.float32, torch.float64)
_FAR: Final = 1 << 31  # pixels of a map, whose places our kernel counts in 32 bits


class Pools(Diverted):
    """Within it, max-pools do not note where a maximum lies, which takes PyTorch most of the time.

    The bits are the same, of gradients too. It sets `forward` on the module's instances of `nn.MaxPool2d`, so that it
    is for a replica that nobody else runs meanwhile.

    Args:
        module: the replica.
        but: max-pools that are left as they are.
    """

    def __init__(self, module: nn.Module, but: frozenset[nn.Module]) -> None:
        pools = [one for one in distinct(module) if type(one) is nn.MaxPool2d and one not in but]
        self._diverted = pools if max_pool_is_native() else []

    def _forward(self, pool: nn.MaxPool2d, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        if _is_for_us(input) and not pool.return_indices:
            with suppress(ValueError):  # torch tells what does not fit in its own words
                window = map(_pair, (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
                return max_pool(input, *window, ceil_mode=pool.ceil_mode)
        made: Tensor = nn.MaxPool2d.forward(pool, input)
        return made


def _is_for_us(x: Tensor) -> bool:
    """Whether these are plain maps, channels first in a CPU's memory, in name as well: layers behind go by that."""
    if not is_ordinary(x) or x.dim() != 4 or x.dtype not in _TYPES or not x.numel():
        return False
    _, channels, height, width = x.shape
    plain = x.stride() == (channels * height * width, height * width, width, 1)
    return plain and height * width < _FAR


def _pair(numbers: int | tuple[int, ...]) -> tuple[int, int]:
    first, second = numbers if isinstance(numbers, (tuple, list)) else (numbers, numbers)
    return int(first), int(second)
