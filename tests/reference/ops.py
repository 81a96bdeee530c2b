"""The operators, spelled out in plain loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gram_matrix(x: Tensor, *, normalise: bool = True) -> Tensor:
    """Sum the products of every pair of channels, pixel by pixel."""
    count, channels, height, width = x.shape
    made = x.new_zeros(count, channels, channels)
    for n in range(count):
        for i in range(channels):
            for j in range(channels):
                total = (x[n, i] * x[n, j]).sum()
                made[n, i, j] = total / (channels * height * width) if normalise else total
    return made


def guided_relu_gradient(x: Tensor, grad: Tensor, rule: str) -> Tensor:
    """Decide for each element by itself what goes on."""
    made = torch.zeros(grad.shape, dtype=grad.dtype)
    for place in range(x.numel()):
        value, g = float(x.reshape(-1)[place]), float(grad.reshape(-1)[place])
        passes = {"plain": value > 0, "deconvnet": g > 0, "guided": value > 0 and g > 0}[rule]
        made.view(-1)[place] = g if passes else 0.0
    return made.to(grad.device)


def max_pool(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    """Look at each element of each window in turn; return the maxima, and (N, C, h, w, 2) rows and columns of these."""
    count, channels, height, width = x.shape
    room = [n + 2 * p - d * (k - 1) - 1 for n, k, p, d in zip((height, width), kernel, padding, dilation, strict=True)]
    size = [r // s + 1 for r, s in zip(room, stride, strict=True)]
    for axis in range(2):  # one more, unless all of it lies past the end
        begin = size[axis] * stride[axis] - padding[axis]
        size[axis] += ceil_mode and room[axis] % stride[axis] > 0 and begin < x.shape[2 + axis]
    made, places = x.new_zeros(count, channels, *size), torch.zeros(count, channels, *size, 2, dtype=torch.long)
    for n in range(count):
        for c in range(channels):
            for i in range(size[0]):
                for j in range(size[1]):
                    best: tuple[float, int, int] | None = None
                    for a in range(kernel[0]):
                        for b in range(kernel[1]):
                            row = i * stride[0] - padding[0] + a * dilation[0]
                            column = j * stride[1] - padding[1] + b * dilation[1]
                            if not (0 <= row < height and 0 <= column < width):
                                continue
                            value = float(x[n, c, row, column])
                            if best is None or value > best[0] or math.isnan(value):
                                best = value, row, column
                    assert best is not None
                    made[n, c, i, j] = best[0]
                    places[n, c, i, j] = torch.tensor(best[1:])
    return made, places


def occlude(images: Tensor, windows: Tensor, baseline: Tensor) -> Tensor:
    """Copy an image and overwrite its window, one after the other."""
    made = []
    for row, top, bottom, left, right in windows.tolist():
        image = images[row].clone()
        for c in range(image.shape[0]):
            for y in range(top, bottom):
                for x in range(left, right):
                    image[c, y, x] = baseline.expand(image.shape)[c, y, x]
        made.append(image)
    return torch.stack(made) if made else images[:0]


def crop_patches(images: Tensor, index: Tensor, yx: Tensor, size: tuple[int, int], *, pad: float = 0.0) -> Tensor:
    """Read pixel by pixel, or the padding."""
    _, channels, height, width = images.shape
    rows = []
    for n, (top, left) in zip(index.tolist(), yx.tolist(), strict=True):
        patch = images.new_full((channels, *size), pad)
        for y in range(size[0]):
            for x in range(size[1]):
                if 0 <= top + y < height and 0 <= left + x < width:
                    patch[:, y, x] = images[n, :, top + y, left + x]
        rows.append(patch)
    return torch.stack(rows) if rows else images.new_zeros(0, channels, *size)


def crop_patches_gradient(images: Tensor, index: Tensor, yx: Tensor, grad: Tensor) -> Tensor:
    """Add pixel by pixel, patch after patch."""
    made = torch.zeros_like(images)
    _, _, height, width = images.shape
    for k, (n, (top, left)) in enumerate(zip(index.tolist(), yx.tolist(), strict=True)):
        for y in range(grad.shape[2]):
            for x in range(grad.shape[3]):
                if 0 <= top + y < height and 0 <= left + x < width:
                    made[n, :, top + y, left + x] += grad[k, :, y, x]
    return made


def overlay_crop(
    base: Tensor, patch: Tensor, patch_yx: Tensor, crop_yx: Tensor, size: tuple[int, int], *, pad: float = 0.0
) -> Tensor:
    """Paste each patch into a whole map, then crop that."""
    rows = []
    _, _, height, width = base.shape
    for k in range(len(patch)):
        whole = base[0].clone()
        top, left = patch_yx[k].tolist()
        for y in range(patch.shape[2]):
            for x in range(patch.shape[3]):
                if 0 <= top + y < height and 0 <= left + x < width:
                    whole[:, top + y, left + x] = patch[k, :, y, x]
        rows.append(crop_patches(whole[None], torch.zeros(1, dtype=torch.long), crop_yx[k : k + 1], size, pad=pad)[0])
    return torch.stack(rows) if rows else base.new_zeros(0, base.shape[1], *size)


def changed_spans(base: Tensor, patch: Tensor, patch_yx: Tensor, spans: Tensor, share: float) -> Tensor:
    """Look at the pixels of each patch one by one."""
    made = torch.empty_like(spans)
    for k in range(len(patch)):
        (top, bottom), (left, right) = spans[k].tolist()
        made[k] = torch.tensor([[top, top], [left, left]])
        differs = {}
        for y in range(top, bottom):
            for x in range(left, right):
                own = patch[k, :, y - int(patch_yx[k, 0]), x - int(patch_yx[k, 1])]
                away = (own - base[0, :, y, x]).abs()
                differs[y, x] = away.new_tensor(math.inf) if bool(away.isnan().any()) else away.max()
        largest = max(differs.values(), default=base.new_zeros(()))
        if largest > 0:
            least = share * largest
            least = largest if bool(least.isnan()) else least  # no share of what is no number
            kept = [place for place, away in differs.items() if away >= least]
            rows, columns = [y for y, _ in kept], [x for _, x in kept]
            made[k] = torch.tensor([[min(rows), max(rows) + 1], [min(columns), max(columns) + 1]])
    return made


def conv_crops(
    x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Tensor:
    """Multiply what each pixel of the result sees, number by number, in double precision."""
    (down, across), (step, side) = dilation, stride
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    height, width = ((n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True))
    made = x.new_zeros(len(x), len(weight), height, width, dtype=torch.float64)
    own = x.shape[1] // groups
    for m in range(len(weight)):
        first = m * groups // len(weight) * own
        for row in range(height):
            for column in range(width):
                top, left = row * step, column * side
                seen = x[:, first : first + own, top : top + reach[0] + 1 : down, left : left + reach[1] + 1 : across]
                made[:, m, row, column] = bias[m].double() + (seen.double() * weight[m].double()).sum((1, 2, 3))
    return made


def grow_texture(
    sample: Tensor,
    sources: Tensor,
    places: Tensor,
    draws: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    guide: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    tolerance: float = 0.0,
    wrap: bool = False,
) -> Tensor:
    """Measure the distance of every candidate number by number, pixel after pixel."""
    made = sources.clone()
    width, (_, rows, columns) = sources.shape[1], sample.shape
    parts = [(sample, None, offsets, weights), *([(guide[1], guide[0], *guide[2:])] if guide else [])]
    candidates = [
        (y, x)
        for y in range(rows)
        for x in range(columns)
        if all(0 <= y + down < rows and 0 <= x + across < columns for p in parts for down, across in p[2].tolist())
    ]
    number = sample.numpy().dtype.type
    for place, draw in zip(places.tolist(), draws.tolist(), strict=True):
        compared = [
            (colour.numpy(), theirs.numpy(), offset, weight)
            for theirs, maps, several, weighed in parts
            for offset, weight in zip(several.tolist(), weighed.numpy(), strict=True)
            if (colour := _colour(sample, made, maps, divmod(place, width), offset, wrap)) is not None
        ]
        distances = []
        for y, x in candidates:
            total = number(0)
            for colour, theirs, (down, across), weight in compared:
                squares = number(0)
                for here, there in zip(colour, theirs[:, y + down, x + across], strict=True):
                    squares += (there - here) * (there - here)
                total += weight * squares
            distances.append(total)
        limit = number(1 + tolerance) * min(distances)
        near = [candidate for candidate, far in zip(candidates, distances, strict=True) if far <= limit]
        y, x = near[int(draw * len(near))]
        made[place // width, place % width] = y * columns + x
    return made


def _colour(
    sample: Tensor, made: Tensor, maps: Tensor | None, at: tuple[int, int], offset: list[int], wrap: bool
) -> Tensor | None:
    """Return what the canvas, or a map beside it, has so far from a place; None where that is unknown."""
    height, width = made.shape
    y, x = at[0] + offset[0], at[1] + offset[1]
    if wrap:
        y, x = y % height, x % width
    if not (0 <= y < height and 0 <= x < width):
        return None
    if maps is not None:
        return maps[:, y, x]
    source = int(made[y, x])
    return None if source < 0 else sample[:, source // sample.shape[2], source % sample.shape[2]]
