"""The trained CIFAR-10 network and its test images, as a folder."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import cnnviz
from cnnviz import Model, Preprocess

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Block(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        self.shortcut = changes if before != channels else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class _ResNet56(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (before, channels) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            first = _Block(before, channels, 1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(8))))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def cifar_model(data: Path) -> Model:
    """ResNet-56 with trained weights; pictures of any size are made 32 x 32."""
    net = _ResNet56()
    net.load_state_dict(load_file(data / "weights" / "cifar10_resnet56.safetensors"))
    preprocess = Preprocess(resize=(32, 32), crop=(32, 32))
    return cnnviz.load_model(net.eval(), preprocess=preprocess, labels=NAMES)


def cifar_images(data: Path, folder: Path, count: int) -> Path:
    """Write the first test images as PNG files, in a folder for each class."""
    with numpy.load(data / "datasets" / "cifar10_test.npz") as arrays:
        images, labels = arrays["images"][:count], arrays["labels"][:count]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / NAMES[int(label)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05}.png")
    return folder
