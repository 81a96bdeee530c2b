"""Max-pools of a network by a kernel of our own, while it runs as it is."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..ops import max_pool, max_pool_is_native
from ..ops._layout import is_channels_first
from .diverted import Diverted
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
        parts = distinct(module) if max_pool_is_native() else []
        self._diverted = [one for one in parts if type(one) is nn.MaxPool2d and one not in but]

    def _forward(self, pool: nn.MaxPool2d, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        if _is_for_us(input) and not pool.return_indices:
            with suppress(ValueError):  # torch tells what does not fit in its own words
                window = map(_pair, (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
                return max_pool(input, *window, ceil_mode=pool.ceil_mode)
        made: Tensor = nn.MaxPool2d.forward(pool, input)
        return made


def _is_for_us(x: Tensor) -> bool:
    """Whether these are plain maps, channels first in a CPU's memory, of which at most gradients are asked for.

    Checkpointing counts what is saved for them; `torch.func` and forward-mode derivatives ask for other things.
    """
    if type(x) is not Tensor or x.device.type != "cpu" or x.layout != torch.strided or x.is_inference():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(x) or forward_ad._current_level >= 0:
        return False
    if x.requires_grad and torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return False
    fits = x.dim() == 4 and x.dtype in _TYPES and x.numel() > 0 and x.shape[2] * x.shape[3] < _FAR
    return fits and is_channels_first(x)


def _pair(numbers: int | tuple[int, ...]) -> tuple[int, int]:
    first, second = numbers if isinstance(numbers, (tuple, list)) else (numbers, numbers)
    return int(first), int(second)
