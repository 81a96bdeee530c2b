"""Windows covered by something else than a baseline: by what the slow twins put there, in both ways."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cnnviz
from cnnviz_techniques.attribution import covers
from tests.reference import covers as slow
from tests.reference.occlusion import Box, occlusion
from tests.techniques.networks import images, network


def mirrored(image: Tensor, boxes: Tensor) -> Tensor:
    """A user's own: what is there, from right to left."""
    return torch.stack([image[0, :, top:bottom, left:right].flip(2) for top, bottom, left, right in boxes.tolist()])


def slowly_mirrored(image: Tensor, box: Box) -> Tensor:
    made = image.clone()
    for y in range(*box[:2]):
        for x in range(*box[2:]):
            made[:, y, x] = image[:, y, box[2] + box[3] - 1 - x]
    return made


WINDOW, STRIDE, SEED = (12, 9), (16, 17), 5
TWINS: dict[str, tuple[Any, Callable[[Tensor, Box], Tensor]]] = {
    "blur": ("blur", lambda image, box: slow.blurred(image, WINDOW)),
    "noise": ("noise", lambda image, box: slow.noise(image, SEED)),
    "inpaint": ("inpaint", slow.inpainted),
    "own": (mirrored, slowly_mirrored),
}


@pytest.mark.parametrize("method", ["dense", "incremental"])
@pytest.mark.parametrize("name", TWINS)
def test_the_map_is_the_slow_twins(name: str, method: str) -> None:
    baseline, twin = TWINS[name]
    net, x = network("squeezenet1_1", torch.float64), images(torch.float64, count=2)[..., :28, :28].contiguous()
    targets = [3, 7]
    made = cnnviz.explain(
        net,
        x,
        "occlusion",
        target=targets,
        window=WINDOW,
        stride=STRIDE,
        baseline=baseline,
        seed=SEED,
        method=method,
    ).values

    @torch.no_grad()
    def score(image: Tensor, n: int) -> Tensor:
        return net(image)[0, targets[n]]

    expected = occlusion(score, x, WINDOW, STRIDE, twin)
    assert float((made - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("name", TWINS)
def test_channels_last(name: str) -> None:
    net = network("resnet18", torch.float64)
    x = images(torch.float64, count=2).contiguous(memory_format=torch.channels_last)
    given = {"window": 16, "stride": 20, "target": [3, 7], "baseline": TWINS[name][0]}
    dense, incremental, plain = (
        cnnviz.explain(net, picture, "occlusion", method=method, **given).values
        for method, picture in (("dense", x), ("incremental", x), ("dense", x.contiguous()))
    )
    for one in (incremental, plain):
        assert float((one - dense).abs().max()) <= 1e-9 * float(dense.abs().max())


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    box=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    corners=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5),
)
def test_inpainting_solves_laplaces_equation(
    size: tuple[int, int], box: tuple[int, int], corners: list[tuple[float, float]]
) -> None:
    """Boxes anywhere, in corners and as wide as the image too."""
    image = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    height, width = min(box[0], size[0]), min(box[1], size[1])
    boxes = []
    for down, across in corners:
        top, left = round(down * (size[0] - height)), round(across * (size[1] - width))
        boxes.append((top, top + height, left, left + width))
    made = covers.inpainted(image, torch.tensor(boxes))
    for patch, (top, bottom, left, right) in zip(made, boxes, strict=True):
        expected = slow.inpainted(image[0], (top, bottom, left, right))[:, top:bottom, left:right]
        torch.testing.assert_close(patch, expected, rtol=0, atol=1e-10)


def test_noise_follows_the_seed_and_is_one_for_all_samples() -> None:
    net, x = network("squeezenet1_1", torch.float64), images(torch.float64, count=1)
    given = {"window": 16, "stride": 16, "target": 3, "baseline": "noise"}
    first, again, other = (cnnviz.explain(net, x, "occlusion", seed=seed, **given).values for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 1e-3 * float(first.abs().max())
    twice = cnnviz.explain(net, torch.cat([x, x]), "occlusion", seed=1, **given).values
    assert torch.equal(twice[0], twice[1])


@pytest.mark.parametrize("method", ["dense", "incremental"])
def test_a_function_may_change_what_it_is_given(method: str) -> None:
    def darkened(image: Tensor, boxes: Tensor) -> Tensor:
        top, bottom, left, right = boxes[0].tolist()
        patches = [image[0, :, a:b, c:d].clone() * 0.5 for a, b, c, d in boxes.tolist()]
        image.zero_()
        boxes.zero_()
        return torch.stack(patches).reshape(-1, 3, bottom - top, right - left)

    net, x = network("squeezenet1_1", torch.float64), images(torch.float64, count=1)
    before = x.clone()
    given = {"window": 16, "stride": 12, "target": 3, "method": method}
    made = cnnviz.explain(net, x, "occlusion", baseline=darkened, **given).values
    assert torch.equal(x, before)
    half = cnnviz.explain(net, x, "occlusion", baseline=0.5 * x[0], **given).values
    assert float((made - half).abs().max()) <= 1e-9 * float(half.abs().max())


@pytest.mark.parametrize("method", ["dense", "incremental", "auto"])
@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (
            lambda image, boxes: image,
            r"returned \(1, 3, 64, 64\) torch.float32 on cpu, expected patches \(\d+, 3, 16, 16\)",
        ),
        (
            lambda image, boxes: mirrored(image, boxes).double(),
            r"torch.float64 on cpu, expected .* torch.float32 on cpu",
        ),
        (lambda image, boxes: None, r"returned a NoneType, expected patches .* for the \d+ boxes"),
    ],
)
def test_patches_that_do_not_fit_are_refused(returned: Any, told: str, method: str) -> None:
    with pytest.raises(cnnviz.OptionError, match=told):
        cnnviz.explain(
            network("squeezenet1_1", torch.float32),
            images(torch.float32, count=1)[..., :64, :64],
            "occlusion",
            window=16,
            stride=12,
            target=3,
            baseline=returned,
            method=method,
        )


@pytest.mark.parametrize("method", ["dense", "incremental", "auto"])
def test_an_error_of_the_function_is_told_as_it_is(method: str) -> None:
    def failing(image: Tensor, boxes: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    net = network("squeezenet1_1", torch.float32)
    with pytest.raises(ZeroDivisionError, match="mine"):
        cnnviz.explain(net, images(torch.float32, count=1), "occlusion", baseline=failing, method=method, target=3)


def test_provenance_names_the_function() -> None:
    net, x = network("squeezenet1_1", torch.float32), images(torch.float32, count=1)
    given = {"window": 32, "stride": 32, "target": 3}
    for baseline, told in (
        (mirrored, "tests.techniques.test_covers.mirrored"),
        (functools.partial(mirrored), "functools.partial"),
        ("blur", "blur"),
        (0.5, 0.5),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
    ):
        made = cnnviz.explain(net, x, "occlusion", baseline=baseline, **given)
        assert made.provenance.options["baseline"] == told
        json.dumps(made.provenance.options)
    picture = cnnviz.explain(net, x, "occlusion", baseline=x[0], **given)
    assert str(picture.provenance.options["baseline"]).startswith("ImageOption(")


def test_what_is_neither_a_name_nor_an_image_says_what_is_expected() -> None:
    with pytest.raises(cnnviz.OptionError, match=r"expected one of 'blur', 'noise', 'inpaint', or a number"):
        cnnviz.explain(
            network("squeezenet1_1", torch.float32),
            images(torch.float32, count=1),
            "occlusion",
            baseline="blurr",
            target=3,
        )
