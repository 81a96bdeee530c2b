from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

import cnnviz
from tests.reference.saliency import gradient
from tests.techniques.measure import assert_same_map, distance
from tests.techniques.networks import TARGET, images, network, score

BASELINE = (0.25, -0.5, 1.0)


def captum_gradients(net: nn.Module, x: Tensor, method: str) -> Tensor:
    cover = torch.tensor(BASELINE, dtype=x.dtype)[None, :, None, None].expand_as(x)
    return (
        IntegratedGradients(net)
        .attribute(x.clone().requires_grad_(), cover, target=TARGET, n_steps=8, method=method)
        .detach()
    )


@pytest.mark.parametrize(
    ("quadrature", "method"), [("gauss-legendre", "gausslegendre"), ("midpoint", "riemann_middle")]
)
@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_equals_captum(name: str, quadrature: str, method: str) -> None:
    net, x = network(name, torch.float64), images(torch.float64)
    options = {"steps": 8, "baseline": BASELINE, "quadrature": quadrature}
    made = cnnviz.explain(net, x, "integrated-gradients", target=TARGET, **options).values
    # captum rounds the weights of its steps to single precision, and those of a midpoint rule their places too: eight
    # are sixteenths, which need no rounding. With nine, a ReLU near zero would be on in one way and off in the other.
    assert distance(made, captum_gradients(net, x, method)) < 1e-6


@pytest.mark.parametrize(
    ("quadrature", "places"), [("midpoint", (1 / 4, 3 / 4)), ("gauss-legendre", (0.5 - 12**-0.5, 0.5 + 12**-0.5))]
)
def test_equals_a_sum_of_gradients(quadrature: str, places: tuple[float, float]) -> None:
    net, x = network("squeezenet1_1", torch.float64), images(torch.float64)
    total = torch.zeros_like(x)
    for place in places:
        total = total + gradient(net, place * x, score) / 2
    made = cnnviz.explain(net, x, "integrated-gradients", target=TARGET, steps=2, quadrature=quadrature)
    assert_same_map(made.values, total * x)


def test_adds_up_to_the_difference_of_scores() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 9)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    made = cnnviz.explain(net, x, "integrated-gradients", target=TARGET, steps=30, baseline=0.5).values
    difference = score(net(x)) - score(net(torch.full_like(x, 0.5)))
    torch.testing.assert_close(made.sum((1, 2, 3)), difference.detach())


def test_toy_of_captums_documentation() -> None:
    """relu(x1) - 1 - relu(x2), then relu: from (3, 1), whose output is 1, the attributions are 1.5 and -0.5."""

    class Toy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x[:, 0, 0, 0], x[:, 0, 0, 1]
            return torch.relu(torch.relu(first) - 1 - torch.relu(second))[:, None]

    x = torch.tensor([[[[3.0, 1.0]]]], dtype=torch.float64)
    made = cnnviz.explain(Toy(), x, "integrated-gradients", target=0, steps=1000, quadrature="midpoint").values
    torch.testing.assert_close(made, torch.tensor([[[[1.5, -0.5]]]], dtype=torch.float64), atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_steps_add_up_in_half_precision(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    nn.init.ones_(net[1].weight)
    x = torch.ones(1, 1, 2, 2, dtype=dtype)
    made = cnnviz.explain(net.to(dtype).eval(), x, "integrated-gradients", target=0, steps=1000, quadrature="midpoint")
    assert made.values.dtype == dtype
    assert float(made.values.float().sum()) == pytest.approx(4, rel=0.01)


def test_thousands_of_points_are_those_of_pieces_of_the_way() -> None:
    class Power(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) ** 40).sum(1, keepdim=True)

    x = torch.tensor([[[[0.9, 1.02]]]], dtype=torch.float64)
    for steps in (20, 500, 501, 1234):  # n points are right for powers up to 2 n - 1, here of 39
        made = cnnviz.explain(Power(), x, "integrated-gradients", target=0, steps=steps).values
        torch.testing.assert_close(made, x**40, rtol=1e-12, atol=0)
    seen: list[int] = []

    class Counted(Power):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(0 if x.is_meta else len(x))
            return super().forward(x)

    cnnviz.explain(Counted(), x, "integrated-gradients", target=0, steps=3000)
    assert sum(seen) >= 3000
