"""What a style network computes, written out: Johnson 2016 with the changes of Dumoulin 2017, table 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cnnviz.synthesis import StyleNetwork


def painted(network: StyleNetwork, picture: Tensor, mix: list[float]) -> Tensor:
    """Return the painting of one picture: (3, H, W) -> (3, H, W)."""
    state = network.state_dict()

    def normalised(maps: Tensor, name: str) -> Tensor:
        made = torch.zeros_like(maps)
        for c in range(len(maps)):
            values = maps[c].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            scale = sum(share * float(state[f"{name}.scale"][s, c]) for s, share in enumerate(mix))
            shift = sum(share * float(state[f"{name}.shift"][s, c]) for s, share in enumerate(mix))
            made[c] = (maps[c] - mean) / math.sqrt(variance + 1e-5) * scale + shift
        return made

    def layer(maps: Tensor, name: str, stride: int = 1) -> Tensor:
        return normalised(convolved(maps, state[f"{name}.convolution.weight"], stride), name)

    maps = picture
    for i, stride in enumerate((1, 2, 2)):
        maps = layer(maps, f"shrinking.{i}", stride).clamp(min=0)
    for i in range(len(network.residual)):
        changed = layer(maps, f"residual.{i}.first").clamp(min=0)
        maps = maps + layer(changed, f"residual.{i}.second")
    for i in range(2):
        maps = layer(enlarged(maps), f"growing.{i}").clamp(min=0)
    maps = maps[:, : picture.shape[1], : picture.shape[2]]
    colours = convolved(maps, state["painting.weight"], 1) + state["painting.bias"][:, None, None]
    return 1 / (1 + (-colours).exp())


def convolved(maps: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the convolution with borders mirrored about the outermost pixels, so that sides shrink by the stride."""
    reach = weight.shape[2] // 2
    _, height, width = maps.shape
    made = torch.zeros(len(weight), -(-height // stride), -(-width // stride), dtype=maps.dtype)
    for y in range(made.shape[1]):
        for x in range(made.shape[2]):
            rows = [mirrored(y * stride + k - reach, height) for k in range(weight.shape[2])]
            columns = [mirrored(x * stride + k - reach, width) for k in range(weight.shape[3])]
            made[:, y, x] = (weight * maps[:, rows][:, :, columns]).sum((1, 2, 3))
    return made


def mirrored(place: int, size: int) -> int:
    """Return the pixel that stands for one beyond the border."""
    return -place if place < 0 else 2 * (size - 1) - place if place >= size else place


def enlarged(maps: Tensor) -> Tensor:
    """Return maps in which each pixel has become four."""
    channels, height, width = maps.shape
    made = torch.zeros(channels, 2 * height, 2 * width, dtype=maps.dtype)
    for y in range(2 * height):
        for x in range(2 * width):
            made[:, y, x] = maps[:, y // 2, x // 2]
    return made
