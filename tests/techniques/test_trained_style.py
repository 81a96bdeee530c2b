"""A style network that is trained for minutes, on twenty photographs, paints others that it never saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import cnnviz
from cnnviz.data import open_image
from cnnviz.render import resize, to_tensor
from cnnviz.synthesis import Style, StyleLoss, style_layers, train_style

SIDE, CONTENT, WEIGHT = 128, "15", 2.0  # relu3_3
FACTOR = 1.25
"""How many times the optimised pictures' loss the network's may be; its distance from the style may not be larger."""


def opened(path: Path, longer: int) -> Tensor:
    whole = to_tensor(open_image(path))[None]
    return resize(whole, [round(side * longer / max(whole.shape[2:])) for side in whole.shape[2:]]).clamp(0, 1)


@pytest.mark.slow
def test_held_out_photographs_come_near_what_optimisation_reaches(
    vgg: cnnviz.Model, data: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(2)  # one by the folder's own fixture
    brick = opened(data / "images" / "brick.png", 256)
    made = train_style(
        vgg, data / "images" / "imagenet", tmp_path / "out", styles=brick[0], size=SIDE, style_size=256, batch=2,
        steps=500, step_size=3e-3, style_weight=WEIGHT, content_layers=(CONTENT,), width=16, blocks=4,
    )  # fmt: skip
    units = vgg.normalisation
    names = style_layers(vgg.module, units.normalise(brick))
    style = Style.of(vgg.module, names, units.normalise(brick))
    for name in ("chelsea", "coffee", "astronaut"):
        picture = opened(data / "images" / f"{name}.png", SIDE)
        loss = StyleLoss(
            vgg.module, [(1.0, style)], [(layer, 1.0) for layer in names],
            picture=units.normalise(picture), content_layers=[(CONTENT, 1.0)],
        )  # fmt: skip
        optimised = cnnviz.explain(
            vgg, units.normalise(picture), "style-transfer", styles=brick[0], style_scale=256 / SIDE, steps=80,
            style_weight=WEIGHT, content_layers=(CONTENT,),
        ).tensors()["images"]  # fmt: skip
        painted = cnnviz.explain(made.network, picture, "fast-style").tensors()["images"]
        with torch.no_grad():
            judged = [
                [float(part) for part in loss.parts(units.normalise(x))[:2]] for x in (picture, optimised, painted)
            ]
        before, best, mine = (WEIGHT * from_style + from_content for from_style, from_content in judged)
        assert mine <= FACTOR * best
        assert mine <= before / 3
        assert judged[2][0] <= judged[1][0]
