from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from tests.techniques.measure import assert_same_map, distance
from tests.techniques.networks import images, network


def returned(net: nn.Module, x: Tensor, layer: str) -> list[Tensor]:
    """Return what each call of a layer gives out, copied before anything else can write to it."""
    twin, seen = copy.deepcopy(net), []
    twin.get_submodule(layer).register_forward_hook(lambda module, given, output: seen.append(output.detach().clone()))
    twin(x.clone())
    return seen


def kept(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    """Return the layer's output as it is after the whole forward pass."""
    twin, seen = copy.deepcopy(net), []
    twin.get_submodule(layer).register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        twin(x.clone())
    return seen[-1]


def explained(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    return cnnviz.explain(net, x, "activations", layer=layer).values


def test_maps_are_what_the_convolution_computes() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.ReLU(inplace=True)).double()
    net[0].weight.data = torch.tensor([[1.0, -1.0], [2.0, 0.5]], dtype=torch.float64).reshape(2, 1, 1, 2)
    net[0].bias.data = torch.tensor([0.0, 10.0], dtype=torch.float64)
    x = torch.tensor([[[[1.0, 4.0, 2.0]]]], dtype=torch.float64)
    torch.testing.assert_close(explained(net, x, "0"), x.new_tensor([[[[-3, 2]], [[14, 19]]]]))
    torch.testing.assert_close(explained(net, x, "1"), x.new_tensor([[[[0, 2]], [[14, 19]]]]))


OVERWRITTEN = [
    ("resnet18", "bn1"),  # by an in-place ReLU
    ("resnet18", "layer2.0.bn1"),
    ("resnet18", "layer4.1.bn2"),  # by += of the shortcut, then by an in-place ReLU
    ("densenet121", "features.norm0"),
    ("densenet121", "features.denseblock2.denselayer3.norm1"),
    ("densenet121", "features.denseblock2.denselayer3.norm2"),
    ("densenet121", "features.transition1.norm"),
    ("densenet121", "features.norm5"),  # by F.relu(inplace=True)
    ("vgg16", "features.5"),  # a convolution, by an in-place ReLU
]


@pytest.mark.parametrize(("name", "layer"), OVERWRITTEN)
def test_a_later_in_place_operation_changes_nothing(name: str, layer: str) -> None:
    net, x = network(name, torch.float64), images(torch.float64)
    (expected,) = returned(net, x, layer)
    assert distance(kept(net, x, layer), expected) > 0.1, "nothing overwrites this layer, so that it tests nothing"
    assert_same_map(explained(net, x, layer), expected)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer3"), ("squeezenet1_1", "features.7.squeeze"), ("mobilenet_v2", "features.3.conv.1.2")],
)
def test_maps_are_what_the_layer_returned(name: str, layer: str) -> None:
    net, x = network(name, torch.float64), images(torch.float64)
    (expected,) = returned(net, x, layer)
    assert_same_map(explained(net, x, layer), expected)


@pytest.mark.parametrize(("suffix", "call"), [("#0", 0), ("#1", 1), ("", 1)])
def test_calls_of_a_reused_module_are_told_apart(suffix: str, call: int) -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    calls = returned(net, x, "layer2.1.relu")
    assert len(calls) == 2
    got = cnnviz.explain(net, x, "activations", layer=f"layer2.1.relu{suffix}")
    assert_same_map(got.values, calls[call])
    assert got.provenance.layer == f"layer2.1.relu#{call}"


def test_channels_are_kept_and_nothing_is_scored() -> None:
    got = cnnviz.explain(network("resnet18", torch.float32), images(torch.float32), "activations", layer="layer2")
    assert got.values.shape == (2, 128, 8, 8)
    assert got.values.dtype == torch.float32
    assert got.scores is None
    assert got.target is None


def test_default_layer_is_the_last_maps_before_the_head() -> None:
    net, x = network("resnet18", torch.float64), images(torch.float64)
    got = cnnviz.explain(net, x, "activations")
    assert got.provenance.layer == "layer4"
    assert_same_map(got.values, returned(net, x, "layer4")[0])


def test_the_network_need_not_end_in_scores() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), x

    x = torch.tensor([[[[-1.0, 2.0]]]])
    assert explained(Pair(), x, "inner").tolist() == [[[[0.0, 2.0]]]]


def test_a_layer_that_returns_no_maps_is_refused() -> None:
    with pytest.raises(cnnviz.LayerError, match=r"fc.*\(2, 10\)"):
        explained(network("resnet18", torch.float32), images(torch.float32), "fc")


def test_only_one_layer_is_taken() -> None:
    with pytest.raises(cnnviz.LayerError, match="one layer"):
        cnnviz.explain(
            network("resnet18", torch.float32), images(torch.float32), "activations", layer=["bn1", "layer1"]
        )


def test_options_are_refused() -> None:
    with pytest.raises(cnnviz.OptionError, match="'channel' of 'activations'"):
        cnnviz.explain(nn.ReLU(), torch.ones(1, 1, 2, 2), "activations", channel=3)


def test_batch_equals_singles() -> None:
    net, x = network("densenet121", torch.float64), images(torch.float64, count=3)
    layer = "features.denseblock2.denselayer3.norm2"
    assert_same_map(explained(net, x, layer), torch.cat([explained(net, row[None], layer) for row in x]))
