from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cnnviz import ops

CASES = {
    "float32 2 windows": (torch.float32, 2, False),
    "float32 32 windows": (torch.float32, 32, False),
    "float32 128 windows": (torch.float32, 128, False),
    "float32 128 windows channels last": (torch.float32, 128, True),
    "bfloat16 256 windows": (torch.bfloat16, 256, False),
    "float32 400 windows channels last": (torch.float32, 400, True),
}


@pytest.mark.parametrize("case", CASES)
def test_windows_of_32_pixels_on_224(case: str, race: Any, copy: Any, device: str) -> None:
    dtype, count, last = CASES[case]
    layout = torch.channels_last if last else torch.contiguous_format
    image = torch.randn(1, 3, 224, 224, device=device).to(dtype).contiguous(memory_format=layout)
    corner = torch.randint(0, 193, (count, 2))
    windows = torch.stack(
        [torch.zeros(count).long(), corner[:, 0], corner[:, 0] + 32, corner[:, 1], corner[:, 1] + 32], 1
    )
    baseline = torch.zeros(3, 1, 1, dtype=dtype, device=device)

    def obvious() -> Tensor:
        made = image.expand(count, -1, -1, -1).contiguous(memory_format=layout)
        for k, (_, top, bottom, left, right) in enumerate(windows.tolist()):
            made[k, :, top:bottom, left:right] = baseline
        return made

    def ours() -> Tensor:
        return ops.occlude(image, windows, baseline, channels_last=last)

    assert torch.equal(ours(), obvious())
    moved = 2 * count * image.numel() * image.element_size()
    race(ours, {"expand, contiguous, a slice per window": obvious}, work=moved, ceiling=copy(moved))
