"""Made pictures score what they were made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cnnviz
from cnnviz.testing import SmallNet

FEW: dict[str, Any] = {"steps": 30, "size": 24, "jitter": 2}


@pytest.fixture(scope="module")
def net() -> SmallNet:
    return SmallNet().eval()


def made(net: Any, target: Any, **options: Any) -> cnnviz.Gallery:
    result = cnnviz.explain(net, None, "class-visualization", target=target, **{**FEW, **options})
    assert isinstance(result, cnnviz.Gallery)
    assert result.history is not None
    return result


def score(net: SmallNet, images: Tensor, index: int) -> Tensor:
    with torch.no_grad():
        return net(images)[:, index]


@pytest.mark.parametrize("parameterisation", ["fourier", "pixels"])
def test_score_rises(net: SmallNet, parameterisation: str) -> None:
    result = made(net, [0, 3], parameterisation=parameterisation)
    assert result.images.shape == (2, 3, 24, 24)
    assert result.rows is not None
    assert result.rows.tolist() == [0, 1]
    grey = torch.full((1, 3, 24, 24), 0.5)
    for row, index in enumerate((0, 3)):
        assert score(net, result.images[row : row + 1], index) > score(net, grey, index) + 0.5
    assert (result.history[:, -1] > result.history[:, 0]).all()


@pytest.mark.parametrize("seed", range(5))
def test_picture_is_the_class_to_the_network_it_was_made_for(seed: int) -> None:
    """From any seed the class is certain, also for the picture as it is seen by eye: in 8 bits."""
    model = cnnviz.load_model()
    wanted = (285, 340)[seed % 2]
    result = cnnviz.explain(model, None, "class-visualization", target=wanted, seed=seed, steps=48)
    assert isinstance(result, cnnviz.Gallery)
    seen = (result.images * 255).round() / 255
    assert model.preprocess is not None
    with torch.no_grad():
        sure = model.module(model.preprocess.normalise(seen)).softmax(1)[0]
    assert int(sure.argmax()) == wanted
    assert float(sure[wanted]) >= 0.99


def test_targets_inside_the_network(net: SmallNet) -> None:
    vector = torch.zeros(12)
    vector[7] = 1
    for target, again in (
        (cnnviz.channel("conv3", 7), cnnviz.direction("conv3", vector)),
        ([cnnviz.channel("conv3", 7), cnnviz.channel("conv3", 2)], cnnviz.channel("conv3", 7)),
    ):
        torch.testing.assert_close(made(net, target).images[0], made(net, again).images[0])
    unit = made(net, cnnviz.neuron("conv3", 7, 1, 2), parameterisation="pixels", jitter=0, scale=0, rotate=0)
    changed = (unit.images[0] - 0.5).abs().sum(0) > 0.2
    assert changed[:16, :16].any()
    assert not changed[:, 16:].any(), "the unit does not see the right part"


def test_starts_are_numbered_and_differ(net: SmallNet) -> None:
    result = made(net, [1, 2], starts=3)
    assert result.rows is not None
    assert result.rows.tolist() == [0, 0, 0, 1, 1, 1]
    for a in range(3):
        for b in range(a):
            assert not torch.equal(result.images[a], result.images[b])
    torch.testing.assert_close(made(net, 2, starts=3).images, result.images[3:])


def test_begins_from_an_image(net: SmallNet) -> None:
    begin = torch.rand(3, 24, 24)
    one = made(net, 1, start=begin, steps=1, step_size=1e-6, parameterisation="pixels")
    torch.testing.assert_close(one.images[0], begin, atol=1e-4, rtol=0)
    grey = made(net, 1, start="grey", steps=1, step_size=1e-6)
    torch.testing.assert_close(grey.images, torch.full_like(grey.images, 0.5), atol=1e-3, rtol=0)


def test_facets_begin_as_means_of_photographs_that_are_alike(net: SmallNet, tmp_path: Path) -> None:
    """Red and blue examples are told apart, whatever their order."""
    from PIL import Image

    for i in range(6):
        colour = (200 + 5 * i, 10, 10) if i % 2 else (10, 10, 200 + 5 * i)
        Image.new("RGB", (30, 40), colour).save(tmp_path / f"{i}.png")
    given: dict[str, Any] = {"starts": 2, "examples": tmp_path, "parameterisation": "pixels", "steps": 1}
    facets = made(net, 1, **given, step_size=1e-6).images
    colours = sorted(facets.mean((2, 3)).tolist())
    for colour, wanted in zip(colours, ([10, 10, 210], [215, 10, 10]), strict=True):
        assert colour == pytest.approx([value / 255 for value in wanted], abs=1e-3)
    with pytest.raises(cnnviz.OptionError, match="'examples': got 6 images for 7 starts"):
        made(net, 1, starts=7, examples=tmp_path)


@pytest.mark.parametrize(
    "option", [{"l2": 50.0}, {"total_variation": 50.0}, {"blur": 1.0}, {"clip_pixels": 50.0}, {"clip_gradients": 50.0}]
)
def test_regularisers_are_felt(net: SmallNet, option: dict[str, float]) -> None:
    free = made(net, 1, parameterisation="pixels")
    held = made(net, 1, parameterisation="pixels", **option)
    assert not torch.equal(free.images, held.images)
    if "l2" in option:
        assert held.images.square().mean() < free.images.square().mean()
    if "total_variation" in option or "blur" in option:
        assert held.images.diff(dim=3).abs().mean() < 0.7 * free.images.diff(dim=3).abs().mean()
    if "clip_pixels" in option or "clip_gradients" in option:
        assert float((held.images.abs().sum(1) < 1e-6).float().mean()) >= 0.5


def test_interrupted_runs_go_on(net: SmallNet, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise StoppedError

    path = str(tmp_path / "run.safetensors")
    with pytest.raises(StoppedError):
        cnnviz.explain(net, None, "class-visualization", target=[0, 1], checkpoint=path, progress=stop, **FEW)
    assert torch.equal(made(net, [0, 1], checkpoint=path).images, made(net, [0, 1]).images)
    with pytest.raises(cnnviz.SaveError, match="it differs in target"):
        made(net, [0, 2], checkpoint=path)


@pytest.mark.parametrize(
    ("target", "options", "error", "told"),
    [
        (None, {}, cnnviz.TargetError, "got none, and there are no inputs whose top class it could be"),
        (7, {}, cnnviz.TargetError, "class 7 is out of range"),
        (cnnviz.channel("conv9", 0), {}, cnnviz.LayerError, "no layer 'conv9'"),
        ([cnnviz.channel("conv2", 0), cnnviz.channel("conv3", 0)], {}, cnnviz.TargetError, "is of one layer"),
        (1, {"blur": 2.0}, cnnviz.OptionError, "give parameterisation='pixels' too"),
        (1, {"steps": 0}, cnnviz.OptionError, "'steps'.*from 1 to 100000"),
    ],
)
def test_bad_requests_are_told(net: SmallNet, target: Any, options: dict[str, Any], error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        made(net, target, **options)


def test_grey_networks_make_grey_pictures() -> None:
    grey = SmallNet(channels=1).eval()
    result = made(grey, 2)
    assert result.images.shape == (1, 3, 24, 24)
    torch.testing.assert_close(result.images[:, 0], result.images[:, 2])


def test_a_checkpoint_needs_a_target_that_is_known_again(net: SmallNet, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(cnnviz.TargetError, match=r"callable .*<lambda>; a later run cannot tell it from others"):
        made(net, lambda output: output[:, 0], checkpoint=str(path))
    assert not path.exists()
