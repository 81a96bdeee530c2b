"""Every torchvision family gives for patches what it gives for whole images."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cnnviz.incremental import Base, Changes, Operations, Patched, densified
from cnnviz.incremental.windows import surveyed
from cnnviz.models import replicate

SIDE, WINDOW = 96, 12
# How many times the multiplications are saved, at the least, on 96 pixels; 1 where squeeze-and-excitation or attention
# see the whole image.
FAMILIES = {
    "alexnet": 1.2, "vgg11": 2.0, "vgg13_bn": 2.5, "resnet18": 1.4, "resnet50": 1.3, "resnext50_32x4d": 1.3,
    "wide_resnet50_2": 1.3, "squeezenet1_1": 1.3, "densenet121": 1.2, "googlenet": 1.5, "inception_v3": 1.1,
    "mobilenet_v2": 1.2, "mobilenet_v3_large": 1.0, "mobilenet_v3_small": 1.0, "mnasnet1_0": 1.1,
    "shufflenet_v2_x1_0": 1.2, "efficientnet_b0": 1.0, "regnet_x_400mf": 1.1, "regnet_y_400mf": 1.0,
    "convnext_tiny": 1.0, "vit_b_32": 1.0, "swin_t": 1.0, "maxvit_t": 1.0,
}  # fmt: skip


def network(name: str) -> nn.Module:
    extra: dict[str, object] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name in ("vit_b_32", "maxvit_t"):
        size = 96 if name == "vit_b_32" else (96, 96)
        extra = {"image_size": size} if name == "vit_b_32" else {"input_size": size, "partition_size": 3}
    torch.manual_seed(0)
    if name == "maxvit_t":
        net = torchvision.models.maxvit.MaxVit(
            stem_channels=64, block_channels=[64, 128], block_layers=[1, 1], head_dim=32, stochastic_depth_prob=0.2,
            **extra,
        )  # fmt: skip
    else:
        net = torchvision.models.get_model(name, weights=None, **extra)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Linear) and module.out_features == 1000:
            module.weight.data.normal_(0, 0.05)  # the head of a vision transformer begins as 0
    return net.double().eval()


@pytest.mark.parametrize(("name", "saved"), FAMILIES.items())
def test_patches_give_what_whole_images_give(name: str, saved: float) -> None:
    net = network(name)
    image = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)
    places = torch.tensor([[0, 0], [SIDE - WINDOW, SIDE - WINDOW], [40, 7], [41, 55], [84, 30]])
    patch = torch.randn(len(places), 3, WINDOW, WINDOW, dtype=torch.float64)
    whole = image.repeat(len(places), 1, 1, 1)
    for number, (top, left) in enumerate(places.tolist()):
        whole[number, :, top : top + WINDOW, left : left + WINDOW] = patch[number]
    base = Base()

    def made() -> Tensor:
        return densified(net(Patched(image, patch, places, base)))

    with torch.no_grad():
        with Operations() as dense:
            expected = net(whole)
        first = made()
        with Operations() as incremental:
            second = made()
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((first - expected).abs().max()) <= 1e-9 * scale
    assert torch.equal(first, second)
    assert dense.count >= saved * incremental.count


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_alone_tell_what_layers_do_for_boxes(name: str) -> None:
    """As much as values do, in single precision, for which a CPU has kernels of its own."""
    net, image = network(name).float(), torch.randn(1, 3, SIDE, SIDE)
    spans = [(start, min(start + 14, SIDE)) for start in range(0, SIDE + 1, 16)]
    boxes = torch.tensor([(*row, *column) for row in spans for column in spans])
    changes = Changes(image, boxes, lambda numbers, size: torch.zeros(len(numbers), 3, *size))
    shapes = surveyed(replicate(net, device="meta"), changes, "meta", lambda work, count: [work(0, count)])
    values = surveyed(net, changes, "cpu", lambda work, count: [work(i, min(i + 4, count)) for i in range(0, count, 4)])
    assert not isinstance(shapes, str)
    assert not isinstance(values, str)
    assert torch.equal(shapes.layers.reached, values.layers.reached)
    assert torch.equal(shapes.layers.sizes, values.layers.sizes)
    assert torch.equal(shapes.layers.costs, values.layers.costs)
    assert shapes.layers.overhead == values.layers.overhead
    assert shapes.saving == values.saving >= 1
