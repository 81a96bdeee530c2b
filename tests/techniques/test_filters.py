from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from tests.techniques.networks import network


def shown(net: nn.Module, layer: str | None = None, **options: Any) -> cnnviz.Gallery:
    return cnnviz.explain(net, None, "filters", layer=layer, **options)


def convolution(weight: list[Any], *, groups: int = 1) -> nn.Conv2d:
    values = torch.tensor(weight, dtype=torch.float32)
    made = nn.Conv2d(values.shape[1] * groups, len(values), values.shape[2:], groups=groups)
    made.weight.data = values
    return made


COLOUR = convolution(
    [[[[1.0]], [[-2.0]], [[4.0]]], [[[0.0]], [[0.5]], [[-0.5]]]]
)  # two 1 x 1 filters over three channels
DEEP = convolution(
    [[[[1.0, -1.0]], [[2.0, 4.0]], [[0.0, 0.0]], [[8.0, 0.0]]], [[[0.5, 0.5]], [[1.0, 0.0]], [[0, 3]], [[0, 1]]]]
)


def test_a_filter_over_three_channels_is_one_picture_in_colour() -> None:
    got = shown(nn.Sequential(COLOUR))
    expected = torch.tensor([[0.625, 0.25, 1.0], [0.5, 1.0, 0.0]])  # grey is zero; 4 and 0.5 are the largest
    torch.testing.assert_close(got.images, expected[:, :, None, None])
    assert torch.equal(got.values, COLOUR.weight)
    assert got.rows.tolist() == [0, 1]


def test_all_filters_may_share_one_scale() -> None:
    got = shown(nn.Sequential(COLOUR), scale="all")
    expected = torch.tensor([[0.625, 0.25, 1.0], [0.5, 0.5625, 0.4375]])
    torch.testing.assert_close(got.images, expected[:, :, None, None])


def test_a_filter_over_more_channels_is_a_grey_picture_for_each() -> None:
    got = shown(nn.Sequential(DEEP))
    assert got.images.shape == (8, 3, 1, 2)
    assert torch.equal(got.images, got.images[:, :1].expand(-1, 3, -1, -1))
    torch.testing.assert_close(got.images[:3, 0, 0], torch.tensor([[1.0, 0.0], [0.75, 1.0], [0.5, 0.5]]))
    assert torch.equal(got.values, DEEP.weight.reshape(8, 1, 1, 2))
    assert got.rows.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_slices_say_how_many_channels_are_shown() -> None:
    got = shown(nn.Sequential(DEEP), slices=2, scale="all")
    assert torch.equal(got.values, DEEP.weight[:, :2].reshape(4, 1, 1, 2))
    assert got.rows.tolist() == [0, 0, 1, 1]
    assert "channels 0 to 1 of 4" in got.captions[0]
    torch.testing.assert_close(got.images[1, 0, 0], torch.tensor([0.75, 1.0]))  # 4 is the largest of those shown


def test_slices_do_not_touch_colour() -> None:
    assert torch.equal(shown(nn.Sequential(COLOUR), slices=1).images, shown(nn.Sequential(COLOUR)).images)


@pytest.mark.parametrize(
    ("weight", "groups"), [([[[[1.0, -2.0]]]], 1), ([[[[1.0, -2.0]]], [[[0.0, 3.0]]], [[[1.0, 1.0]]]], 3)]
)
def test_grey_and_depthwise_filters_are_one_picture_each(weight: list[Any], groups: int) -> None:
    layer = convolution(weight, groups=groups)
    got = shown(nn.Sequential(layer))
    assert torch.equal(got.values, layer.weight)
    assert got.rows.tolist() == list(range(len(weight)))
    torch.testing.assert_close(got.images[0, :, 0], torch.tensor([[0.75, 0.0]]).expand(3, 2))


def test_a_filter_of_zeros_is_grey() -> None:
    got = shown(nn.Sequential(convolution([[[[0.0]], [[0.0]], [[0.0]]]])))
    assert got.images.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("resnet18", "conv1", (64, 3, 7, 7)),
        ("vgg16", "features.0", (64, 3, 3, 3)),
        ("squeezenet1_1", "features.0", (64, 3, 3, 3)),
        ("mobilenet_v2", "features.0.0", (32, 3, 3, 3)),
        ("densenet121", "features.conv0", (64, 3, 7, 7)),
    ],
)
def test_default_layer_is_the_first_convolution(name: str, layer: str, shape: tuple[int, ...]) -> None:
    net = network(name, torch.float32)
    got = shown(net)
    assert got.provenance.layer == layer
    assert got.images.shape == shape
    assert torch.equal(got.values, net.get_submodule(layer).weight)
    assert 0 <= got.images.min() < got.images.max() <= 1
    assert torch.equal(got.images.flatten(1).sub(0.5).abs().amax(1), torch.full((shape[0],), 0.5))


def test_any_convolution_may_be_named() -> None:
    net = network("densenet121", torch.float32)
    got = shown(net, "features.denseblock1.denselayer2.conv2", slices=4)
    weight: Tensor = net.features.denseblock1.denselayer2.conv2.weight
    assert torch.equal(got.values, weight[:, :4].reshape(-1, 1, 3, 3))


def test_values_are_a_copy() -> None:
    layer = convolution([[[[1.0]], [[-2.0]], [[4.0]]]])
    shown(nn.Sequential(layer)).values.zero_()
    assert layer.weight.flatten().tolist() == [1.0, -2.0, 4.0]


@pytest.mark.parametrize("layer", ["bn1", "layer1", "fc"])
def test_a_layer_that_is_no_convolution_is_refused(layer: str) -> None:
    with pytest.raises(cnnviz.LayerError, match=rf"'{layer}'.*nn.Conv2d"):
        shown(network("resnet18", torch.float32), layer)


def test_a_network_without_convolution_is_refused() -> None:
    with pytest.raises(cnnviz.LayerError, match=r"no nn.Conv2d"):
        shown(nn.Sequential(nn.Linear(3, 4)))


def test_no_inputs_are_taken() -> None:
    with pytest.raises(cnnviz.InputError, match="no inputs"):
        cnnviz.explain(network("resnet18", torch.float32), torch.zeros(1, 3, 8, 8), "filters")


def test_a_model_is_needed() -> None:
    with pytest.raises(cnnviz.ModelError):
        cnnviz.explain(None, None, "filters")


@pytest.mark.parametrize(
    ("option", "told"), [({"scale": "some"}, r"'scale'.*'each', 'all'"), ({"slices": 0}, r"'slices'.*got 0.*1 to 4096")]
)
def test_a_wrong_option_is_named_with_its_bounds(option: dict[str, Any], told: str) -> None:
    with pytest.raises(cnnviz.OptionError, match=told):
        shown(nn.Sequential(COLOUR), **option)
