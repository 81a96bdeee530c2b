"""Texture synthesis in plain loops: Efros & Leung 1999, section 2; Wei & Levoy 2000, sections 3 and 5.1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

Place = tuple[int, int]


def efros_leung(
    sample: Tensor, size: Place, *, window: int, tolerance: float, seed_patch: int, generator: torch.Generator
) -> Tensor:
    """Grow a patch of (C, H, W), layer by layer: what has most known neighbours comes first."""
    _, height, width = sample.shape
    rows, columns = min(seed_patch, height, size[0]), min(seed_patch, width, size[1])
    draw = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    top, left = int(draw[0] * (height - rows + 1)), int(draw[1] * (width - columns + 1))
    texture: dict[Place, Tensor] = {}
    for y in range(rows):
        for x in range(columns):
            at = (size[0] - rows) // 2 + y, (size[1] - columns) // 2 + x
            texture[at] = sample[:, top + y, left + x]
    order = _layers(set(texture), size, generator)
    draws = torch.rand(len(order), generator=generator, dtype=torch.float64).tolist()
    radius = window // 2
    square = _square(radius)
    candidates = [(v, u) for v in range(radius, height - radius) for u in range(radius, width - radius)]
    for (y, x), number in zip(order, draws, strict=True):
        known = [(down, across) for down, across in square if (y + down, x + across) in texture]
        distances = []
        for v, u in candidates:
            distance = 0.0
            for down, across in known:
                weight = math.exp(-(down**2 + across**2) / (2 * (window / 6.4) ** 2))
                distance += weight * _apart(texture[y + down, x + across], sample[:, v + down, u + across])
            distances.append(distance)
        near = [
            c for c, distance in zip(candidates, distances, strict=True) if distance <= (1 + tolerance) * min(distances)
        ]
        v, u = near[int(number * len(near))]
        texture[y, x] = sample[:, v, u]
    return _picture(texture, size)


def _layers(known: set[Place], size: Place, generator: torch.Generator) -> list[Place]:
    order: list[Place] = []
    while len(known) < size[0] * size[1]:
        counts = {}
        for y in range(size[0]):
            for x in range(size[1]):
                beside = sum((y + down, x + across) in known for down, across in _square(1))
                if (y, x) not in known and beside > 0:
                    counts[y, x] = beside
        places = list(counts)
        shuffled = [places[i] for i in torch.randperm(len(places), generator=generator).tolist()]
        layer = sorted(shuffled, key=lambda place: -counts[place])
        order += layer
        known |= set(layer)
    return order


def wei_levoy(
    sample: Tensor, size: Place, *, window: int, levels: int, passes: int, generator: torch.Generator
) -> Tensor:
    """Turn noise into a texture row by row, on a torus, from coarse to fine; all sides are even on all but the last."""
    samples = [sample]
    while len(samples) < levels:
        samples.append(_reduced(samples[-1]))
    radius, made = window // 2, None
    before = [(down, across) for down, across in _square(radius) if down < 0 or (down == 0 and across < 0)]
    for level in reversed(range(levels)):
        theirs = samples[level]
        _, height, width = theirs.shape
        rows, columns = size[0] // 2**level, size[1] // 2**level
        noise = torch.randint(height * width, (rows, columns), generator=generator).tolist()
        texture = {
            (y, x): theirs[:, noise[y][x] // width, noise[y][x] % width] for y in range(rows) for x in range(columns)
        }
        for number in range(passes):
            around = _square(radius) if number else before
            for y, x in itertools.product(range(rows), range(columns)):
                distances = {}
                for v, u in itertools.product(range(height), range(width)):
                    if not all(0 <= v + a < height and 0 <= u + b < width for a, b in around):
                        continue
                    distance = 0.0
                    for a, b in around:
                        here = texture[(y + a) % rows, (x + b) % columns]
                        distance += _apart(here, theirs[:, v + a, u + b])
                    if made is not None:
                        halves = (y // 2, x // 2), (v // 2, u // 2)
                        distance += _coarser(made, samples[level + 1], *halves, radius // 2)
                    distances[v, u] = distance
                v, u = min(distances, key=distances.__getitem__)
                texture[y, x] = theirs[:, v, u]
        made = _picture(texture, (rows, columns))
    assert made is not None
    return made


def _coarser(made: Tensor, sample: Tensor, here: Place, there: Place, radius: int) -> float:
    """Return how far squares of the coarser level are apart, infinitely where the sample's is not whole."""
    distance = 0.0
    for a, b in [(0, 0), *_square(radius)]:
        v, u = there[0] + a, there[1] + b
        if not (0 <= v < sample.shape[1] and 0 <= u < sample.shape[2]):
            return math.inf
        distance += _apart(made[:, (here[0] + a) % made.shape[1], (here[1] + b) % made.shape[2]], sample[:, v, u])
    return distance


def _reduced(maps: Tensor) -> Tensor:
    """Blur with (1, 4, 6, 4, 1) / 16 down and across, the border repeated, and take every second pixel."""
    _, height, width = maps.shape
    kernel = {-2: 1 / 16, -1: 4 / 16, 0: 6 / 16, 1: 4 / 16, 2: 1 / 16}
    made = maps.new_zeros(maps.shape[0], -(-height // 2), -(-width // 2))
    for y in range(made.shape[1]):
        for x in range(made.shape[2]):
            for a, down in kernel.items():
                for b, across in kernel.items():
                    v, u = min(max(2 * y + a, 0), height - 1), min(max(2 * x + b, 0), width - 1)
                    made[:, y, x] += down * across * maps[:, v, u]
    return made


def _square(radius: int) -> list[Place]:
    side = range(-radius, radius + 1)
    return [(down, across) for down in side for across in side if (down, across) != (0, 0)]


def _apart(a: Iterable[float], b: Iterable[float]) -> float:
    return sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))


def _picture(texture: dict[Place, Tensor], size: Place) -> Tensor:
    return torch.stack([torch.stack([texture[y, x] for x in range(size[1])], 1) for y in range(size[0])], 1)
