"""Several targets and several layers share passes, and nothing comes out different for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnviz

QUICK: dict[str, dict[str, Any]] = {
    "saliency": {"samples": 3, "noise": 0.1},
    "guided-backprop": {},
    "deconvnet": {},
    "integrated-gradients": {"steps": 3},
    "cam": {},
    "grad-cam": {"layer": ["first", "last"]},
    "grad-cam++": {"layer": ["last", "first"]},
    "layer-cam": {},
    "score-cam": {},
    "guided-grad-cam": {"layer": ["first", "last"]},
    "occlusion": {"window": 4, "stride": 4},
    "rise": {"masks": 20},
}


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.last = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            ROWS.append(len(x))
        return self.head(self.last(self.first(x)).mean((2, 3)))


ROWS: list[int] = []


@pytest.fixture
def net() -> Counted:
    ROWS.clear()
    return Counted().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 12, 12)


@pytest.mark.parametrize("technique", QUICK)
def test_each_target_comes_out_as_alone(net: Counted, x: Tensor, technique: str) -> None:
    options = QUICK[technique]
    cnnviz.explain(net, x, technique, target=0, **options)  # what is tried out once about the model
    ROWS.clear()
    together = cnnviz.explain(net, x, technique, target=[[1, 4, 0], [2, 2, 3]], **options)
    assert isinstance(together, cnnviz.Heatmap)
    shared = sum(ROWS)
    ROWS.clear()
    for j in range(3):
        alone = cnnviz.explain(net, x, technique, target=[[1, 4, 0][j], [2, 2, 3][j]], **options)
        assert isinstance(alone, cnnviz.Heatmap)
        if j == 0:
            assert sum(ROWS) == shared, "more forward passes for three targets than for one"
        assert torch.equal(together.values[j::3], alone.values)
        assert torch.equal(together.scores[j::3], alone.scores)
        assert together.captions[j::3] == alone.captions
    assert together.target.tolist() == [1, 4, 0, 2, 2, 3]
    assert together.pictures.shape[0] == 6


@pytest.mark.parametrize("technique", QUICK)
def test_top_explains_the_highest_classes(net: Counted, x: Tensor, technique: str) -> None:
    classes = net(x).topk(2, 1).indices
    top = cnnviz.explain(net, x, technique, target=cnnviz.top(2), **QUICK[technique])
    named = cnnviz.explain(net, x, technique, target=classes, **QUICK[technique])
    assert isinstance(top, cnnviz.Heatmap)
    assert isinstance(named, cnnviz.Heatmap)
    assert torch.equal(top.target, classes.flatten())
    assert torch.equal(top.values, named.values)
    assert top.provenance.target == "top 2 classes"


@pytest.mark.parametrize("technique", ["grad-cam", "grad-cam++", "layer-cam"])
def test_layers_share_one_pass(net: Counted, x: Tensor, technique: str) -> None:
    both = cnnviz.explain(net, x, technique, target=1, layer=["first", "last"]).values
    assert ROWS == [2]
    first, last = (cnnviz.explain(net, x, technique, target=1, layer=layer).values for layer in ("first", "last"))
    assert torch.equal(both, torch.stack([first, last]).mean(0))


def test_batches_keep_targets_with_their_samples(net: Counted) -> None:
    x = torch.rand(5, 3, 12, 12)
    targets = torch.randint(5, (5, 2))
    whole = cnnviz.explain(net, x, "saliency", target=targets)
    ROWS.clear()
    parts = cnnviz.explain(net, x, "saliency", target=targets, memory="1MiB")
    assert torch.equal(whole.target, parts.target)
    torch.testing.assert_close(whole.values, parts.values)


def test_too_many_top_classes_are_told(net: Counted, x: Tensor) -> None:
    with pytest.raises(cnnviz.TargetError, match="5 classes, so that there is no top 6"):
        cnnviz.explain(net, x, "saliency", target=cnnviz.top(6))


def test_a_technique_without_scores_takes_one_target(net: Counted, x: Tensor) -> None:
    with pytest.raises(cnnviz.TargetError, match="takes one target for each sample, got 2"):
        cnnviz.explain(net, x, "activations", layer="first", target=cnnviz.top(2))


def test_progress_of_several_targets_ends_where_it_should(net: Counted, x: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    cnnviz.explain(
        net,
        x,
        "occlusion",
        window=4,
        stride=4,
        target=cnnviz.top(3),
        progress=lambda done, total: seen.append((done, total)),
    )
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == totals[-1]
    assert len(set(totals)) == 1


def test_what_does_not_depend_on_values_is_found_out_once_for_a_model_and_a_shape(net: Counted, x: Tensor) -> None:
    found: list[Any] = []

    def asks(request: cnnviz.Request, options: Any) -> Tensor:
        of = request.inputs.shape[1:]
        found.append(request.kept("here", of, object))
        assert request.kept("here", of, object) is found[-1]
        assert request.kept("elsewhere", of, lambda: 3) == 3
        return request.inputs[:, :1]

    technique = cnnviz.Technique("asks", asks)
    explainer = cnnviz.Explainer(net, technique)
    for inputs in (x, x + 1, x[:1]):
        explainer(inputs)
    cnnviz.explain(net, x, technique)
    assert len(set(map(id, found))) == 1
    explainer(x[:, :, :8])
    explainer(x)
    assert len(set(map(id, found))) == 2, "the first shape's is still known"
    with torch.no_grad():
        net.head.weight.add_(1)
    explainer(x)
    assert len(set(map(id, found))) == 3


def test_what_was_found_out_of_something_else_is_found_out_again(net: Counted, x: Tensor) -> None:
    def asks(request: cnnviz.Request, options: Any) -> Tensor:
        assert request.kept("of", 1, lambda: "one") == "one"
        assert request.kept("of", 2, lambda: "two") == "two"
        assert request.kept("of", 2, lambda: "three") == "two"
        assert request.kept("of", 1, lambda: "four") == "four"
        assert request.kept("of", None, lambda: "five") == "five"
        return request.inputs[:, :1]

    assert cnnviz.explain(net, x, cnnviz.Technique("asks", asks)).values.shape == (2, 1, 12, 12)


def test_without_samples_it_is_found_out_of_the_inputs_that_the_model_takes(net: Counted) -> None:
    found: list[Any] = []

    def asks(request: cnnviz.Request, options: Any) -> Tensor:
        found.append(request.kept("here", None, object))
        return torch.zeros(1, 1, 2, 2)

    technique = cnnviz.Technique("asks", asks, inputs="none")
    model = cnnviz.Model(net, input_size=(12, 12))
    for _ in range(2):
        cnnviz.explain(model, None, technique)
    assert found[0] is found[1]
