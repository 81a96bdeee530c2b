"""What is explained: what callers may give, what it becomes, and what is said where it does not fit."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import cnnviz
from cnnviz import CnnvizError, LayerError, OptionError, TargetError, channel, direction, explain, neuron, top
from cnnviz.targets import called, class_output, class_scores, describe, resolve, words

LABELS = ("cat", "dog", "crane", "crane", "Fish")


@pytest.fixture
def net() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    return nn.Sequential(*layers)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 6, 6)


def slope(net: nn.Module, x: Tensor, score: Any) -> Tensor:
    leaf = x.clone().requires_grad_()
    (back,) = torch.autograd.grad(score(net, leaf).sum(), leaf)
    return back


def explained(net: nn.Module, x: Tensor, target: Any) -> Tensor:
    return explain(net, x, "saliency", target=target, channels="none", sign="signed").values


# ---------------------------------------------------------------- resolving


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (1, [1, 1]),
        (numpy.int64(1), [1, 1]),
        (torch.tensor(1), [1, 1]),
        ("dog", [1, 1]),
        ("DOG", [1, 1]),
        ("fish", [4, 4]),
        ([0, 1], [0, 1]),
        ((0, 1), [0, 1]),
        (range(2), [0, 1]),
        (["cat", 1], [0, 1]),
        (torch.tensor([0, 1]), [0, 1]),
        (torch.tensor([0, 1], dtype=torch.uint8), [0, 1]),
        (numpy.array([0, 1]), [0, 1]),
        (numpy.array(["cat", "dog"]), [0, 1]),
    ],
    ids=repr,
)
def test_classes_become_one_index_for_each_input(target: Any, expected: list[int]) -> None:
    resolved = resolve(target, 2, LABELS)
    assert resolved.dtype == torch.long
    assert resolved.tolist() == [[index] for index in expected]


def test_selectors_callables_and_the_top_class_stay_as_they_are() -> None:
    def score(output: Tensor) -> Tensor:
        return output[:, 0]

    for target in (None, score, channel("conv", 1), neuron("conv", 1, 2, 3), top(3)):
        assert resolve(target, 2, None) is target


@pytest.mark.parametrize("target", [[0], [0, 1, 2], [], torch.tensor([0, 1, 2])])
def test_wrong_number_of_targets_is_told(target: Any) -> None:
    with pytest.raises(TargetError, match=rf"got {len(target)} targets for 2 inputs; give one for each"):
        resolve(target, 2, None)


@pytest.mark.parametrize(
    "target",
    [
        *(1.0, True, {1, 2}, {"class": 1}, [1.5, 2], [[[0]], [[1]]], [None, 1], numpy.array([0.5, 1])),
        *([torch.tensor(1.5), torch.tensor(1.0)], [torch.tensor(True), torch.tensor(False)], [numpy.bool_(1), 0]),
    ],
    ids=repr,
)
def test_what_is_no_target_is_told(target: Any) -> None:
    with pytest.raises(TargetError, match=r"expected a class index, a label.*callable"):
        resolve(target, 2, LABELS)


@pytest.mark.parametrize("target", [torch.zeros(2), torch.zeros(2, 3, 1).long(), torch.tensor([True, False])])
def test_tensor_that_holds_no_classes_is_told(target: Tensor) -> None:
    with pytest.raises(TargetError, match=r"expected class indices \(N,\) or \(N, K\) of an integer type"):
        resolve(target, 2, None)


def test_label_of_a_model_without_labels_is_told() -> None:
    with pytest.raises(TargetError, match=r"'cat': this model has no labels; give a class index"):
        resolve("cat", 1, None)


def test_unknown_label_says_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"no label 'dogg' among the model's 5; nearest: 'dog'"):
        resolve("dogg", 1, LABELS)


def test_ambiguous_label_says_its_classes() -> None:
    with pytest.raises(TargetError, match=r"'crane' stands for classes 2, 3; give the index"):
        resolve("crane", 1, LABELS)


def test_exact_label_goes_before_another_case() -> None:
    assert resolve("Fish", 1, ("fish", "Fish", "FISH")).tolist() == [[1]]


# ---------------------------------------------------------------- what a score is


def test_class_is_the_raw_output(net: nn.Module, x: Tensor) -> None:
    found = explain(net, x, "saliency", target=[3, 1])
    output = net(x)
    assert torch.equal(found.scores, torch.stack([output[0, 3], output[1, 1]]).detach())
    assert found.target.tolist() == [3, 1]


def test_gradient_is_of_each_samples_own_class(net: nn.Module, x: Tensor) -> None:
    expected = slope(net, x, lambda net, x: net(x)[[0, 1], [3, 1]])
    torch.testing.assert_close(explained(net, x, [3, 1]), expected)


def test_top_class_is_the_default(net: nn.Module, x: Tensor) -> None:
    top = net(x).argmax(1)
    found = explain(net, x, "saliency")
    assert torch.equal(found.target, top)
    assert torch.equal(found.values, explain(net, x, "saliency", target=top).values)


def test_callable_decides(net: nn.Module, x: Tensor) -> None:
    expected = slope(net, x, lambda net, x: net(x)[:, 0] - 2 * net(x)[:, 1])
    torch.testing.assert_close(explained(net, x, lambda output: output[:, 0] - 2 * output[:, 1]), expected)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_channel_is_reduced_over_space(net: nn.Module, x: Tensor, reduce: str) -> None:
    def score(net: nn.Module, x: Tensor) -> Tensor:
        maps = net[1](net[0](x))[:, 2].flatten(1)
        return maps.mean(1) if reduce == "mean" else maps.amax(1)

    torch.testing.assert_close(explained(net, x, channel("1", 2, reduce)), slope(net, x, score))


def test_channel_of_a_vector_is_its_element(net: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(explained(net, x, channel("4", 2)), slope(net, x, lambda net, x: net(x)[:, 2]))


def test_neuron_is_one_unit(net: nn.Module, x: Tensor) -> None:
    expected = slope(net, x, lambda net, x: net[0](x)[:, 2, 3, 4])
    torch.testing.assert_close(explained(net, x, neuron("0", 2, 3, 4)), expected)
    torch.testing.assert_close(explained(net, x, neuron("0", -2, -3, -2)), expected)


def test_selected_unit_of_a_reused_module_is_of_the_call_that_is_named(x: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)).mean((2, 3))

    net = Twice()
    first = slope(net, x, lambda net, x: net.conv(x)[:, 1].mean((1, 2)))
    last = slope(net, x, lambda net, x: net.conv(net.conv(x))[:, 1].mean((1, 2)))
    torch.testing.assert_close(explained(net, x, channel("conv#0", 1)), first)
    torch.testing.assert_close(explained(net, x, channel("conv", 1)), last)


def test_selector_has_scores_but_no_class(net: nn.Module, x: Tensor) -> None:
    found = explain(net, x, "saliency", target=channel("1", 2))
    torch.testing.assert_close(found.scores, net[1](net[0](x))[:, 2].mean((1, 2)).detach())
    assert found.target is None
    assert found.provenance.target == "channel 2 of 1 (mean)"


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("target", [5, -1, [0, 7]])
def test_class_out_of_range_is_told(net: nn.Module, x: Tensor, target: Any) -> None:
    with pytest.raises(TargetError, match=r"class (5|-1|7) is out of range: the model has classes 0 to 4"):
        explain(net, x, "saliency", target=target)


@pytest.mark.parametrize(
    ("target", "error", "told"),
    [
        (channel("0", 4), TargetError, r"channel 4 of layer '0': it has channels 0 to 3"),
        (channel("0", -5), TargetError, r"channel -5 of layer '0'"),
        (channel("seven", 0), LayerError, r"no layer 'seven'"),
        (channel("0#1", 0), LayerError, r"called 1 times?"),
        (neuron("0", 1, 6, 0), TargetError, r"neuron \(6, 0\) of layer '0' lies outside of its 6 x 6 map"),
        (neuron("4", 1, 0, 0), TargetError, r"no map; use cnnviz.channel"),
    ],
    ids=str,
)
def test_selector_that_does_not_fit_is_told(
    net: nn.Module, x: Tensor, target: Any, error: type[CnnvizError], told: str
) -> None:
    with pytest.raises(error, match=told):
        explain(net, x, "saliency", target=target)


def test_selector_of_a_layer_without_tensor_is_told(x: Tensor) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x)[0].mean((2, 3))

    with pytest.raises(LayerError, match=r"layer 'two' returns a tuple of .*expected a tensor \(N, C"):
        explain(Outer(), x, "saliency", target=channel("two", 0))


def test_wrong_reduction_is_told() -> None:
    with pytest.raises(OptionError, match=r"got 'sum', expected 'mean' or 'max'"):
        channel("conv", 0, "sum")


@pytest.mark.parametrize("make", [lambda: channel("conv", 1.5), lambda: neuron("conv", 0, "a", 0)])
def test_numbers_of_selectors_are_whole(make: Any) -> None:
    with pytest.raises(TargetError, match="expected a class index"):
        make()


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda output: output, r"returned a tensor \(2, 5\) for 2 rows, expected a tensor \(2,\)"),
        (lambda output: output.sum(), r"returned a tensor \(\) for 2 rows"),
        (lambda output: 3.0, r"returned float 3.0 for 2 rows"),
        (lambda output: None, r"returned NoneType None"),
    ],
)
def test_callable_that_does_not_return_a_number_for_each_row_is_told(
    net: nn.Module, x: Tensor, function: Any, told: str
) -> None:
    with pytest.raises(TargetError, match=told):
        explain(net, x, "saliency", target=function)


@pytest.mark.parametrize(
    ("output", "told", "hint"),
    [
        (torch.zeros(2, 5, 4, 4), r"a tensor \(2, 5, 4, 4\)", r"output\[:, 0\].mean\(\(1, 2\)\)"),
        (torch.zeros(2), r"a tensor \(2,\)", "callable"),
        ({"out": torch.zeros(2, 5)}, r"a dict with 'out' \(2, 5\)", r"output\['out'\]"),
        ((torch.zeros(2, 5), 3), r"a tuple of \(2, 5\), int", r"output\[0\]"),
    ],
)
def test_output_without_classes_asks_for_a_callable(output: Any, told: str, hint: str) -> None:
    with pytest.raises(TargetError, match=rf"{told}.*needs scores \(N, K\).*{hint}"):
        class_output(output)


# ---------------------------------------------------------------- the parts


def test_class_scores_are_gathered_row_by_row() -> None:
    output = torch.arange(6.0).reshape(2, 3)
    assert class_scores(output, torch.tensor([[2], [0]])).tolist() == [[2.0], [3.0]]
    assert class_scores(output, torch.tensor([[2, 1], [0, 0]])).tolist() == [[2.0, 1.0], [3.0, 3.0]]
    probabilities = class_scores(output, torch.tensor([[0, 1, 2], [2, 1, 0]]), probability=True)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    "target",
    [
        [[1, 2], [3, 0]],
        torch.tensor([[1, 2], [3, 0]]),
        [["dog", 2], [3, "cat"]],
        [torch.tensor([1, 2]), torch.tensor([3, 0])],
        [numpy.array([1, 2]), (3, 0)],
    ],
    ids=repr,
)
def test_several_classes_for_each_input(target: Any) -> None:
    assert resolve(target, 2, LABELS).tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize("target", [[[1, 2], [3]], [1, [2, 3]], [[], []]])
def test_uneven_numbers_of_classes_are_told(target: Any) -> None:
    with pytest.raises(TargetError, match="expected as many for each input"):
        resolve(target, 2, LABELS)


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "3"])
def test_top_takes_a_whole_number(k: Any) -> None:
    with pytest.raises(TargetError):
        top(k)


def test_called_gives_what_the_callable_gives() -> None:
    assert called(lambda output: output[:, 1], torch.eye(3), 3).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.zeros(2, 3), "a tensor (2, 3)"),
        ({"a": torch.zeros(1), "b": 2}, "a dict with 'a' (1,), 'b' int"),
        ([torch.zeros(1), "x"], "a list of (1,), str"),
        (3.5, "float 3.5"),
        ("x" * 500, "str 'xxx"),
    ],
)
def test_values_are_described_in_words(value: Any, told: str) -> None:
    assert describe(value).startswith(told)
    assert len(describe(value)) <= 80


@pytest.mark.parametrize(
    ("target", "labels", "told"),
    [
        (None, None, "top class"),
        (torch.tensor([1, 1]), LABELS, "class 1 dog"),
        (torch.tensor([1, 0]), LABELS, "class 1 dog, 0 cat"),
        (torch.tensor([7]), LABELS, "class 7"),
        (torch.tensor([1]), None, "class 1"),
        (channel("conv", 2, "max"), None, "channel 2 of conv (max)"),
        (neuron("conv", 2, 3, 4), None, "neuron (3, 4) of channel 2 of conv"),
    ],
)
def test_target_in_words(target: Any, labels: Any, told: str) -> None:
    assert words(target, labels) == told


def test_callable_in_words_is_named() -> None:
    assert "test_callable_in_words_is_named" in words(lambda output: output[:, 0], None)
    assert cnnviz.channel("a", 0) == channel("a", 0)


# ---------------------------------------------------------------- directions, and selectors for each sample


def test_direction_is_the_mean_of_its_products() -> None:
    maps = torch.randn(4, 3, 5, 6)
    wanted = torch.einsum("nchw,c->nhw", maps, torch.tensor([1.0, -2.0, 0.5])).mean((1, 2))
    torch.testing.assert_close(direction("conv", [1, -2, 0.5]).score(maps), wanted)
    one = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(direction("conv", one).score(maps), channel("conv", 1).score(maps))
    torch.testing.assert_close(direction("fc", one).score(maps[:, :, 0, 0]), maps[:, 1, 0, 0])


def test_directions_that_do_not_fit_are_told() -> None:
    with pytest.raises(TargetError, match="got 2 numbers, but layer 'conv' has 3 channels"):
        direction("conv", [1, 2]).score(torch.zeros(1, 3, 2, 2))
    for vector in ([[1.0]], [float("nan")]):
        with pytest.raises(TargetError, match="one finite number for each channel"):
            direction("conv", vector)  # type: ignore[arg-type]


def test_a_selector_for_each_sample() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)).eval()
    x = torch.randn(3, 3, 8, 8)
    several = [channel("0", 2), neuron("0", 1, 2, 3), direction("0", torch.arange(6.0))]
    together = cnnviz.explain(net, x, "saliency", target=several)
    assert isinstance(together, cnnviz.Heatmap)
    for i, one in enumerate(several):
        alone = cnnviz.explain(net, x[i : i + 1], "saliency", target=one)
        assert isinstance(alone, cnnviz.Heatmap)
        torch.testing.assert_close(together.values[i : i + 1], alone.values)
    assert together.provenance is not None
    assert together.provenance.target is not None
    assert together.provenance.target.startswith("channel 2 of 0 (mean), neuron (2, 3) of channel 1 of 0, direction ")
    with pytest.raises(TargetError, match="got 2 targets for 3 inputs"):
        cnnviz.explain(net, x, "saliency", target=several[:2])
    for mixed in ([channel("0", 0), channel("1", 0), channel("0", 1)], [channel("0", 0), 1, 2]):
        with pytest.raises(TargetError, match="a list of channels, neurons and directions is of one layer"):
            cnnviz.explain(net, x, "saliency", target=mixed)


def test_without_samples_there_are_as_many_as_targets() -> None:
    assert resolve([3, 1], None, None).tolist() == [[3], [1]]  # type: ignore[union-attr]
    assert resolve(2, None, None).tolist() == [[2]]  # type: ignore[union-attr]
    with pytest.raises(TargetError):
        resolve([], None, None)


@pytest.mark.parametrize("vector", [["a"], [[1.0], [1.0, 2.0]], None])
def test_a_direction_that_is_no_numbers_is_told(vector: Any) -> None:
    with pytest.raises(TargetError, match="direction: got"):
        cnnviz.direction("layer", vector)


def test_a_direction_may_be_a_reversed_array() -> None:
    found = cnnviz.direction("layer", numpy.arange(3.0)[::-1])
    assert found.vector.tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("make", [lambda: channel(0, 1), lambda: neuron(nn.ReLU(), 0, 1, 2)])
def test_a_layer_is_told_by_its_name(make: Any) -> None:
    with pytest.raises(OptionError, match=r"layer: got .*, expected a layer's name"):
        make()
