"""Numbers that stand in papers and in captum's documentation, literally."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz.ops import guided_relu


def numbers(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, numbers([-2, 0, -1], [6, 0, 0], [0, -1, 3])),
        ("deconvnet", numbers([0, 3, 0], [6, 0, 1], [2, 0, 3])),
        ("guided", numbers([0, 0, 0], [6, 0, 0], [0, 0, 3])),
    ],
)
def test_three_ways_back_through_a_relu(rule: str | None, expected: Tensor) -> None:
    """Springenberg 2015, figure 1 b: one activation, one gradient from above, and what each method lets pass."""
    activation = numbers([1, -1, 5], [2, -5, -7], [-3, 2, 4])
    above = numbers([-2, 3, -1], [6, -3, 1], [2, -1, 3])

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.relu() * above).sum((1, 2, 3))[:, None]

    technique = {None: "saliency", "deconvnet": "deconvnet", "guided": "guided-backprop"}[rule]
    options = {} if rule else {"sign": "signed", "channels": "none"}
    made = cnnviz.explain(Net(), activation[None, None], technique, target=0, **options)
    assert torch.equal(made.values[0, 0], expected)
    x = activation.clone().requires_grad_()
    guided_relu(x, rule or "plain").backward(above)
    assert torch.equal(x.grad, expected)


class ToyModel(nn.Module):
    """The network of captum's "Getting started"."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(3, 3)
        self.relu = nn.ReLU()
        self.lin2 = nn.Linear(3, 2)
        self.lin1.weight = nn.Parameter(torch.arange(-4.0, 5.0).view(3, 3))
        self.lin1.bias = nn.Parameter(torch.zeros(1, 3))
        self.lin2.weight = nn.Parameter(torch.arange(-3.0, 3.0).view(2, 3))
        self.lin2.bias = nn.Parameter(torch.ones(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.relu(self.lin1(x.flatten(1))))


def test_integrated_gradients_of_captums_getting_started() -> None:
    """captum prints [[-0.5922, -1.5497, -1.0067], [0.0000, -0.2219, -5.1991]] there."""
    torch.manual_seed(123)
    x = torch.rand(2, 3)
    made = cnnviz.explain(ToyModel().eval(), x[:, :, None, None], "integrated-gradients", target=0).values[:, :, 0, 0]
    expected = torch.tensor([[-0.5922, -1.5497, -1.0067], [0.0, -0.2219, -5.1991]])
    torch.testing.assert_close(made, expected, rtol=0, atol=5e-5)


def test_a_flat_gradient_is_integrated() -> None:
    """Sundararajan 2017, section 2.1: 1 - relu(1 - x) changes by 1 from 0 to 2, where its gradient is 0."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1 - (1 - x).relu().sum((1, 2, 3))[:, None]

    x = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    assert cnnviz.explain(Net(), x, "saliency", target=0).values.item() == 0
    made = cnnviz.explain(Net(), x, "integrated-gradients", target=0, steps=100, quadrature="midpoint")
    assert made.values.item() == pytest.approx(1.0)


def test_two_networks_that_compute_the_same_get_the_same_integrated_gradients() -> None:
    """Sundararajan 2017, figure 7: relu(relu(x1) - 1 - relu(x2)) and relu(relu(x1 - 1) - relu(x2)) at (3, 1)."""

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, 0, 0].relu() - 1 - x[:, 1, 0].relu()).relu()

    class Second(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((x[:, 0, 0] - 1).relu() - x[:, 1, 0].relu()).relu()

    x = torch.tensor([[[[3.0]], [[1.0]]]], dtype=torch.float64)
    for net in (First(), Second()):
        made = cnnviz.explain(net, x, "integrated-gradients", target=0, steps=5000, quadrature="midpoint").values
        assert made.flatten().tolist() == pytest.approx([1.5, -0.5], abs=1e-3)


def test_grad_cam_of_a_pooled_linear_head_is_the_class_activation_map() -> None:
    """Selvaraju 2017, section 3.1, with Zhou 2016, equation 2: two maps of 2 x 2 with class weights 2 and -1.

    The mean over 4 places turns a class's weights w into channel weights w / 4, so that Grad-CAM is CAM over 4.
    """
    maps = numbers([1, 0], [2, 4]), numbers([3, 1], [0, 1])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Identity()
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(2, 1, bias=False).double()
            self.head.weight.data = numbers([2, -1])

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.body(x.clone())).flatten(1))

    x = torch.stack(maps)[None]
    signed = cnnviz.explain(Net(), x, "grad-cam", target=0, layer="body", relu=False, upsample=None)
    assert torch.equal(signed.values[0, 0], numbers([-0.25, -0.25], [1, 1.75]))
    kept = cnnviz.explain(Net(), x, "grad-cam", target=0, layer="body", upsample=None)
    assert torch.equal(kept.values[0, 0], numbers([0, 0], [1, 1.75]))
    assert signed.scores.tolist() == [2 * 7 / 4 - 5 / 4]
    made = cnnviz.explain(Net(), x, "cam", target=0, upsample=None)
    assert torch.equal(made.values[0, 0], numbers([-1, -1], [4, 7]))


def test_occlusion_of_a_sum_is_what_the_window_covers() -> None:
    """Zeiler & Fergus 2014, section 4.2, for a score that adds the pixels up: 1 to 9, windows of 2 x 2, stride 1.

    The drop of each window is the sum of what it covers; a pixel has the mean of the windows over it. The last window
    of an axis is clipped, so that each corner of the far edges is covered by one more window.
    """

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((1, 2, 3))[:, None]

    x = torch.arange(1.0, 10.0, dtype=torch.float64).reshape(1, 1, 3, 3)
    made = cnnviz.explain(Net(), x, "occlusion", target=0, window=2, stride=1)
    assert made.values[0, 0].tolist() == [
        [12.0, (12 + 16) / 2, 16.0],
        [(12 + 24) / 2, (12 + 16 + 24 + 28) / 4, (16 + 28) / 2],
        [24.0, (24 + 28) / 2, 28.0],
    ]


def test_rise_of_a_constant_score_is_the_mean_mask() -> None:
    """Petsiuk 2018, equation 6, with N = 2: score x mean mask / expected mask, where half of the cells is kept."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1) * 0

    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    made = cnnviz.explain(Net(), x, "rise", target=0, masks=2, cells=2, keep=0.5).values
    seen = []

    class Watched(Net):
        def forward(self, x: Tensor) -> Tensor:
            seen.extend([] if x.is_meta else x)
            return super().forward(x)

    cnnviz.explain(Watched(), x, "rise", target=0, masks=2, cells=2, keep=0.5)
    first, second = (image[0] for image in seen if not torch.equal(image, x[0]))
    torch.testing.assert_close(made[0, 0], 0.5 * (first + second) / 2 / 0.5)  # both classes have probability 1/2
