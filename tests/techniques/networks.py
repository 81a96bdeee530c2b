"""torchvision's networks with random but lively weights, at a size that a test can afford."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torchvision
from torch import Tensor, nn

NAMES = ("resnet18", "vgg16", "squeezenet1_1", "mobilenet_v2", "densenet121")
CLASSES = 10
SIZE = 64
TARGET = [3, 7]
"""The class that is explained of each of two images."""


def score(output: Tensor) -> Tensor:
    """Return each image's score of its class: (2, classes) -> (2,)."""
    return torch.stack([row[target] for row, target in zip(output, TARGET, strict=True)])


@functools.cache
def network(name: str, dtype: torch.dtype) -> nn.Module:
    """Return the network in eval mode; float32 and float64 hold the same weights. It is shared: not to be changed."""
    if dtype != torch.float32:
        return copy.deepcopy(network(name, torch.float32)).to(dtype)
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(0)
        # These warn until they are told whether to draw their (slow) initial weights and to keep their auxiliary heads
        extra = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        made = _vgg16() if name == "vgg16" else torchvision.models.get_model(name, num_classes=CLASSES, **extra)
        _enliven(made, 75 if name == "inception_v3" else SIZE)
    return made.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, so that what is summed has the same bits in every test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def images(dtype: torch.dtype, count: int = 2, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    """Return smooth random pictures, the same in every dtype; shared: not to be changed."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, size[0] // 4, size[1] // 4, generator=generator)
    return nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False).mul(1.5).to(dtype)


def _vgg16() -> nn.Module:
    """Return VGG-16 with a narrow head: the usual one's 120 million weights would take most of the time to draw."""
    with torch.device("meta"):
        made = torchvision.models.vgg16(init_weights=False)
        made.classifier[0] = nn.Linear(512 * 7 * 7, 64)
        made.classifier[3] = nn.Linear(64, 64)
        made.classifier[6] = nn.Linear(64, CLASSES)
    made.to_empty(device="cpu")
    for module in made.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.normal_(module.bias, 0, 0.1)
    return made


def _enliven(made: nn.Module, side: int) -> None:
    """Give each normalisation statistics, scale and shift of its own, so that ReLUs switch and ReLU6s saturate."""
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.normal_(module.weight, 1.5, 0.5)
            nn.init.normal_(module.bias, 0.0, 1.0)
    with torch.no_grad():
        made.train()(torch.randn(8, 3, side, side))
