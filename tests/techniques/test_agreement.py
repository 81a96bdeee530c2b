"""One table: technique x architecture x oracle, with the largest relative error in double precision.

What is compared here on whole architectures is compared more closely in the tests beside this one. `docs/agreement.md`
holds the table; ``CNNVIZ_WRITE_AGREEMENT=1 pytest tests/techniques/test_agreement.py`` writes it anew.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import captum.attr
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
import torchvision
import zennit.attribution
import zennit.composites
from torch import Tensor, nn

import cnnviz
from tests.reference.cam import cam, grad_cam_plus_plus, layer_cam
from tests.reference.grad_cam import grad_cam, maps_and_slopes
from tests.reference.relu_rules import ruled_gradient
from tests.reference.saliency import gradient
from tests.techniques import peers
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
STEPS, WINDOW, STRIDE = 5, (32, 32), (16, 16)
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


def captum_grad_cam(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    made = captum.attr.LayerGradCam(net, net.get_submodule(layer))
    return made.attribute(x.clone(), target=TARGET, relu_attributions=True).detach()


def captum_saliency(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    return captum.attr.Saliency(net).attribute(x.clone().requires_grad_(), target=TARGET, abs=False).detach()


def captum_guided_grad_cam(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting (forward|backward)")
        made = captum.attr.GuidedGradCam(net, net.get_submodule(layer))
        return made.attribute(x.clone().requires_grad_(), target=TARGET, interpolate_mode="bilinear").detach()


def captum_integrated(net: nn.Module, x: Tensor, layer: str) -> Tensor:
    made = captum.attr.IntegratedGradients(net)
    return made.attribute(x.clone().requires_grad_(), target=TARGET, n_steps=STEPS, method="gausslegendre").detach()


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
        "captum": lambda net, x, layer: peers.captum_ruled(captum.attr.GuidedBackprop, net, x),
        "zennit": zennit_ruled(zennit.composites.GuidedBackprop),
    },
    "deconvnet": {
        "twin": lambda net, x, layer: ruled_gradient(net, x, score, "deconvnet"),
        "captum": lambda net, x, layer: peers.captum_ruled(captum.attr.Deconvolution, net, x),
        "zennit": zennit_ruled(zennit.composites.DeconvNet),
    },
    "guided-grad-cam": {"captum": captum_guided_grad_cam},
    "grad-cam": {
        "twin": twin_maps(grad_cam),
        "captum": captum_grad_cam,
        "torchcam": partial(peers.torchcam_maps, torchcam.methods.GradCAM),
        "pytorch-grad-cam": partial(peers.grad_cam_maps, pytorch_grad_cam.GradCAM),
    },
    "grad-cam++": {
        "twin": twin_maps(grad_cam_plus_plus),
        "pytorch-grad-cam": partial(peers.grad_cam_maps, pytorch_grad_cam.GradCAMPlusPlus),
    },
    "layer-cam": {
        "twin": twin_maps(layer_cam),
        "torchcam": partial(peers.torchcam_maps, torchcam.methods.LayerCAM),
        "pytorch-grad-cam": partial(peers.grad_cam_maps, pytorch_grad_cam.LayerCAM),
    },
    "integrated-gradients": {"captum": captum_integrated},
    "occlusion": {"captum": lambda net, x, layer: peers.captum_occlusion(net, x, WINDOW, STRIDE, (0.0, 0.0, 0.0))},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "saliency": {"sign": "signed", "channels": "none"},
    "integrated-gradients": {"steps": STEPS},
    "occlusion": {"window": WINDOW, "stride": STRIDE},
}
BOUNDS = {"captum": EXACT, "zennit": EXACT, "twin": EXACT, "torchcam": 1e-7, "pytorch-grad-cam": 1e-4}
ROUNDED = {("integrated-gradients", "captum"): 1e-6}
GROUPS = {
    "Gradients at the input": ("saliency", "guided-backprop", "deconvnet", "guided-grad-cam"),
    "Class activation maps": ("grad-cam", "grad-cam++", "layer-cam"),
    "Paths and windows": ("integrated-gradients", "occlusion"),
}


def explained(technique: str, name: str, *, large: bool = False, upsample: str | None = None) -> Tensor:
    options = dict(OPTIONS.get(technique, {}))
    if technique in ("grad-cam", "grad-cam++", "layer-cam", "guided-grad-cam"):
        options |= {"layer": ARCHITECTURES[name][0]}
    if technique in GROUPS["Class activation maps"] or technique == "cam":
        options |= {"upsample": upsample}
    target: Any = peers.large if large else TARGET
    return cnnviz.explain(net_of(name), picture(name), technique, target=target, **options).values


def error(technique: str, name: str, oracle: str) -> float:
    """Return the largest relative error; NaN where the other library stretches maps, and one is flat."""
    theirs = ORACLES[technique][oracle](net_of(name), picture(name), ARCHITECTURES[name][0])
    if oracle not in ("torchcam", "pytorch-grad-cam"):
        return distance(explained(technique, name), theirs)
    mine = explained(technique, name, large=True, upsample=None if oracle == "torchcam" else "bilinear")
    low, high = mine.flatten(1).aminmax(dim=1)
    flat = high - low <= 1e-12 * high.abs()  # what is made larger from one place may differ by rounding
    return math.nan if bool(flat.any()) else distance(peers.unit(mine), theirs)


def misses(technique: str, name: str, oracle: str) -> str | None:
    """Return why an oracle is known to be wrong there, or None."""
    ruled = technique in ("guided-backprop", "deconvnet", "guided-grad-cam")
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

Largest relative error, max|a - b| / max|b|, of maps in float64, for two images and random weights with lively
normalisations; `tests/techniques/test_agreement.py` makes these tables. "Twin" is the slow, obvious implementation in
`tests/reference`. Twins, captum and zennit must agree to 1e-9 on raw maps, but for what is said below the tables.
"""
TAIL = """
## Where they differ, and who is right

- **captum and zennit miss rectifiers** (bold figures; the last column says which): their guided backpropagation and
  deconvolution replace the backward pass of `nn.ReLU` modules alone, and functional ReLUs, ReLU6, Hardswish, SiLU and
  GELU pass the plain gradient. The twin settles it.
- **captum**'s integrated gradients round the weights of their steps to float32; its occlusion would round its quotient,
  and is compared by its sums. Its guided Grad-CAM enlarges by nearest neighbours unless told otherwise.
- **torchcam** stretches each map to [0, 1], so that ours is stretched too; one that is 0 everywhere (–) cannot be. Its
  Grad-CAM++ sums the product of maps and cubed gradients, where equation 19 of the paper sums the maps alone, and is
  not compared. Its Score-CAM stretches a mask before it is enlarged, where the paper does so afterwards; with nothing
  to enlarge it agrees to 1e-3.
- **pytorch-grad-cam** stretches too, and resizes by OpenCV in float32. It adds 1e-6 to a divisor of Grad-CAM++, which
  tells where gradients are small; scores are multiplied by 10,000 for both. Its Score-CAM enlarges masks with aligned
  corners; with nothing to enlarge it agrees to 1e-3.
- `cam` is compared with its twin on the networks with one linear layer behind a global average, and with torchcam's to
  1e-6; `rise` with its twin, mask by mask.
"""


def page(found: dict[tuple[str, str, str], float]) -> str:
    parts = [HEAD]
    for title, techniques in GROUPS.items():
        columns = [(technique, oracle) for technique in techniques for oracle in ORACLES[technique]]
        ruled = any(misses(technique, name, oracle) for technique, oracle in columns for name in ARCHITECTURES)
        heads = [f"{technique}, {oracle}" for technique, oracle in columns] + ["captum and zennit miss"] * ruled
        parts.append(f"\n## {title}\n\n| network | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}\n")
        for name in ARCHITECTURES:
            cells = [
                _cell(found[technique, name, oracle], misses(technique, name, oracle)) for technique, oracle in columns
            ]
            cells += [MISSED.get(name, "")] * ruled
            parts.append(f"| `{name}` | {' | '.join(cells)} |\n")
    return "".join(parts) + TAIL


def _cell(found: float, missed: str | None) -> str:
    told = "–" if math.isnan(found) else f"{found:.0e}".replace("0e+00", "0")
    return f"**{told}**" if missed else told


@pytest.mark.parametrize(("technique", "name", "oracle"), CASES)
def test_agreement(technique: str, name: str, oracle: str, table: dict[tuple[str, str, str], float]) -> None:
    found = table[technique, name, oracle] = error(technique, name, oracle)
    if misses(technique, name, oracle):
        assert found > 1e-7, f"{oracle} is mended on {name}: take it out of MISSED"
    elif not math.isnan(found):
        assert found <= ROUNDED.get((technique, oracle), BOUNDS[oracle])


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
    assert all(told.count(f"| `{name}` |") == len(GROUPS) for name in ARCHITECTURES)
    assert all(f"{technique}, {oracle} |" in told for technique in ORACLES for oracle in ORACLES[technique])
