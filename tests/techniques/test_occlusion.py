from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import cnnviz
from tests.reference.occlusion import occlusion
from tests.techniques.measure import assert_same_map
from tests.techniques.networks import images, network


class Sum(nn.Module):
    """One score: the sum of all pixels, so that a window's drop is the sum of what it covers less the baseline's."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True)


class Halves(nn.Module):
    """Two classes: the sums of the left and of the right half."""

    def forward(self, x: Tensor) -> Tensor:
        middle = x.shape[3] // 2
        return torch.stack([x[..., :middle].flatten(1).sum(1), x[..., middle:].flatten(1).sum(1)], dim=1)


def grey(*rows: list[float]) -> Tensor:
    return torch.tensor([[rows]], dtype=torch.float64)


def explained(x: Tensor, model: Any = None, **arguments: Any) -> Tensor:
    return cnnviz.explain(model or Sum(), x, "occlusion", **arguments).values


def test_a_pixel_is_the_mean_over_the_windows_that_cover_it() -> None:
    got = explained(grey([1, 2, 3], [4, 5, 6]), window=(1, 2), stride=1)
    torch.testing.assert_close(got, grey([3, 4, 5], [9, 10, 11]))  # windows drop 3 and 5, 9 and 11


def test_window_and_stride_are_height_then_width() -> None:
    x = grey([1, 2, 3, 4], [5, 6, 7, 8])
    torch.testing.assert_close(explained(x, window=(2, 1), stride=(1, 2)), grey([6, 0, 10, 0], [6, 0, 10, 0]))
    torch.testing.assert_close(explained(x, window=(1, 4), stride=(1, 4)), grey([10] * 4, [26] * 4))


def test_last_window_is_clipped_at_the_border() -> None:
    torch.testing.assert_close(explained(grey([1, 2, 3, 4, 5]), window=(1, 2), stride=2), grey([3, 3, 7, 7, 5]))


@pytest.mark.parametrize(
    ("window", "stride", "expected"),
    [
        (2, 3, [3, 3, 0, 9, 9, 0, 7]),  # windows at 0, 3 and, clipped, at 6
        (1, 4, [1, 0, 0, 0, 5, 0, 0]),  # the last window starts beyond the border and covers nothing
        (3, 100, [6, 6, 6, 0, 0, 0, 0]),
    ],
)
def test_a_stride_larger_than_the_window_leaves_zeros(window: int, stride: int, expected: list[float]) -> None:
    got = explained(grey([1, 2, 3, 4, 5, 6, 7]), window=(1, window), stride=(1, stride))
    torch.testing.assert_close(got, grey(expected))


def test_a_window_as_large_as_the_image_covers_it_once() -> None:
    assert torch.equal(explained(grey([1, 2], [3, 4]), window=2, stride=1), grey([10, 10], [10, 10]))


@pytest.mark.parametrize("window", [(3, 2), (2, 4), 5])
def test_a_window_larger_than_the_image_is_refused(window: Any) -> None:
    with pytest.raises(cnnviz.OptionError, match=r"'window'.*\(2, 3\)"):
        explained(grey([1, 2, 3], [4, 5, 6]), window=window)


def test_default_window_is_32_and_stride_8() -> None:
    x = torch.randn(1, 1, 40, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(explained(x), explained(x, window=(32, 32), stride=(8, 8), baseline=0.0, method="auto"))


@pytest.mark.parametrize(
    "option", [{"window": 0}, {"stride": 0}, {"window": (1, 2, 3)}, {"stride": "x"}, {"method": "fast"}]
)
def test_a_wrong_option_is_named(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(cnnviz.OptionError, match=f"'{name}'"):
        explained(grey([1, 2]), **option)


COLOURS = torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]]], dtype=torch.float64)[None]  # two channels, one row, two columns


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (0.5, [10, 21]),
        (2, [7, 18]),
        ((0.5, 4.0), [6.5, 17.5]),
        ([0.5, 4.0], [6.5, 17.5]),
        ("0.5", [10, 21]),
        ("0.5,4", [6.5, 17.5]),
        (torch.tensor([[[1.0, 1.0]], [[0.0, 30.0]]]), [10, -9]),
        (torch.tensor([[[[1.0, 1.0]], [[0.0, 30.0]]]]), [10, -9]),
        (cnnviz.ImageOption(torch.tensor([[[1.0, 1.0]], [[0.0, 30.0]]])), [10, -9]),
    ],
    ids=["number", "whole number", "tuple", "list", "text", "texts", "tensor", "batch of one", "ImageOption"],
)
def test_baseline_is_a_number_one_for_each_channel_or_an_image(baseline: Any, expected: list[float]) -> None:
    torch.testing.assert_close(explained(COLOURS, window=1, stride=1, baseline=baseline), grey(expected))


def test_baseline_with_too_few_or_too_many_numbers_is_refused() -> None:
    with pytest.raises(cnnviz.OptionError, match=r"'baseline'.*3 numbers.*2 channels"):
        explained(COLOURS, window=1, stride=1, baseline=(1.0, 2.0, 3.0))


@pytest.mark.parametrize("shape", [(2, 1, 3), (1, 1, 2)], ids=["size", "channels"])
def test_baseline_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(cnnviz.InputError):
        explained(COLOURS, window=1, stride=1, baseline=torch.zeros(shape))


@pytest.fixture
def seen() -> cnnviz.Model:
    """A model whose pictures are cropped to 4 x 4 and normalised."""
    preprocess = cnnviz.Preprocess(resize=4, crop=(4, 4), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    return cnnviz.load_model(Sum(), preprocess=preprocess)


WHITE, BLUE = (1.0, 3.0, 1.0), (-1.0, -1.0, 1.0)  # as the network sees them


@pytest.mark.parametrize("as_path", [False, True])
def test_baseline_picture_is_prepared_like_the_input(seen: cnnviz.Model, as_path: bool, tmp_path: Any) -> None:
    white, blue = Image.new("RGB", (9, 6), "white"), Image.new("RGB", (5, 5), "blue")
    blue.save(tmp_path / "blue.png")
    baseline = tmp_path / "blue.png" if as_path else blue
    got = explained(white, seen, window=2, stride=2, baseline=baseline)
    torch.testing.assert_close(got, torch.full((1, 1, 4, 4), 4 * (sum(WHITE) - sum(BLUE))))
    numbers = explained(white, seen, window=2, stride=2, baseline=BLUE)
    torch.testing.assert_close(numbers, got)


def test_baseline_picture_needs_a_preprocessing() -> None:
    with pytest.raises(cnnviz.InputError, match="preprocess"):
        explained(torch.zeros(1, 3, 4, 4), window=2, baseline=Image.new("RGB", (4, 4)))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0, [1, 2, 0, 0]),
        (1, [0, 0, 3, 4]),
        (lambda output: output[:, 1] - output[:, 0], [-1, -2, 3, 4]),
        (None, [0, 0, 3, 4]),
    ],
    ids=["left", "right", "callable", "top class"],
)
def test_drop_is_that_of_the_target(target: Any, expected: list[float]) -> None:
    got = cnnviz.explain(Halves(), grey([1, 2, 3, 4]), "occlusion", target=target, window=1, stride=1)
    torch.testing.assert_close(got.values, grey(expected))


def test_top_class_is_that_of_the_uncovered_image() -> None:
    x = grey([3, 0, 2, 0])  # with its first pixel covered, the right half wins
    got = cnnviz.explain(Halves(), x, "occlusion", window=1, stride=1)
    torch.testing.assert_close(got.values, grey([3, 0, 0, 0]))
    assert got.target.tolist() == [0]
    assert got.scores.tolist() == [3.0]


def test_each_sample_has_its_own_target() -> None:
    x = torch.cat([grey([1, 2, 3, 4]), grey([5, 6, 7, 8])])
    got = explained(x, Halves(), target=[1, 0], window=1, stride=1)
    torch.testing.assert_close(got, torch.cat([grey([0, 0, 3, 4]), grey([5, 6, 0, 0])]))


def test_a_neuron_drops_only_under_its_receptive_field() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, (1, 3), bias=False), nn.ReLU()).double()
    net[0].weight.data = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    got = explained(grey([1, 2, 3, 4, 5]), net, target=cnnviz.neuron("0", 0, 0, 1), window=1, stride=1)
    torch.testing.assert_close(got, grey([0, 2, 30, 400, 0]))


@settings(max_examples=40)
@given(data=st.data())
def test_any_sizes_equal_twin(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 9), "height"), data.draw(st.integers(1, 9), "width")
    window = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    stride = data.draw(st.integers(1, 11)), data.draw(st.integers(1, 11))
    count, channels = data.draw(st.integers(1, 3), "count"), data.draw(st.integers(1, 3), "channels")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000), "seed"))
    head = nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(16, 3)
    net = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh(), *head)
    for parameter in net.double().parameters():
        parameter.data.normal_(generator=generator)
    x = torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)
    cover = torch.randn(channels, height, width, generator=generator, dtype=torch.float64)
    method = data.draw(st.sampled_from(["auto", "dense"]), "method")
    got = explained(x, net, target=2, window=window, stride=stride, baseline=cover, method=method)
    with torch.no_grad():
        expected = occlusion(lambda image, n: net(image)[0, 2], x, window, stride, cover)
    assert_same_map(got, expected)


@pytest.mark.parametrize("method", ["auto", "dense"])
def test_batch_equals_singles(method: str) -> None:
    net, x = network("squeezenet1_1", torch.float64), images(torch.float64, count=3, size=(40, 32))
    options = {"window": 12, "stride": 10, "baseline": 0.2, "method": method}
    batch = explained(x, net, target=[1, 5, 9], **options)
    singles = [explained(x[i : i + 1], net, target=t, **options) for i, t in enumerate([1, 5, 9])]
    assert_same_map(batch, torch.cat(singles))


def test_budget_changes_batches_but_not_the_map() -> None:
    net, x = network("squeezenet1_1", torch.float64), images(torch.float64, size=(40, 32))
    options = {"target": 1, "window": 12, "stride": 10}
    small, large = (cnnviz.explain(net, x, "occlusion", memory=memory, **options) for memory in ("4MiB", "2GiB"))
    assert max(small.provenance.batch_sizes) < max(large.provenance.batch_sizes)
    assert_same_map(small.values, large.values)


def test_inputs_are_left_alone() -> None:
    x = grey([1, 2, 3], [4, 5, 6])
    explained(x, window=1, stride=1)
    assert torch.equal(x, grey([1, 2, 3], [4, 5, 6]))


def test_maps_have_the_inputs_type() -> None:
    assert explained(grey([1, 2, 3]).float(), window=1).dtype == torch.float32


class Logarithm(nn.Module):
    """The logarithm of the pixels' sum."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True).log()


@pytest.mark.parametrize("method", ["auto", "dense", "incremental"])
@pytest.mark.parametrize("tolerance", [None, 0.1])
@pytest.mark.parametrize(("rest", "score"), [(0.0, "-inf"), (-0.01, "nan")])
def test_a_covered_image_without_a_score_is_refused(
    method: str, tolerance: float | None, rest: float, score: str
) -> None:
    x = torch.full((1, 1, 8, 8), rest)
    x[..., :2, :2] = 1  # without these the sum is not above zero
    with pytest.raises(cnnviz.InputError, match=rf"score of made input \d+ is {score}; look for"):
        explained(x, Logarithm(), window=2, stride=2, method=method, tolerance=tolerance)
