"""The different sides of one class: photographs that a network finds alike, put together."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 50


def clusters(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return which of `count` clusters each point belongs to, by k-means: (M, C) -> (M,).

    Begins as Arthur & Vassilvitskii 2007 do, with points drawn by their squared distance from those drawn before. No
    cluster is empty.
    """
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centres) < count:
        apart = torch.cdist(points, centres).amin(1).square().double().cpu()
        # Points that coincide with a centre are drawn only where all do.
        drawn = torch.multinomial(apart + 1e-12 * (apart.sum() + 1), 1, generator=generator)
        centres = torch.cat([centres, points[drawn.to(points.device)]])
    belongs = torch.full((len(points),), -1, device=points.device)
    for _ in range(_ROUNDS):
        apart = torch.cdist(points, centres)
        nearest = apart.argmin(1)
        for cluster in range(count):
            if not bool((nearest == cluster).any()):  # it takes over what is furthest from its own centre
                worst = apart.gather(1, nearest[:, None])[:, 0].clone()
                worst[torch.bincount(nearest, minlength=count)[nearest] == 1] = -1
                nearest[worst.argmax()] = cluster
        if torch.equal(nearest, belongs):
            break
        belongs = nearest
        centres = torch.stack([points[belongs == cluster].mean(0) for cluster in range(count)])
    return belongs
