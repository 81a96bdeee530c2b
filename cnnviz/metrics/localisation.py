"""Whether an explanation lies where the object is."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hookspecs import RegisterMetric, hookimpl
from ..metric import Case, Metric
from ..options import Field, Options


class PointingGameOptions(Options):
    """Options of `pointing-game`."""

    tolerance: float = Field(
        0.0, ge=0, le=1000, description="pixels by which each side of a box is moved outwards; the paper allows 15"
    )


def pointing_game(case: Case, options: PointingGameOptions) -> Tensor:
    """Whether the map's maximum lies in a box: 1 or 0; NaN where a sample has no box.

    Of several equal maxima, the share that lies in a box. Zhang 2016, section 4.2.
    """
    maps = case.maps
    inside = _inside(case, options.tolerance)
    top = maps == maps.amax((1, 2), keepdim=True)
    hits = (top & inside).sum((1, 2)) / top.sum((1, 2))
    return hits.masked_fill(~_boxed(case).to(hits.device), torch.nan)


def box_energy(case: Case, options: Options) -> Tensor:  # noqa: ARG001  # every metric takes options
    """Share of the map's positive values that lies in the boxes; NaN where a sample has no box.

    0 for a map without positive values. The energy-based pointing game of Wang 2020 (Score-CAM), section 4.3.
    """
    energy = case.maps.relu()
    share = (energy * _inside(case, 0.0)).sum((1, 2)) / energy.sum((1, 2)).clamp(min=torch.finfo(energy.dtype).tiny)
    return share.masked_fill(~_boxed(case).to(share.device), torch.nan)


def _boxed(case: Case) -> Tensor:
    """Return which samples have a box, (N,)."""
    assert case.boxes is not None  # declared so
    return torch.tensor([len(boxes) > 0 for boxes in case.boxes], device="cpu")


def _inside(case: Case, margin: float) -> Tensor:
    """Return which pixels have their centre in a box or at most `margin` beside it, (N, H, W)."""
    assert case.boxes is not None
    height, width = case.request.inputs.shape[2:]
    device = case.request.inputs.device
    y, x = torch.arange(height, device=device)[:, None] + 0.5, torch.arange(width, device=device) + 0.5
    made = []
    for boxes in case.boxes:
        left, top, right, bottom = boxes.to(device, torch.float64).T[:, :, None, None]
        across = (x >= left - margin) & (x <= right + margin)
        down = (y >= top - margin) & (y <= bottom + margin)
        made.append((across & down).any(0))
    return torch.stack(made)


@hookimpl
def cnnviz_metrics(register: RegisterMetric) -> None:
    """Offer both."""
    register(Metric("pointing-game", pointing_game, PointingGameOptions, boxes=True))
    register(Metric("box-energy", box_energy, boxes=True))
