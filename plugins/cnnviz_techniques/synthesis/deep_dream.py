"""Pictures in which a network's layers see more and more of what they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, Gallery, ImageOption, Request, Technique, hookimpl
from cnnviz.render import resize
from cnnviz.synthesis import Optimised, Pixels, Transformed, features, fitting, last_size_but_one, synthesise, tiled

_LEAST = 64  # pixels of the smallest octave's shorter side


class DeepDreamOptions(Optimised, Transformed):
    """Options of `deep-dream`."""

    steps: int = Field(10, ge=1, le=10_000, description="how many steps are taken in each octave")
    step_size: float = Field(0.01, gt=0, le=100, description="how far a pixel moves on average in a step, of [0, 1]")
    optimiser: Literal["ascent", "adam"] = Field(
        "ascent", description="plain ascent along the normalised gradient, or Adam"
    )
    jitter: int = Field(32, ge=0, le=1024, description="shift by up to so many pixels")
    octaves: int = Field(4, ge=1, le=20, description="at how many sizes to dream, from small to the picture's own")
    octave_scale: float = Field(1.4, gt=1, le=4, description="ratio of an octave's size to that of the one before")
    tile: int = Field(512, ge=64, le=8192, description="longest side of the pieces that larger pictures are dreamt in")
    guide: ImageOption | None = Field(None, description="a second picture, whose features are amplified instead")
    size: int | None = Field(None, ge=32, le=16384, description="longer side in pixels; the picture's own by default")
    frames: int = Field(1, ge=1, le=100_000, description="pictures of an animation, each dreamt from the one before")
    zoom: float = Field(1.05, ge=1, le=4, description="how far each picture of an animation is zoomed in")
    frame_rate: float = Field(15.0, gt=0, le=120, description="pictures of an animation in a second")


def deep_dream(request: Request, options: DeepDreamOptions) -> Gallery:
    """Picture changed so that layers are excited more by what excites them already, or a target scores higher.

    Of each sample one picture, or the frames of an animation that zooms into it, (M, 3, H, W); `history` (M, octaves ·
    steps) what is amplified, before each step: the mean square of the layers' activations; with a guide the mean
    product of each place's features with those of the guide's place that are most alike; with a target its score.
    Mordvintsev 2015.
    """
    x = request.inputs.to(torch.promote_types(request.inputs.dtype, torch.float32))
    if options.size is not None:
        x = resize(x, [max(1, round(side * options.size / max(x.shape[2:]))) for side in x.shape[2:]])
    height, width = x.shape[2:]
    made: list[Tensor] = []
    told: list[Tensor] = []
    for frame in range(options.frames):
        if frame:
            inner = [max(1, round(side / options.zoom)) for side in (height, width)]
            top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
            x = resize(x[..., top : top + inner[0], left : left + inner[1]], (height, width))
        x, history = _dream(request, options, x, frame)
        made.append(x)
        told.append(history)
    images = request.normalisation.inverse(torch.stack(made, 1).flatten(0, 1)).cpu()
    return Gallery(
        images=images,
        history=torch.stack(told, 1).flatten(0, 1),
        captions=(", ".join(request.layers) or "deep-dream",) * len(images),
        frame_rate=options.frame_rate if options.frames > 1 else None,
    )


def _dream(request: Request, options: DeepDreamOptions, x: Tensor, frame: int) -> tuple[Tensor, Tensor]:
    """Dream one picture of each sample at all octaves; what was dreamt at one is laid over the next."""
    sizes = [[round(side / options.octave_scale**k) for side in x.shape[2:]] for k in reversed(range(options.octaves))]
    sizes = [size for size in sizes if min(size) >= _LEAST] or [list(x.shape[2:])]
    dreamt = torch.zeros_like(x)
    told: list[Tensor] = []
    for number, size in enumerate(sizes):
        base = resize(x, size)
        begins = base + resize(dreamt, size)
        example = begins[:1].to(request.inputs.dtype)
        tile = fitting(request, example, options.tile)
        piece = example[..., :tile, :tile]
        excitement = _excitement(request, options, piece)
        made, losses = synthesise(
            request,
            options,
            lambda start, stop, begins=begins: Pixels(begins[start:stop], request.normalisation),
            lambda x, start, stop, tile=tile, excitement=excitement: tiled(
                lambda part: -excitement(part, range(start, stop)), tile
            )(x),
            len(x),
            example=piece,
            transforms=options.transforms(),
            share=tuple((frame + (number + k) / len(sizes)) / options.frames for k in (0, 1)),
            stage=f"frame {frame}, octave {number}, ",
        )
        dreamt = made - base
        told.append(-losses)
    return made, torch.cat(told, 1)


def _excitement(request: Request, options: DeepDreamOptions, example: Tensor) -> Callable[[Tensor, range], Tensor]:
    """Return what is amplified: from pictures (n, C, H, W), and which samples they are, to (n,)."""
    if request.aimed:
        return lambda x, rows: request.score(x, list(rows))
    layers = request.layers or (_usual(request, example),)
    if options.guide is None:
        return lambda x, _: sum(maps.square().mean((1, 2, 3)) for maps in features(request.model, layers, x))
    with torch.no_grad():
        guides = [maps.flatten(2) for maps in features(request.model, layers, request.image(options.guide, whole=True))]

    def alike(x: Tensor, rows: range) -> Tensor:
        total = x.new_zeros(len(x))
        for maps, guide in zip(features(request.model, layers, x), guides, strict=True):
            products = maps.flatten(2).mT @ guide  # (n, places, the guide's places)
            total = total + products.amax(2).mean(1) / len(guide[0])
        return total

    return alike


def _usual(request: Request, example: Tensor) -> str:
    """Return the last activation of the last size but one: it sees things, and where they are."""
    return last_size_but_one(request.calls(example))[-1].name


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "deep-dream", deep_dream, DeepDreamOptions, family="synthesis", layers="all", on_request=True, whole=True
        )
    )
