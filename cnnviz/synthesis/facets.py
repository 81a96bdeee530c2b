"""The different sides of one class: photographs that a network finds alike, put together."""

from __future__ import annotations

import torch
from torch import Tensor

_STARTS = 8
_ROUNDS = 50


def clusters(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return which of `count` clusters each point belongs to, by k-means: (M, C) -> (M,).

    The best of several starts, each as Arthur & Vassilvitskii 2007 make them: with points drawn by their squared
    distance from those drawn before. No cluster is empty.
    """
    found = [_from_a_start(points, count, generator) for _ in range(_STARTS)]
    return min(found, key=lambda one: one[0])[1]


def _from_a_start(points: Tensor, count: int, generator: torch.Generator) -> tuple[float, Tensor]:
    """Return the sum of squared distances from the centres, and the clusters."""
    centres = points[torch.randint(len(points), (1,), generator=generator, device="cpu")]
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
    return float((points - centres[belongs]).square().sum()), belongs
