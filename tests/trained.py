"""Networks that were trained on ImageNet, from the folder of trained weights and photographs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import cnnviz

_DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"


def data_folder() -> Path:
    """Return the folder; without it the test is skipped, or fails where it is required."""
    folder = Path(os.environ.get("CNNVIZ_TEST_DATA", _DEFAULT_DATA))
    if (folder / "images").is_dir():
        return folder
    told = f"no weights and photographs in '{folder}'; set CNNVIZ_TEST_DATA to the folder that holds them"
    if os.environ.get("CNNVIZ_REQUIRE_DATA") == "1":
        pytest.fail(f"{told} (CNNVIZ_REQUIRE_DATA=1 makes this a failure)")
    pytest.skip(told)


def vgg16_features(data: Path) -> tuple[nn.Module, cnnviz.Preprocess]:
    """Return VGG-16 without its head."""
    import torchvision

    with torch.device("meta"):
        features = torchvision.models.vgg16().features
    features.load_state_dict(_weights(data, "vgg16_features"), assign=True)
    return features.eval(), cnnviz.Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def resnet50_of_keras(data: Path) -> tuple[nn.Module, cnnviz.Preprocess]:
    """Return ResNet-50 with strides in other places, and another epsilon."""
    import torchvision

    net = torchvision.models.resnet50(weights=None)
    for stage in (net.layer2, net.layer3, net.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    net.load_state_dict(_weights(data, "resnet50_keras"))
    return net.eval(), cnnviz.Preprocess(256, (224, 224), (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)


def _weights(data: Path, name: str) -> dict[str, Tensor]:
    return {key: value.float() for key, value in load_file(data / "weights" / f"{name}.safetensors").items()}
