"""Receptive fields of real architectures are exactly what gradients reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cnnviz import capture, layers
from cnnviz.models.receptive_field import function_name

SIDE, LARGEST, TRIED = 225, 170, 5
KEPT = ("input", "kernel_size", "stride", "padding", "ceil_mode")
ARCHITECTURES = (
    "alexnet", "vgg16", "resnet18", "resnet50", "squeezenet1_1", "densenet121", "googlenet", "inception_v3",
    "mobilenet_v2", "shufflenet_v2_x1_0", "regnet_x_400mf", "convnext_tiny",
)  # fmt: skip
WITH_GLOBAL_OPERATIONS = ("efficientnet_b0", "mobilenet_v3_large", "regnet_y_400mf")


class Means(TorchFunctionMode):
    """The maximum of a window is reached from one pixel only; its mean is from all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function_name(func) != "max_pool2d":
            return func(*args, **(kwargs or {}))
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        return functional.avg_pool2d(**{name: given[name] for name in names if name in given and name in KEPT})


def positive(name: str) -> nn.Module:
    """A network of averages: no unit is off or saturated, and nothing cancels."""
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net = torchvision.models.get_model(name, weights=None, **extra).double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = torch.rand_like(module.weight) + 0.1
            module.weight.data = 0.3 * weight / weight.sum((1, 2, 3), keepdim=True)
            if module.bias is not None:
                module.bias.data.zero_()
    return net


def reached(net: nn.Module, x: Tensor, layer: str) -> tuple[tuple[int, int], tuple[int, int], Tensor]:
    """The middle unit of a layer, and which rows and columns of the input its gradient reaches."""
    leaf = x.clone().requires_grad_()
    with Means(), capture(net, layer, stop=True) as seen:
        net(leaf.clone())
    maps = seen.output
    unit = (maps.shape[2] // 2, maps.shape[3] // 2)
    (slope,) = torch.autograd.grad(maps[0, :, unit[0], unit[1]].sum(), leaf)
    return unit, tuple(maps.shape[2:]), slope.abs().sum((0, 1)) > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_field_is_what_the_gradient_reaches(name: str) -> None:
    net, x = positive(name), torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
    known = [
        layer
        for layer in layers(net, x)
        if layer.receptive_field is not None and max(layer.receptive_field.size) <= LARGEST and layer.shape[1] > 2
    ]
    assert len(known) >= TRIED
    for layer in known[:: max(1, len(known) // TRIED)]:
        field = layer.receptive_field
        unit, _, support = reached(net, x, layer.name)
        for axis in (0, 1):
            along = support.any(1 - axis).nonzero()[:, 0]
            start = field.start[axis] + unit[axis] * field.stride[axis]
            assert start >= 0, "the field should lie inside of the image"
            assert start + field.size[axis] <= SIDE
            assert (int(along[0]), int(along[-1]) + 1) == (start, start + field.size[axis]), layer.name


@pytest.mark.parametrize("name", WITH_GLOBAL_OPERATIONS)
def test_a_unit_behind_a_global_operation_is_said_to_see_everything(name: str) -> None:
    net = positive(name)
    x = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    maps = [
        layer for layer in layers(net, x) if layer.shape is not None and len(layer.shape) == 3 and layer.shape[1] > 1
    ]
    assert maps[0].receptive_field is not None
    assert maps[-1].receptive_field is None
    _, _, support = reached(net, x, maps[-1].name)
    assert bool(support.all())
