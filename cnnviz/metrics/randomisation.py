"""Whether an explanation depends on what the network learnt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..hookspecs import RegisterMetric, hookimpl
from ..metric import Case, Measurement, Metric
from ..models import own_randomness, replicate
from ..options import Field, Options


class RandomisationOptions(Options):
    """Options of `parameter-randomisation`."""

    stages: int = Field(8, ge=1, le=10_000, description="how often to look while the layers are randomised")
    draw: Literal["shuffle", "reset"] = Field(
        "shuffle",
        description="shuffle each weight tensor's numbers, which keeps their scale, or reset layers to what they are "
        "born with, those that can be",
    )
    absolute: bool = Field(False, description="compare magnitudes, whatever their signs")


def parameter_randomisation(case: Case, options: RandomisationOptions) -> Measurement:
    """How far the map ranks places as the map of the network whose weights are all random does; near 0 is right.

    Layers are randomised one after the other from the last to the first; the curve has Spearman's correlation on the
    way, the value is the magnitude of its end; NaN where either map is the same everywhere, as Grad-CAM's may be once
    layers are random. Adebayo 2018, section 3.1.
    """
    request = case.request
    net = _with_own_weights(request.model)
    layers = _from_the_last(case, net)
    if not layers:
        raise ModelError("the network has no parameters that could be randomised")
    stages = min(options.stages, len(layers))
    stops = [len(layers) * stage // stages for stage in range(stages + 1)]
    before = case.maps
    found = [_likeness(before, before, absolute=options.absolute)]
    for stage in range(stages):
        for number in range(stops[stage], stops[stage + 1]):
            _randomise(layers[number], options.draw, request.generator)
        again = case.explain(request.inputs, net, share=(stage / stages, (stage + 1) / stages))
        found.append(_likeness(before, case.as_maps(again), absolute=options.absolute))
    curves = torch.stack(found, 1).to(case.values.dtype)
    flat = before.flatten(1)
    curves[flat.amax(1) == flat.amin(1)] = torch.nan
    axes = ("layers randomised, from the last", "rank correlation")
    return Measurement(curves[:, -1].abs(), curves, torch.tensor(stops, device="cpu"), axes)


def _with_own_weights(model: nn.Module) -> nn.Module:
    """Return a replica whose parameters are copies."""
    net = replicate(model)
    copies: dict[int, nn.Parameter] = {}  # by identity, as modules may share one
    for module in net.modules():
        for name, weight in module.named_parameters(recurse=False):
            copy = copies.setdefault(id(weight), nn.Parameter(weight.detach().clone(), requires_grad=False))
            setattr(module, name, copy)
    return net


def _from_the_last(case: Case, net: nn.Module) -> list[nn.Module]:
    """Return the modules with parameters of their own, those that are called last first."""
    every = net.named_modules()
    weighted = {name: module for name, module in every if next(module.parameters(recurse=False), None) is not None}
    called = [layer.name.partition("#")[0] for layer in case.request.calls()]
    order = {name: place for place, name in enumerate(called)}
    return [weighted[name] for name in sorted(weighted, key=lambda name: order.get(name, -1), reverse=True)]


def _randomise(module: nn.Module, draw: str, generator: torch.Generator) -> None:
    reset = getattr(module, "reset_parameters", None)
    if draw == "reset" and callable(reset):
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        with own_randomness(next(module.parameters()).device, seed), torch.no_grad():
            reset()
        return
    with torch.no_grad():
        for weight in module.parameters(recurse=False):
            mixed = torch.randperm(weight.numel(), generator=generator, device="cpu").to(weight.device)
            weight.copy_(weight.flatten()[mixed].reshape(weight.shape))


def _likeness(a: Tensor, b: Tensor, *, absolute: bool) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps, (N, H, W) -> (N,); NaN where a map is constant."""
    if absolute:
        a, b = a.abs(), b.abs()
    first, second = _ranks(a.flatten(1)), _ranks(b.flatten(1))
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    sizes = first.norm(dim=1) * second.norm(dim=1)
    return torch.where(sizes == 0, torch.nan, (first * second).sum(1) / sizes)


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each number in its row; equal ones share the mean of theirs."""
    ordered, values = values.sort(1).values, values.contiguous()
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto).double() / 2


@hookimpl
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer it."""
    function, options = parameter_randomisation, RandomisationOptions
    register(Metric("parameter-randomisation", function, options, better="lower", explains=True))
