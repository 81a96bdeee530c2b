"""Where boxes on a photograph lie in what the network sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from cnnviz import Preprocess


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (64, 64), (97, 211)])
@pytest.mark.parametrize(
    "how",
    [
        {"resize": 256, "crop": (224, 224)},
        {"resize": (120, 80)},
        {"crop": (51, 40)},
        {"resize": 40, "crop": (64, 64)},  # padded
        {},
    ],
    ids=str,
)
def test_a_drawn_box_is_found_where_it_is_said_to_be(size: tuple[int, int], how: dict[str, Any]) -> None:
    height, width = size
    box = [width * 0.35, height * 0.4, width * 0.7, height * 0.65]
    box = [float(round(edge)) for edge in box]
    image = Image.new("RGB", (width, height))
    ImageDraw.Draw(image).rectangle([box[0], box[1], box[2] - 1, box[3] - 1], fill="white")
    preprocess = Preprocess(**how)
    seen = preprocess(image)[0]
    (moved,) = preprocess.boxes(torch.tensor([box]), size)
    rows, columns = (seen > 0.5).any(1).nonzero()[:, 0], (seen > 0.5).any(0).nonzero()[:, 0]
    found = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert (moved - found).abs().max() <= 1.0, f"{moved.tolist()} is said, {found.tolist()} is seen"


def test_boxes_outside_of_the_crop_are_left_out_and_others_clipped() -> None:
    preprocess = Preprocess(crop=(10, 10))
    boxes = torch.tensor([[0.0, 0.0, 4.0, 30.0], [0.0, 0.0, 12.0, 12.0], [18.0, 2.0, 30.0, 30.0]])
    assert preprocess.boxes(boxes, (30, 30)).tolist() == [[0.0, 0.0, 2.0, 2.0], [8.0, 0.0, 10.0, 10.0]]
    assert preprocess.boxes(boxes[:0], (30, 30)).shape == (0, 4)
