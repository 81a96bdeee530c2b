"""One table: technique x architecture x oracle, with the largest relative error in double precision.

What is compared here on whole architectures is compared more closely in the tests beside this one. `docs/agreement.md`
holds the table; ``CNNVIZ_WRITE_AGREEMENT=1 pytest tests/techniques/test_agreement.py`` writes it anew.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import captum.attr
import pytest
import torch
import torchvision
import zennit.attribution
import zennit.composites
from torch import Tensor, nn

import cnnviz
from tests.reference.cam import cam, grad_cam_plus_plus, layer_cam
from tests.reference.grad_cam import grad_cam, maps_and_slopes
from tests.reference.relu_rules import ruled_gradient
from tests.reference.saliency import gradient
from tests.techniques.measure import distance
from tests.techniques.networks import TARGET, images, network, score

PAGE = Path(__file__).parents[2] / "docs" / "agreement.md"
ARCHITECTURES = {  # the layer of the CAM family, and the linear layer of a pooled head
    "alexnet": ("features.11", None),
    "vgg16": ("features.29", None),
    "resnet18": ("layer4", "fc"),
    "resnet50": ("layer4", "fc"),
    "squeezenet1_1": ("features", None),
    "mobilenet_v2": ("features", "classifier.1"),
    "mobilenet_v3_small": ("features", None),
    "efficientnet_b0": ("features", "classifier.1"),
    "densenet121": ("features.denseblock4", None),
    "googlenet": ("inception5b", "fc"),
    "inception_v3": ("Mixed_7c", "fc"),
    "convnext_tiny": ("features", None),
    "regnet_y_400mf": ("trunk_output", "fc"),
}
MISSED: dict[str, str] = {
    "mobilenet_v2": "ReLU6",
    "mobilenet_v3_small": "Hardswish",
    "efficientnet_b0": "SiLU",
    "densenet121": "one functional ReLU",
    "googlenet": "functional ReLUs",
    "inception_v3": "functional ReLUs",
    "convnext_tiny": "GELU",
}
"""Rectifiers that captum's and zennit's guided backpropagation and deconvolution pass by."""

EXACT = 1e-9
Oracle = Callable[[nn.Module, Tensor, str], Tensor]


def picture(name: str) -> Tensor:
    return images(torch.float64, 2, (75, 75)) if name == "inception_v3" else images(torch.float64)


def net_of(name: str) -> nn.Module:
    if name not in _NETS:
        _NETS[name] = _alexnet() if name == "alexnet" else network(name, torch.float64)
    return _NETS[name]


_NETS: dict[str, nn.Module] = {}


def _alexnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = torchvision.models.alexnet(num_classes=10)
        for layer in (1, 4):
            made.classifier[layer] = nn.Linear(9216 if layer == 1 else 64, 64)
        made.classifier[6] = nn.Linear(64, 10)
    return made.eval().double()


def captum_ruled(kind: Any) -> Oracle:
    def ruled(net: nn.Module, x: Tensor, layer: str) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU activations")
            return kind(net).attribute(x.clone().requires_grad_(), target=TARGET).detach()

    return ruled


def captum_grad_cam(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    made = captum.attr.LayerGradCam(net, net.get_submodule(layer))
    return made.attribute(x.clone(), target=TARGET, relu_attributions=True).detach()


def captum_saliency(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    return captum.attr.Saliency(net).attribute(x.clone().requires_grad_(), target=TARGET, abs=False).detach()


def twin_maps(weigh: Callable[[Tensor, Tensor], Tensor]) -> Oracle:
    return lambda net, x, layer: weigh(*maps_and_slopes(net, x, score, layer))


def zennit_ruled(composite: Any) -> Oracle:
    def ruled(net: nn.Module, x: Tensor, layer: str) -> Tensor:
        chosen = torch.eye(10, dtype=x.dtype)[TARGET]
        with zennit.attribution.Gradient(net, composite()) as attributor:
            return attributor(x.clone().requires_grad_(), chosen)[1].detach()

    return ruled


ORACLES: dict[str, dict[str, Oracle]] = {
    "saliency": {"twin": lambda net, x, layer: gradient(net, x, score), "captum": captum_saliency},
    "guided-backprop": {
        "twin": lambda net, x, layer: ruled_gradient(net, x, score, "guided"),
        "captum": captum_ruled(captum.attr.GuidedBackprop),
        "zennit": zennit_ruled(zennit.composites.GuidedBackprop),
    },
    "deconvnet": {
        "twin": lambda net, x, layer: ruled_gradient(net, x, score, "deconvnet"),
        "captum": captum_ruled(captum.attr.Deconvolution),
        "zennit": zennit_ruled(zennit.composites.DeconvNet),
    },
    "grad-cam": {"twin": twin_maps(grad_cam), "captum": captum_grad_cam},
    "grad-cam++": {"twin": twin_maps(grad_cam_plus_plus)},
    "layer-cam": {"twin": twin_maps(layer_cam)},
}
OPTIONS: dict[str, dict[str, Any]] = {"saliency": {"sign": "signed", "channels": "none"}}


def explained(technique: str, name: str) -> Tensor:
    options = dict(OPTIONS.get(technique, {}))
    if "cam" in technique and technique != "cam":
        options |= {"layer": ARCHITECTURES[name][0]}
    if "cam" in technique:
        options |= {"upsample": None}
    return cnnviz.explain(net_of(name), picture(name), technique, target=TARGET, **options).values


def error(technique: str, name: str, oracle: str) -> float:
    net, layer = net_of(name), ARCHITECTURES[name][0]
    return distance(explained(technique, name), ORACLES[technique][oracle](net, picture(name), layer))


def misses(technique: str, name: str, oracle: str) -> str | None:
    """Return why an oracle is known to be wrong there, or None."""
    ruled = technique in ("guided-backprop", "deconvnet")
    return MISSED.get(name) if ruled and oracle != "twin" else None


CASES = [(technique, name, oracle) for technique in ORACLES for oracle in ORACLES[technique] for name in ARCHITECTURES]


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, str, str], float]]:
    """Errors by technique, architecture and oracle; written down at the end where that was asked for."""
    found: dict[tuple[str, str, str], float] = {}
    yield found
    if os.environ.get("CNNVIZ_WRITE_AGREEMENT") == "1" and len(found) == len(CASES):
        PAGE.write_text(page(found), encoding="utf-8")


HEAD = """# Agreement with other implementations

Largest relative error, max|a - b| / max|b|, of unnormalised maps in float64, for two images and random weights with
lively normalisations; `tests/techniques/test_agreement.py` makes this table and fails where an error is above 1e-9.
"Twin" is the slow, obvious implementation in `tests/reference`.

Where captum's and zennit's guided backpropagation and deconvolution differ it is by what they pass by, which the twin
settles: they replace the backward pass of `nn.ReLU` modules alone. Other rectifiers of the network then pass the plain
gradient.

"""
TAIL = """
## Others, and why they need a word

- **pytorch-grad-cam** stretches each map to [0, 1] and resizes it by OpenCV in float32. Stretched alike, `grad-cam`,
  `grad-cam++` and `layer-cam` agree to 1e-3. It adds 1e-6 to a divisor of Grad-CAM++, which tells where gradients are
  small; compared are scores times 10,000. Its Score-CAM enlarges masks with aligned corners.
- **torchcam** stretches too; `cam`, `grad-cam` and `layer-cam` agree to 1e-4 and better before resizing. Its Score-CAM
  stretches a mask before it is enlarged, where the paper does so afterwards; with nothing to enlarge it agrees.
  Its Grad-CAM++ sums the product of maps and cubed gradients, where equation 19 of the paper sums the maps alone.
- **captum**'s integrated gradients round the weights of their steps to float32 (1e-7); its occlusion rounds its
  quotient likewise. Its guided Grad-CAM enlarges by nearest neighbours unless told otherwise; told, it agrees to 1e-9.
"""


def page(found: dict[tuple[str, str, str], float]) -> str:
    columns = [(technique, oracle) for technique in ORACLES for oracle in ORACLES[technique]]
    rows = ["| network | " + " | ".join(f"{technique}, {oracle}" for technique, oracle in columns) + " |"]
    rows.append("|---|" + "---:|" * len(columns))
    for name in ARCHITECTURES:
        cells = []
        for technique, oracle in columns:
            missed = misses(technique, name, oracle)
            told = f"{found[technique, name, oracle]:.0e}".replace("0e+00", "0")
            cells.append(f"**{told}**: misses {missed}" if missed else told)
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return HEAD + "\n".join(rows) + "\n" + TAIL


@pytest.mark.parametrize(("technique", "name", "oracle"), CASES)
def test_agreement(technique: str, name: str, oracle: str, table: dict[tuple[str, str, str], float]) -> None:
    found = table[technique, name, oracle] = error(technique, name, oracle)
    if misses(technique, name, oracle):
        assert found > 1e-7, f"{oracle} is mended on {name}: take it out of MISSED"
    else:
        assert found <= EXACT


@pytest.mark.parametrize("name", [name for name, (_, head) in ARCHITECTURES.items() if head])
def test_agreement_of_cam(name: str) -> None:
    layer, head = ARCHITECTURES[name]
    net = net_of(name)
    maps, _ = maps_and_slopes(net, picture(name), score, layer)
    assert distance(explained("cam", name), cam(maps, net.get_submodule(str(head)).weight.detach(), TARGET)) <= EXACT


def test_the_page_has_every_network_and_every_comparison() -> None:
    told = PAGE.read_text(encoding="utf-8")
    assert told.startswith(HEAD)
    assert told.endswith(TAIL)
    assert all(f"| `{name}` |" in told for name in ARCHITECTURES)
    assert all(f"{technique}, {oracle} |" in told for technique in ORACLES for oracle in ORACLES[technique])
