"""Textures that excite a network's layers as a sample does."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from cnnviz import Field, Gallery, OptionError, Pair, Request, Technique, hookimpl
from cnnviz.synthesis import LEAST_TILE, Optimised, Pixels, Style, StyleLoss, fitting, jitter, style_layers, synthesise

_NOISE = 0.1  # standard deviation in [0, 1]


class TextureGramOptions(Optimised):
    """Options of `texture-gram`."""

    steps: int = Field(300, ge=1, le=100_000, description="how many steps are taken")
    step_size: float = Field(1.0, gt=0, le=100, description="learning rate; 0.02 suits Adam")
    optimiser: Literal["lbfgs", "adam"] = Field("lbfgs", description="L-BFGS or Adam")
    size: Pair | None = Field(None, description="height and width in pixels; the sample's by default")
    seamless: bool = Field(False, description="make opposite sides fit each other, so that it can be tiled; wants Adam")
    by_layer: bool = Field(False, description="one texture by the first layer, one by the first two, and so on")
    layer_weights: tuple[Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)], ...] = Field(
        (), description="weight of each layer; all alike by default"
    )
    tile: int = Field(512, ge=192, le=8192, description="longest side of the pieces that larger textures are seen in")


def texture_gram(request: Request, options: TextureGramOptions) -> Gallery:
    """Texture of any size, found from noise, whose Gram matrices at several layers are those of a sample.

    Of each sample one texture, or with `by_layer` one for each number of layers, (M, 3, H, W); `history` (M, steps) the
    squared distance of the Gram matrices relative to the sample's own size, mean over layers, before each step. Without
    layers named: the first activation at each of the five largest map sizes that see no more than the sample. Gatys
    2015, "Texture Synthesis Using Convolutional Neural Networks".
    """
    if options.seamless and options.optimiser == "lbfgs":
        raise OptionError(
            "option 'seamless' shifts the texture at random, which L-BFGS cannot follow; give "
            "optimiser='adam' and step_size=0.02 too"
        )
    jobs: list[tuple[int, Tensor, tuple[str, ...], tuple[float, ...]]] = []
    for number, sample in enumerate(request.inputs.split(1), start=request.first):
        layers = style_layers(request.model, sample, request.layers)
        weights = _weights(options, layers)
        counts = range(1, len(layers) + 1) if options.by_layer else (len(layers),)
        jobs += [(number, sample, layers[:count], weights[:count]) for count in counts]
    size = options.size or request.inputs.shape[2:]
    noise = 0.5 + _NOISE * torch.randn(1, 3, *size, generator=request.generator, dtype=torch.float32, device="cpu")
    begin = request.normalisation.normalise(noise).to(request.inputs.device)
    tile = fitting(request, begin.to(request.inputs.dtype), options.tile, least=LEAST_TILE)
    made, told, captions = [], [], []
    for done, (number, sample, layers, weights) in enumerate(jobs):
        seen = fitting(request, sample, options.tile, least=LEAST_TILE)
        wanted = Style.of(request.model, layers, sample, tile=seen)
        loss = StyleLoss(
            request.model,
            [(1.0, wanted)],
            list(zip(layers, weights, strict=True)),
            tile=tile,
        )
        image, history = synthesise(
            request,
            options,
            lambda *_: Pixels(begin, request.normalisation),
            lambda x, *_, loss=loss: loss(x),
            1,
            example=begin[..., :tile, :tile].to(sample.dtype),
            transforms=[jitter(max(size))] if options.seamless else (),
            share=(done / len(jobs), (done + 1) / len(jobs)),
            stage=f"sample {number}, {len(layers)} layers, ",
        )
        made.append(image)
        told.append(history)
        captions.append(f"to {layers[-1]}: distance {history[0, -1]:.2g} of {history[0, 0]:.2g} at the start")
    images = request.normalisation.inverse(torch.cat(made)).cpu()
    return Gallery(images=images, history=torch.cat(told), captions=tuple(captions))


def _weights(options: TextureGramOptions, layers: tuple[str, ...]) -> tuple[float, ...]:
    weights = options.layer_weights or (1.0,) * len(layers)
    if len(weights) != len(layers) or not weights[0]:
        expected = f"expected one for each of {', '.join(layers)}, the first above 0"
        raise OptionError(f"option 'layer_weights': got {', '.join(map(str, weights))}; {expected}")
    return weights


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "texture-gram",
            texture_gram,
            TextureGramOptions,
            family="texture",
            layers="all",
            on_request=True,
            whole=True,
        )
    )
