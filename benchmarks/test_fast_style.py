"""Painting in one pass, beside the network's convolutions alone, as Johnson's and Dumoulin's networks have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import cnnviz
from cnnviz.synthesis import StyleNetwork

CASES = {"256 x 256": (256, 256), "512 x 512": (512, 512), "1080 x 1920": (1080, 1920)}
ROUNDS = {"256 x 256": (15, 3), "512 x 512": (7, 2), "1080 x 1920": (3, 1)}  # and how many to warm up


def convolutions(net: StyleNetwork, x: Tensor) -> list[Callable[[], Tensor]]:
    """Return each convolution of a forward pass by itself, its input padded, and enlarged where maps grow."""
    growing = {layer.convolution for layer in net.growing}
    inputs: list[tuple[nn.Conv2d, Tensor]] = []
    # A growing layer computes its convolution from the small maps, without calling the module.
    handles = [
        layer.register_forward_pre_hook(lambda layer, given: inputs.append((layer.convolution, given[0].detach())))
        for layer in net.growing
    ]
    handles += [
        module.register_forward_pre_hook(lambda module, given: inputs.append((module, given[0].detach().clone())))
        for module in net.modules()
        if isinstance(module, nn.Conv2d) and module not in growing
    ]
    net(x)
    for handle in handles:
        handle.remove()
    calls = []
    for module, given in inputs:
        reach = module.kernel_size[0] // 2
        maps = functional.interpolate(given, scale_factor=2.0) if module in growing else given
        padded = functional.pad(maps, (reach,) * 4, mode="reflect")
        calls.append(lambda m=module, p=padded: functional.conv2d(p, m.weight, m.bias, m.stride))
    return calls


@pytest.mark.parametrize("case", CASES)
def test_fast_style(case: str, race: Any, device: str) -> None:
    if race.quick and case != "256 x 256":
        pytest.skip("takes minutes")
    net = StyleNetwork(["waves"]).eval()
    net.initialise(torch.Generator().manual_seed(0))
    net.to(device).requires_grad_(False)
    x = torch.rand(1, 3, *CASES[case], device=device)
    explainer = cnnviz.Explainer(net, "fast-style", memory="8GiB")
    calls = convolutions(net, x)
    rounds, race.warm = ROUNDS[case] if device == "cpu" else (race.rounds, race.warm)
    race.rounds, race.prepared = min(race.rounds, rounds), False

    def alone() -> None:
        for call in calls:
            call()

    with torch.no_grad():
        race(lambda: explainer(x).images, {"the network alone": lambda: net(x), "its convolutions alone": alone})
