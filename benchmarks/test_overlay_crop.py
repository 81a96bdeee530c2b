from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from cnnviz import ops

CASES = {  # the base's channels and side; the crops' side, the patches'; their number; channels last
    "3 x 224, 64 in 70 px, 1024 crops": (3, 224, 70, 64, 1024, False),
    "64 x 56, 16 in 22 px, 512 crops": (64, 56, 22, 16, 512, False),
    "256 x 28, 8 in 12 px, 512 crops": (256, 28, 12, 8, 512, False),
    "512 x 14, 7 in 9 px, 512 crops": (512, 14, 9, 7, 512, False),
    "3 x 224, 64 in 70 px, 1024 crops, channels last": (3, 224, 70, 64, 1024, True),
    "64 x 56, 16 in 22 px, 512 crops, channels last": (64, 56, 22, 16, 512, True),
    "256 x 28, 8 in 12 px, 512 crops, channels last": (256, 28, 12, 8, 512, True),
    "512 x 14, 7 in 9 px, 512 crops, channels last": (512, 14, 9, 7, 512, True),
}


@pytest.mark.parametrize("case", CASES)
def test_each_patch_in_the_middle_of_its_crop(case: str, race: Any, copy: Any, device: str) -> None:
    channels, side, size, inner, count, last = CASES[case]
    layout = torch.channels_last if last else torch.contiguous_format
    base = torch.randn(1, channels, side, side, device=device).contiguous(memory_format=layout)
    patch = torch.randn(count, channels, inner, inner, device=device).contiguous(memory_format=layout)
    rim = (size - inner) // 2
    patch_yx = torch.randint(0, side - inner + 1, (count, 2))
    crop_yx = patch_yx - rim

    def obvious() -> Tensor:
        padded = pad(base, (rim,) * 4)[0]
        made = torch.stack([padded[:, y + rim : y + rim + size, x + rim : x + rim + size] for y, x in crop_yx.tolist()])
        made[:, :, rim : rim + inner, rim : rim + inner] = patch
        return made

    def ours() -> Tensor:
        return ops.overlay_crop(base, patch, patch_yx, crop_yx, (size, size))

    assert torch.equal(ours(), obvious())
    moved = 2 * count * channels * size * size * 4
    race(ours, {"pad, slices, stack, paste": obvious}, work=moved, ceiling=copy(moved))
