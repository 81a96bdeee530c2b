"""Convolutions, ReLUs and max-pools in a chain, in the layout in which a CPU's kernels work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from ..ops._layout import is_channels_first
from .convolution import is_plain
from .diverted import Diverted

_FEW: Final = 20480  # numbers; PyTorch may convolve so many by kernels of its own, which round otherwise
_LARGE: Final = 1e38  # no result may exceed the largest number, three times that, since oneDNN's ReLUs lose NaN


class Growth(NamedTuple):
    """How far a convolution may magnify: nothing that it makes exceeds ``factor * largest + offset``."""

    factor: float
    offset: float


class Chains(Diverted):
    """Within it, convolutions, ReLUs and max-pools in a chain of an `nn.Sequential` leave maps as oneDNN lays them out.

    PyTorch brings the maps into that layout for each convolution, and out of it again, which takes a quarter of the
    time. The bits are the same: whatever might not be runs as it is. It sets `forward` on the module's instances of
    `nn.Sequential`, so that it is for a replica that nobody else runs meanwhile.

    Args:
        module: the replica.
        growths: of its convolutions that stand in chains, see `growths_in`.

    Attributes:
        layers: what stands in these sequences.
    """

    def __init__(self, module: nn.Module, growths: Mapping[str, Growth]) -> None:
        self._growths = {module.get_submodule(name): growth for name, growth in growths.items()}
        sequences = _sequences(module) if growths else []
        chained = [one for one in sequences if any(layer in self._growths for layer in one)]
        self._diverted = chained
        self.layers = frozenset(layer for one in chained for layer in one)

    def _forward(self, sequence: nn.Sequential, input: Any) -> Any:  # noqa: A002  # as torch calls it
        usual = _runs_as_usual()
        x, largest = input, math.inf
        for layer in sequence:
            largest = self._largest(layer, x, largest) if usual and _is_bare(layer) else math.inf
            x = layer(_in_blocks(x) if largest < _LARGE else _as_rows(x))
        return _as_rows(x)

    def _largest(self, layer: nn.Module, x: Any, largest: float) -> float:
        """Return what nothing exceeds that a layer makes in oneDNN's layout; infinity where it may not run in that."""
        blocks = _lies_in_blocks(x)
        growth = self._growths.get(layer)
        if growth is None:
            return largest if blocks and _keeps(layer) else math.inf
        if not blocks:
            if not _may_enter(x):
                return math.inf
            largest = float(torch.linalg.vector_norm(x, math.inf))
        return largest * growth.factor + growth.offset if x.numel() > _FEW else math.inf


def growths_in(module: nn.Module) -> dict[str, Growth]:
    """Return the convolutions, by name, that stand in a chain with others."""
    names = {one: name for name, one in module.named_modules()}
    found: dict[str, Growth] = {}
    for sequence in _sequences(module):
        for fits, chain in itertools.groupby(sequence, _fits):
            convolutions = [layer for layer in chain if fits and isinstance(layer, nn.Conv2d)]
            if len(convolutions) > 1:
                found |= {names[layer]: _growth(layer) for layer in convolutions}
    return found


def _sequences(module: nn.Module) -> list[nn.Sequential]:
    return [
        one for one in module.modules() if isinstance(one, nn.Sequential) and type(one).forward is nn.Sequential.forward
    ]


def _fits(layer: nn.Module) -> bool:
    """Whether it makes the same bits in oneDNN's layout as in PyTorch's, of numbers that are none too large."""
    if not isinstance(layer, nn.Conv2d):
        return _keeps(layer)
    if not is_plain(layer) or layer.padding_mode != "zeros" or math.prod(layer.kernel_size) == 1:
        return False  # PyTorch has kernels of its own for single pixels
    return _is_usual(layer.weight) and (layer.bias is None or layer.bias.dtype == torch.float32)


def _keeps(layer: nn.Module) -> bool:
    """Whether it makes numbers no larger, in oneDNN's layout as in PyTorch's."""
    if type(layer) is nn.MaxPool2d:
        return not layer.ceil_mode and not layer.return_indices and layer.dilation in (1, (1, 1))
    return type(layer) is nn.ReLU


def _growth(convolution: nn.Conv2d) -> Growth:
    with torch.no_grad():
        factor = torch.linalg.vector_norm(convolution.weight, 1, (1, 2, 3)).max()
        offset = 0.0 if convolution.bias is None else float(torch.linalg.vector_norm(convolution.bias, math.inf))
    return Growth(float(factor), offset)


def _is_usual(x: Tensor) -> bool:
    """Whether numbers are in single precision in a CPU's memory, channels first."""
    strided = x.device.type == "cpu" and x.dtype == torch.float32 and x.layout == torch.strided
    return strided and is_channels_first(x)


def _may_enter(x: Any) -> bool:
    return type(x) is Tensor and x.dim() == 4 and _is_usual(x) and not x.requires_grad


def _runs_as_usual() -> bool:
    """Whether nothing was asked of PyTorch that layers follow in its own layout alone."""
    hooked: bool = modules._has_any_global_hook()  # type: ignore[no-untyped-call]  # torch's, and private
    return bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu") and not hooked


def _is_bare(layer: nn.Module) -> bool:
    """Whether nobody else sees what it takes and makes."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)


def _lies_in_blocks(x: Any) -> bool:
    return type(x) is Tensor and x.is_mkldnn


def _in_blocks(x: Tensor) -> Tensor:
    return x if x.is_mkldnn else x.to_mkldnn()


def _as_rows(x: Any) -> Any:
    return x.to_dense() if _lies_in_blocks(x) else x
