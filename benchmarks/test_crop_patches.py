from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from cnnviz import ops

CASES = {  # images, their channels and side; the patches' side and number; channels last
    "64 of 3 x 224, 64 px, 1024 patches": (64, 3, 224, 64, 1024, False),
    "64 of 3 x 224, 64 px, 1024 patches, channels last": (64, 3, 224, 64, 1024, True),
    "8 of 3 x 512, 163 px, 256 patches": (8, 3, 512, 163, 256, False),
    "8 of 3 x 512, 163 px, 256 patches, channels last": (8, 3, 512, 163, 256, True),
    "16 of 64 x 56, 16 px, 1024 patches": (16, 64, 56, 16, 1024, False),
    "16 of 64 x 56, 16 px, 1024 patches, channels last": (16, 64, 56, 16, 1024, True),
    "16 of 256 x 28, 8 px, 1024 patches": (16, 256, 28, 8, 1024, False),
    "16 of 256 x 28, 8 px, 1024 patches, channels last": (16, 256, 28, 8, 1024, True),
}


@pytest.mark.parametrize("case", CASES)
def test_some_past_the_border(case: str, race: Any, copy: Any, device: str) -> None:
    count, channels, side, size, patches, last = CASES[case]
    layout = torch.channels_last if last else torch.contiguous_format
    images = torch.randn(count, channels, side, side, device=device).contiguous(memory_format=layout)
    index, yx = torch.randint(0, count, (patches,)), torch.randint(-size // 4, side - size * 3 // 4, (patches, 2))

    def obvious() -> Tensor:
        padded = pad(images, (size,) * 4)
        return torch.stack(
            [
                padded[n, :, y + size : y + 2 * size, x + size : x + 2 * size]
                for n, (y, x) in zip(index.tolist(), yx.tolist(), strict=True)
            ]
        )

    def ours() -> Tensor:
        return ops.crop_patches(images, index, yx, (size, size))

    assert torch.equal(ours(), obvious())
    moved = 2 * patches * channels * size * size * 4
    race(ours, {"pad, slices, stack": obvious}, work=moved, ceiling=copy(moved))
