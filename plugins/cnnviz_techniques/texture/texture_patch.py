"""Texture synthesis from the patches of a sample, without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cnnviz import Field, Gallery, OptionError, Options, Pair, Request, Technique, hookimpl
from cnnviz.ops import Guide, grow_texture

_CHUNK = 256  # pixels between two steps of progress


class TexturePatchOptions(Options):
    """Options of `texture-patch`."""

    size: Pair = Field(128, description="height and width of the texture in pixels")
    method: Literal["efros-leung", "wei-levoy"] = Field(
        "efros-leung", description="grow from a patch of the sample, or turn noise into a texture that tiles"
    )
    window: int = Field(
        11,
        ge=3,
        le=99,
        description="side of the neighbourhoods that are compared, odd; as large as the pattern's parts",
    )
    tolerance: float = Field(
        0.1, ge=0, le=10, description="efros-leung: how much farther than the nearest a patch may be to be drawn"
    )
    seed_patch: int = Field(3, ge=1, le=99, description="efros-leung: side of the sample's patch that is grown from")
    levels: int = Field(3, ge=1, le=8, description="wei-levoy: levels of the pyramid, each half the size of the next")
    passes: int = Field(
        2,
        ge=1,
        le=10,
        description="wei-levoy: times that each level is gone through; all but the first look at all around a pixel, "
        "which mends the seams at which the result tiles; once is the paper's own",
    )


class _Start(NamedTuple):
    """How a level begins: the source of each pixel, the places in the order in which they are filled, their draws."""

    sources: Tensor
    places: Tensor
    draws: Tensor


def texture_patch(request: Request, options: TexturePatchOptions) -> Gallery:
    """Make a texture pixel by pixel, each copied from where the sample looks most like its surroundings.

    Samples are the inputs as pictures; `images` are (N, 3, h, w), each pixel one of its sample's. No model is needed.
    Efros & Leung 1999, section 2, with Gaussian weights of deviation window / 6.4 and no threshold of error. Wei &
    Levoy 2000, section 3, on a torus: around a pixel all that comes before it row by row, and on the coarser level a
    square half as wide; later passes as in section 5.1, with the whole square. The time taken grows with the texture's
    pixels times the sample's.
    """
    samples = _samples(request, options)
    starts = _starts(samples.shape[2:], options, request.generator)
    windows = _windows(options)
    total = len(samples) * len(windows) * sum(len(start.places) for start in starts)
    done = 0

    def step(pixels: int) -> None:
        nonlocal done
        done += pixels
        request.progress(done, total)

    images = [_texture(sample, starts, windows, options, step) for sample in samples]
    caption = f"texture of {options.size[0]} x {options.size[1]} by {options.method}, window {options.window}"
    return Gallery(images=torch.stack(images).float(), captions=(caption,) * len(images))


def _samples(request: Request, options: TexturePatchOptions) -> Tensor:
    """Return the samples on the CPU, where pixels are chosen one after the other.

    Raises:
        InputError: they are no colours.
        OptionError: the window is even, or larger than a sample on its coarsest level.
    """
    samples = request.normalisation.inverse(request.inputs.detach())
    window, side = options.window, min(samples.shape[2:])
    if window % 2 == 0:
        raise OptionError(f"option 'window': got {window}, expected an odd number; give {window - 1} or {window + 1}")
    if side < window:
        raise OptionError(
            f"option 'window': got {window}, but the sample is {samples.shape[2]} x {samples.shape[3]}; give a smaller "
            "window, or a larger sample"
        )
    levels = options.levels if options.method == "wei-levoy" else 1
    if _half(side, levels - 1) < window:
        raise OptionError(
            f"option 'levels': got {levels}, but the coarsest level of the sample has a side of "
            f"{_half(side, levels - 1)}, less than the window of {window}; give fewer levels, or a smaller window"
        )
    return samples.cpu().to(torch.float64 if samples.dtype == torch.float64 else torch.float32).contiguous()


def _half(side: int, times: int = 1) -> int:
    return -(-side // 2**times)


def _starts(sample: Sequence[int], options: TexturePatchOptions, generator: Generator) -> list[_Start]:
    """Return how the levels begin, the coarsest first, which is the same for all samples."""
    if options.method == "efros-leung":
        return [_onion(sample, options, generator)]
    starts = []
    for level in reversed(range(options.levels)):
        pixels = _half(sample[0], level) * _half(sample[1], level)
        size = [_half(side, level) for side in options.size]
        noise = torch.randint(pixels, size, generator=generator, device="cpu")
        draws = torch.zeros(noise.numel(), dtype=torch.float64, device="cpu")  # the first of the nearest
        starts.append(_Start(noise, torch.arange(noise.numel(), device="cpu"), draws))
    return starts


def _onion(sample: Sequence[int], options: TexturePatchOptions, generator: Generator) -> _Start:
    """Return a patch of the sample in the middle, and layers around it, in each first what has most neighbours."""
    sides = [min(options.seed_patch, a, b) for a, b in zip(sample, options.size, strict=True)]
    draw = torch.rand(2, generator=generator, dtype=torch.float64, device="cpu").tolist()
    top, left = (int(share * (a - b + 1)) for share, a, b in zip(draw, sample, sides, strict=True))
    middle = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(options.size, sides, strict=True))
    rows, columns = torch.arange(top, top + sides[0], device="cpu"), torch.arange(left, left + sides[1], device="cpu")
    sources = torch.full(options.size, -1, device="cpu")
    sources[middle] = rows[:, None] * sample[1] + columns
    known, layers = sources >= 0, []
    while not known.all():
        neighbours = functional.avg_pool2d(known[None].float(), 3, 1, 1, divisor_override=1)[0]
        layer = (~known & (neighbours > 0)).flatten().nonzero()[:, 0]
        layer = layer[torch.randperm(len(layer), generator=generator, device="cpu")]
        layers.append(layer[neighbours.flatten()[layer].argsort(descending=True, stable=True)])
        known.view(-1)[layer] = True
    places = torch.cat([torch.empty(0, dtype=torch.long, device="cpu"), *layers])
    return _Start(sources, places, torch.rand(len(places), generator=generator, dtype=torch.float64, device="cpu"))


def _windows(options: TexturePatchOptions) -> list[Tensor]:
    """Return for each pass where it looks around a pixel, (T, 2), the nearest first."""
    around = _square(options.window // 2)[1:]
    if options.method == "efros-leung":
        return [around]
    down, across = around.unbind(1)
    return [around[(down < 0) | ((down == 0) & (across < 0))], *[around] * (options.passes - 1)]


def _texture(
    sample: Tensor,
    starts: Sequence[_Start],
    windows: Sequence[Tensor],
    options: TexturePatchOptions,
    step: Callable[[int], None],
) -> Tensor:
    """Return the texture, (3, h, w)."""
    grows = options.method == "efros-leung"
    tolerance = options.tolerance if grows else 0.0
    pyramid = [sample]
    while len(pyramid) < len(starts):
        pyramid.append(_blurred(pyramid[-1]))
    beside = 2 * _square(options.window // 4)  # on the coarser level, in pixels of this one
    coarser: tuple[Tensor, Tensor] | None = None
    for level, start in zip(reversed(pyramid), starts, strict=True):
        guide, sources = None, start.sources
        if coarser is not None:
            canvas, theirs = (_enlarged(maps, to) for maps, to in zip(coarser, (sources, level[0]), strict=True))
            guide = Guide(canvas, theirs, beside, level.new_ones(len(beside)))
        for around in windows:
            flat = torch.ones(len(around), dtype=torch.float32, device="cpu")
            weights = _gaussian(around, options.window / 6.4) if grows else flat
            for places, draws in zip(start.places.split(_CHUNK), start.draws.split(_CHUNK), strict=True):
                given = level, sources, places, draws, around, weights.to(level)
                sources = grow_texture(*given, guide=guide, tolerance=tolerance, wrap=not grows)
                step(len(places))
        coarser = level.flatten(1)[:, sources], level
    assert coarser is not None
    return coarser[0]


def _gaussian(places: Tensor, deviation: float) -> Tensor:
    return torch.exp(places.square().sum(1).float() / (-2 * deviation**2))


def _square(radius: int) -> Tensor:
    """Return the rows and columns of a square around its middle, (K, 2), the nearest first."""
    side = torch.arange(-radius, radius + 1, device="cpu")
    every = torch.cartesian_prod(side, side)
    return every[every.square().sum(1).argsort(stable=True)]


def _blurred(maps: Tensor) -> Tensor:
    """Return the next level of a Gaussian pyramid, (C, ⌈h / 2⌉, ⌈w / 2⌉). Burt & Adelson 1983, with a = 0.375."""
    for dim in (1, 2):
        middle = torch.arange(0, maps.shape[dim], 2, device="cpu")
        taken = [(middle + k).clamp(0, maps.shape[dim] - 1) for k in (-2, -1, 0, 1, 2)]
        a, b, c, d, e = (maps.index_select(dim, places) for places in taken)
        maps = (a + 4 * b + 6 * c + 4 * d + e) / 16
    return maps


def _enlarged(maps: Tensor, like: Tensor) -> Tensor:
    """Return maps of a level as large as what lies on the next, (C, h, w)."""
    rows, columns = (torch.arange(side, device="cpu") // 2 for side in like.shape)
    return maps[:, rows][:, :, columns]


@hookimpl
def cnnviz_techniques(register):
    register(Technique("texture-patch", texture_patch, TexturePatchOptions, family="texture", whole=True))
