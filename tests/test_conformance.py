"""Every installed technique and metric, whoever wrote it, keeps the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cnnviz
from cnnviz.metrics import available
from cnnviz.testing import ConformanceError, SmallNet, check_metric, check_technique
from tests import quick


@pytest.mark.parametrize("name", list(cnnviz.techniques()))
def test_technique_conforms(name: str) -> None:
    model = quick.network(name, SmallNet())
    assert "threads" in check_technique(name, model=model, **quick.OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", list(available()))
def test_metric_conforms(name: str) -> None:
    assert "threads" in check_metric(name, **quick.METRICS.get(name, {}))


def draws_for_each(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
    """Draw another number for each sample of a batch."""
    return torch.rand(len(case.values), generator=case.request.generator)


def mean_of_all(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
    """Let one sample's number depend on the others."""
    return case.values.mean().expand(len(case.values))


def shrinks_weights(case: cnnviz.Case, options: cnnviz.Options) -> torch.Tensor:
    """Change the caller's weights."""
    with torch.no_grad():
        for parameter in case.request.model.parameters():
            parameter.mul_(0.5)
    return case.request.base_scores()


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (draws_for_each, "draw random numbers per call"),
        (mean_of_all, "of its samples alone"),
        (shrinks_weights, "it changed the model"),
    ],
)
def test_a_faulty_metric_is_found_out(function: Any, told: str) -> None:
    with pytest.raises(ConformanceError, match=told):
        check_metric(cnnviz.Metric("faulty", function))


class _Options(cnnviz.Options):
    pass


def _gradient(request: cnnviz.Request) -> torch.Tensor:
    x = request.inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(request.score(x).sum(), x)
    return gradient.sum(1, keepdim=True)


def draws_globally(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Use the global generator."""
    return _gradient(request) + torch.rand(1)


def draws_per_sample(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Draw other numbers for each sample of a batch."""
    drawn = torch.randn(request.inputs.shape, generator=request.generator)
    return _gradient(request) + drawn.sum(1, keepdim=True)


def mixes_samples(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Let one sample's map depend on the others."""
    heat = _gradient(request)
    return heat / heat.abs().max()


def writes_to_weights(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Change the caller's weights."""
    heat = _gradient(request)
    for parameter in request.model.parameters():
        parameter.mul_(1.5)
    return heat


def loses_a_dimension(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Return something of the wrong shape."""
    return _gradient(request)[:, 0]


def undocumented(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    return _gradient(request)


def fails(request: cnnviz.Request, options: _Options) -> torch.Tensor:
    """Fail in the middle without saying why."""
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (draws_globally, "global random state of torch"),
        (draws_per_sample, "of its samples alone"),
        (mixes_samples, "of its samples alone"),
        (writes_to_weights, "changed the model|different results"),
        (loses_a_dimension, r"expected \(N, C, h, w\)"),
        (undocumented, "no docstring"),
        (fails, "lost"),
    ],
)
def test_conformance_suite_finds_the_fault(function: Any, complaint: str) -> None:
    technique = cnnviz.Technique("faulty", function, _Options)
    with pytest.raises(ConformanceError, match=complaint):
        check_technique(technique)


def test_small_net_is_the_same_every_time() -> None:
    x = torch.ones(1, 3, 16, 16)
    assert torch.equal(SmallNet().eval()(x), SmallNet().eval()(x))
    assert not torch.equal(SmallNet().eval()(x), SmallNet(seed=1).eval()(x))
