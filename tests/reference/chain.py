"""Forward and backward pass of a chain of layers, number by number: no autograd, no tensor operation.

A chain is a sequence of nn.Conv2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.Flatten and nn.Linear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
from numpy.typing import NDArray
from torch import nn

Numbers = NDArray[numpy.float64]


def gradient(chain: Sequence[nn.Module], image: Numbers, unit: int, rule: str) -> Numbers:
    """Send 1 from output `unit` back to `image` (C, H, W); `rule` is "plain", "deconvnet" or "guided"."""
    came: list[Numbers] = []
    signal = image
    for layer in chain:
        came.append(signal)
        signal = _forward(layer, signal)
    back = numpy.zeros_like(signal)
    back.reshape(-1)[unit] = 1.0
    for layer, x in zip(reversed(chain), reversed(came), strict=True):
        back = _backward(layer, x, back, rule)
    return back


def _forward(layer: nn.Module, x: Numbers) -> Numbers:
    match layer:
        case nn.Conv2d():
            return _convolve(layer, x)
        case nn.ReLU():
            return _each(x, lambda value: max(value, 0.0))
        case nn.ReLU6():
            return _each(x, lambda value: min(max(value, 0.0), 6.0))
        case nn.MaxPool2d():
            places = _switches(layer, x)
            pooled = numpy.zeros((len(x), *_pooled_size(layer, x)))
            for (c, i, j), (y, z) in places.items():
                pooled[c, i, j] = x[c, y, z]
            return pooled
        case nn.Flatten():
            return x.reshape(-1)
        case nn.Linear():
            made = numpy.zeros(layer.out_features)
            weight, bias = _numbers(layer)
            for o in range(layer.out_features):
                made[o] = bias[o] + sum(weight[o, i] * x[i] for i in range(layer.in_features))
            return made
    raise TypeError(f"a chain has no {type(layer).__name__}")


def _backward(layer: nn.Module, x: Numbers, back: Numbers, rule: str) -> Numbers:
    passed = numpy.zeros_like(x)
    match layer:
        case nn.Conv2d():
            weight, _ = _numbers(layer)
            for o, i, j, c, u, v, y, z in _taps(layer, x):
                passed[c, y, z] += weight[o, c, u, v] * back[o, i, j]
        case nn.ReLU() | nn.ReLU6():
            ceiling = 6.0 if isinstance(layer, nn.ReLU6) else math.inf
            for place in numpy.ndindex(x.shape):
                passed[place] = _through_rectifier(rule, 0.0 < x[place] < ceiling, back[place])
        case nn.MaxPool2d():
            for (c, i, j), (y, z) in _switches(layer, x).items():
                passed[c, y, z] += back[c, i, j]
        case nn.Flatten():
            passed = back.reshape(x.shape)
        case nn.Linear():
            weight, _ = _numbers(layer)
            for i in range(layer.in_features):
                passed[i] = sum(weight[o, i] * back[o] for o in range(layer.out_features))
    return passed


def _through_rectifier(rule: str, active: bool, back: float) -> float:
    """Springenberg 2015, figure 1: the forward mask, the backward mask, or both."""
    if rule == "plain":
        return back if active else 0.0
    if rule == "deconvnet":
        return back if back > 0 else 0.0
    return back if active and back > 0 else 0.0


def _taps(layer: nn.Conv2d, x: Numbers):
    """Yield output channel, row and column, input channel, kernel row and column, input row and column."""
    weight, _ = _numbers(layer)
    outputs, channels, kernel_height, kernel_width = weight.shape
    (down, across), (pad_y, pad_x) = layer.stride, layer.padding
    height = (x.shape[1] + 2 * pad_y - kernel_height) // down + 1
    width = (x.shape[2] + 2 * pad_x - kernel_width) // across + 1
    for o, i, j, c, u, v in numpy.ndindex(outputs, height, width, channels, kernel_height, kernel_width):
        y, z = i * down - pad_y + u, j * across - pad_x + v
        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
            yield o, i, j, c, u, v, y, z


def _convolve(layer: nn.Conv2d, x: Numbers) -> Numbers:
    weight, bias = _numbers(layer)
    height = (x.shape[1] + 2 * layer.padding[0] - weight.shape[2]) // layer.stride[0] + 1
    width = (x.shape[2] + 2 * layer.padding[1] - weight.shape[3]) // layer.stride[1] + 1
    made = numpy.zeros((len(weight), height, width)) + bias[:, None, None]
    for o, i, j, c, u, v, y, z in _taps(layer, x):
        made[o, i, j] += weight[o, c, u, v] * x[c, y, z]
    return made


def _pooled_size(layer: nn.MaxPool2d, x: Numbers) -> tuple[int, int]:
    return (x.shape[1] - layer.kernel_size) // layer.stride + 1, (x.shape[2] - layer.kernel_size) // layer.stride + 1


def _switches(layer: nn.MaxPool2d, x: Numbers) -> dict[tuple[int, int, int], tuple[int, int]]:
    """Return for each pooled unit where its maximum stood (the first one, row by row)."""
    found = {}
    for c, i, j in numpy.ndindex(len(x), *_pooled_size(layer, x)):
        top, left = i * layer.stride, j * layer.stride
        block = [(y, z) for y in range(top, top + layer.kernel_size) for z in range(left, left + layer.kernel_size)]
        found[c, i, j] = max(block, key=lambda place, c=c: x[c, place[0], place[1]])
    return found


def _each(x: Numbers, function) -> Numbers:
    made = numpy.zeros_like(x)
    for place in numpy.ndindex(x.shape):
        made[place] = function(x[place])
    return made


def _numbers(layer: nn.Conv2d | nn.Linear) -> tuple[Numbers, Numbers]:
    weight = layer.weight.detach().double().numpy()
    bias = numpy.zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().numpy()
    return weight, bias
