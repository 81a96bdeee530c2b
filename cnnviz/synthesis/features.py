"""What a network sees in a picture at several layers, and which layers are taken where none are named."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import LayerError
from ..models import Layer, capture
from ..targets import describe


def features(model: nn.Module, layers: Sequence[str], x: Tensor) -> list[Tensor]:
    """Return the maps of several layers, (N, C, h, w) each; the forward pass ends with the last of them.

    Raises:
        LayerError: a layer is never called, or returns no maps.
    """
    with capture(model, layers, stop=True) as seen:
        model(x)
    for name, maps in seen.values.items():
        if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[2] * maps.shape[3] == 1:
            raise LayerError(
                f"layer '{name}' returns {describe(maps)}, expected maps (N, C, h, w) of more than one place; name a "
                "layer before the global pooling, or give a larger picture"
            )
    return list(seen.values.values())


def by_size(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Return the layers with maps of each size, largest first: the activation functions, or where there are none all.

    Containers and pooling are left out.

    Raises:
        LayerError: there are none.
    """
    sizes: dict[tuple[int, ...], list[Layer]] = {}
    names = [layer.name for layer in layers]
    for layer in layers:
        if layer.shape is None or len(layer.shape) != 3 or layer.shape[1] * layer.shape[2] <= 1:
            continue
        prefix = layer.name.partition("#")[0] + "."
        if "Pool" in layer.type or any(name.startswith(prefix) for name in names):
            continue
        sizes.setdefault(layer.shape[1:], []).append(layer)
    if not sizes:
        raise LayerError("no layer of this model returns maps (N, C, h, w) larger than 1 x 1")
    ordered = [sizes[size] for size in sorted(sizes, key=lambda size: size[0] * size[1], reverse=True)]
    return [[layer for layer in group if _ACTIVATION.search(layer.type)] or group for group in ordered]


def last_size_but_one(layers: Sequence[Layer]) -> list[Layer]:
    """Return of `by_size` the layers that see things, and where they are: of the smallest maps but one."""
    return by_size(layers)[-2:][0]


_ACTIVATION = re.compile(r"ReLU|ELU|GELU|SiLU|Swish|Mish|Hardtanh|Sigmoid|Tanh|Softplus")
