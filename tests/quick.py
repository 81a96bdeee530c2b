"""How each technique and metric is called where it is to be quick, whatever else is tested of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import cnnviz
from cnnviz.synthesis import StyleNetwork

_STYLE = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(11))
OPTIONS: dict[str, dict[str, Any]] = {
    "class-visualization": {"steps": 2, "size": 16, "jitter": 2},
    "deep-dream": {"steps": 2, "jitter": 2, "octaves": 1},
    "feature-inversion": {"steps": 2},
    "integrated-gradients": {"steps": 4},
    "occlusion": {"window": 8, "stride": 6},
    "rise": {"masks": 40},
    "style-transfer": {"steps": 2, "styles": _STYLE},
    "texture-gram": {"steps": 2, "size": 16},
    "texture-patch": {"size": 8, "window": 5},
}
METRICS: dict[str, dict[str, Any]] = {
    "infidelity": {"window": 8, "samples": 20},
    "max-sensitivity": {"samples": 3},
    "parameter-randomisation": {"stages": 2},
}
RUN_NO_MODEL = ("filters", "texture-patch")
NETWORKS = {"fast-style": lambda: StyleNetwork(["waves", "stars"], width=2, blocks=1)}
"""What techniques work on that take no other network."""


def network(name: str, other: nn.Module) -> nn.Module:
    """Return a network that a technique takes: `other`, or one of its own."""
    return NETWORKS[name]() if name in NETWORKS else other


def arguments(name: str, x: torch.Tensor) -> tuple[torch.Tensor | None, int | None]:
    """Return the inputs and the target with which to call a technique that may take no inputs."""
    return (None, 0) if cnnviz.techniques()[name].inputs == "none" else (x, None)
