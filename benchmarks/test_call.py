"""What a call costs when there is next to nothing to do, beside a built-in operator of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cnnviz import ops

TIMES = 200  # calls in a round, so that the clock is fine enough


def _calls(device: str) -> dict[str, tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    x = torch.randn(1, 2, 4, 4, device=device)
    leaf = x.clone().requires_grad_()
    window, one, corner = torch.tensor([[0, 0, 2, 0, 2]]), torch.tensor([0]), torch.tensor([[0, 0]])
    baseline, patch, row = torch.zeros(2, 1, 1, device=device), x[:, :, :2, :2].contiguous(), one.to(device)
    flat, flat_leaf = x.flatten(2), leaf.flatten(2).detach().requires_grad_()
    return {
        "guided_relu": ("relu", lambda: ops.guided_relu(x), lambda: torch.relu(x)),
        "guided_relu, recorded": ("relu, recorded", lambda: ops.guided_relu(leaf), lambda: torch.relu(leaf)),
        "gram_matrix": ("bmm", lambda: ops.gram_matrix(x), lambda: torch.bmm(flat, flat.mT)),
        "gram_matrix, recorded": (
            "bmm, recorded",
            lambda: ops.gram_matrix(leaf),
            lambda: torch.bmm(flat_leaf, flat_leaf.mT),
        ),
        "occlude": ("clone", lambda: ops.occlude(x, window, baseline), x.clone),
        "crop_patches": (
            "index_select",
            lambda: ops.crop_patches(x, one, corner, (2, 2)),
            lambda: x.index_select(0, row),
        ),
        "overlay_crop": (
            "index_select",
            lambda: ops.overlay_crop(x, patch, corner, corner, (3, 3)),
            lambda: x.index_select(0, row),
        ),
    }


@pytest.mark.parametrize("case", list(_calls("cpu")))
def test_on_32_numbers(case: str, race: Any, device: str) -> None:
    expression, ours, theirs = _calls(device)[case]

    def repeated(call: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(TIMES):
                call()

        return run

    race.benchmark.extra_info["calls"] = TIMES
    race(repeated(ours), {expression: repeated(theirs)})
