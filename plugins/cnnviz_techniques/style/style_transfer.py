"""Pictures painted in the style of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from cnnviz import (
    Field,
    Gallery,
    ImageOption,
    ImagesOption,
    InputError,
    OptionError,
    Request,
    Technique,
    hookimpl,
    render,
)
from cnnviz.synthesis import (
    LEAST_TILE,
    Optimised,
    Pixels,
    Style,
    StyleLoss,
    fitting,
    last_size_but_one,
    layer_shares,
    shares_that_fit,
    style_layers,
    synthesise,
    total_variation,
)

from .colours import luminance, matched, painted_over

_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_NOISE = 0.2  # standard deviation in [0, 1]


class StyleTransferOptions(Optimised):
    """Options of `style-transfer`."""

    styles: ImagesOption = Field(
        min_length=1,
        description="one style image, or several, which are mixed; a tensor is in the units of the network's input",
    )
    style_weights: tuple[_Weight, ...] = Field((), description="weight of each style image; all alike by default")
    style_scale: float = Field(
        1.0, gt=0, le=8, description="longer side of the style images, of the picture's: how large strokes are"
    )
    masks: ImagesOption = Field((), description="for each style image where it is wanted: white, and where not: black")
    content_weight: _Weight = Field(1.0, description="weight of what the picture shows")
    style_weight: _Weight = Field(20.0, description="weight of how it is painted")
    content_layers: tuple[str, ...] = Field(
        (), description="layers whose features are kept; for VGG relu4_2 by default"
    )
    style_layers: tuple[str, ...] = Field(
        (), description="layers whose Gram matrices are matched; for VGG relu1_1 to relu5_1"
    )
    style_layer_weights: tuple[_Weight, ...] = Field((), description="weight of each style layer; all alike by default")
    steps: int = Field(300, ge=1, le=100_000, description="how many steps are taken at each size")
    step_size: float = Field(1.0, gt=0, le=100, description="learning rate; 0.02 suits Adam")
    optimiser: Literal["lbfgs", "adam"] = Field("lbfgs", description="L-BFGS or Adam")
    start: Literal["content", "noise"] = Field("content", description="what the painting begins as")
    colours: Literal["style", "luminance", "matched"] = Field(
        "style",
        description="the style's; the picture's own, painted over in grey; or the style's, made like the picture's",
    )
    size: int | None = Field(None, ge=32, le=16384, description="longer side in pixels; the picture's own by default")
    levels: int = Field(
        1,
        ge=1,
        le=6,
        description="at how many sizes to paint, each twice the one before; style layers that see more than a small "
        "style image are left out there",
    )
    total_variation: _Weight = Field(0.0, description="weight of neighbours' differences")
    dream_weight: _Weight = Field(0.0, description="weight of exciting layers, as deep-dream does")
    dream_layers: tuple[str, ...] = Field((), description="layers to excite; the content layers by default")
    tile: int = Field(512, ge=192, le=8192, description="longest side of the pieces that larger pictures are seen in")


def style_transfer(request: Request, options: StyleTransferOptions) -> Gallery:
    """Picture whose features are those of a content picture, and whose Gram matrices are those of style images.

    Of each sample one painting, (N, 3, H, W); `history` (N, levels · steps) the weighted sum of the squared distances,
    each relative to the size of what is wanted, before each step. Gatys 2016; masks, scales and colours of Gatys 2017;
    coarse to fine as there.
    """
    _check(options)
    made, told, captions = [], [], []
    for number, sample in enumerate(request.inputs.split(1)):
        painting, history, caption = _paint(request, options, sample, number)
        made.append(painting)
        told.append(history)
        captions.append(caption)
    return Gallery(images=torch.cat(made).cpu(), history=torch.cat(told), captions=tuple(captions))


def _paint(request: Request, options: StyleTransferOptions, sample: Tensor, number: int) -> tuple[Tensor, Tensor, str]:
    normalisation, whole = request.normalisation, request.normalisation.inverse(sample.float())
    longer = options.size or max(whole.shape[2:])
    shares = _shares(request, options, longer)
    painting: Tensor | None = None
    told: list[Tensor] = []
    for level in range(options.levels):
        scale = longer / max(whole.shape[2:]) / 2 ** (options.levels - 1 - level)
        picture = render.resize(whole, [max(1, round(side * scale)) for side in whole.shape[2:]])
        shown = luminance(picture) if options.colours == "luminance" else picture
        content = normalisation.normalise(shown)
        if painting is not None:
            begin = normalisation.normalise(render.resize(painting, picture.shape[2:]))
        elif options.start == "content":
            begin = content
        else:
            draws = torch.Generator().manual_seed(request.generator.initial_seed())  # the same for every picture
            noise = 0.5 + _NOISE * torch.randn(picture.shape, generator=draws, dtype=torch.float32, device="cpu")
            begin = normalisation.normalise(noise.to(content))
        loss = _loss(request, options, request.laid_out(content.to(sample.dtype)), shown, shares)
        share = ((number + (level + k) / options.levels) / len(request.inputs) for k in (0, 1))
        inputs, history = synthesise(
            request,
            options,
            lambda *_, begin=begin: Pixels(begin, normalisation),
            lambda x, *_, loss=loss: loss(x),
            1,
            example=content[..., : options.tile, : options.tile].to(sample.dtype),
            penalties=[(options.total_variation, total_variation)],
            share=(next(share), next(share)),
            stage=f"picture {request.first + number}, level {level}, ",
        )
        painting = normalisation.inverse(inputs.float())
        told.append(history)
    assert painting is not None
    with torch.no_grad():
        style, kept, _ = (float(part) for part in loss.parts(inputs.to(sample.dtype)))
    if options.colours == "luminance":
        painting = painted_over(luminance(painting), picture)
    weights = options.style_weight or 1.0, options.content_weight or 1.0
    caption = f"distance from the style {style / weights[0]:.3g}, from the content {kept / weights[1]:.3g}"
    return painting, torch.cat(told, 1), caption


def _shares(request: Request, options: StyleTransferOptions, longer: int) -> list[tuple[str, float]]:
    """Return style layers with their weights, as they are at the full size."""
    sized = [(_size(image.size, longer * options.style_scale), image) for image in options.styles]
    size, image = min(sized, key=lambda each: min(each[0]))
    names = style_layers(request.model, request.image(image, whole=True, size=size), options.style_layers)
    return layer_shares(names, options.style_layer_weights)


def _size(size: Sequence[int], longer: float) -> list[int]:
    """Return the height and width of a picture whose longer side is made so long."""
    return [max(1, round(side * max(1, round(longer)) / max(size))) for side in size]


def _loss(
    request: Request, options: StyleTransferOptions, content: Tensor, shown: Tensor, shares: list[tuple[str, float]]
) -> StyleLoss:
    """Return the loss at one size."""
    count = len(options.styles)
    pictures = []
    for image in options.styles:
        picture = request.normalisation.inverse(request.image(image, whole=True).float())
        picture = render.resize(picture, _size(picture.shape[2:], max(content.shape[2:]) * options.style_scale))
        picture = {"style": picture, "luminance": luminance(picture)}.get(options.colours, picture)
        pictures.append(matched(picture, shown) if options.colours == "matched" else picture)
    inputs = [request.normalisation.normalise(picture).to(content.dtype) for picture in pictures]
    smallest = min(inputs, key=lambda picture: min(picture.shape[2:]))
    shares = shares_that_fit(request.model, smallest, shares)
    names = [name for name, _ in shares]
    masks = [_mask(image, content) for image in options.masks] or [None] * count
    weights = options.style_weights or (1.0,) * count
    styles = [
        Style.of(request.model, names, picture, mask, tile=fitting(request, picture, options.tile, least=LEAST_TILE))
        for picture, mask in zip(inputs, masks, strict=True)
    ]
    wanted = [
        (options.style_weight * weight / sum(weights), style) for style, weight in zip(styles, weights, strict=True)
    ]
    if not options.masks:  # one style between them all
        wanted = [(options.style_weight, Style.blend(styles, weights))]
    kept = options.content_layers or (_usual(request, content),)
    dreamt = (options.dream_layers or kept) if options.dream_weight else ()
    return StyleLoss(
        request.model,
        wanted,
        shares,
        picture=content,
        content_layers=[(name, options.content_weight / len(kept)) for name in kept],
        dream_layers=[(name, options.dream_weight / len(dreamt)) for name in dreamt],
        tile=fitting(request, content, options.tile, least=LEAST_TILE),
    )


def _mask(image: ImageOption, content: Tensor) -> Tensor:
    """Return a mask at the content's size, (1, 1, H, W) in [0, 1]."""
    mask = render.resize(image.values.float().mean(0, keepdim=True)[None], content.shape[2:]).clamp(0, 1)
    if not bool(mask.any()):
        raise InputError("a mask is black everywhere, so that its style is wanted nowhere; leave the style out")
    return mask.to(content)


def _check(options: StyleTransferOptions) -> None:
    count = len(options.styles)
    weights = options.style_weights
    if weights and (len(weights) != count or not sum(weights)):
        told = (
            f"got {', '.join(map(str, weights))}, expected {count} numbers with a sum above 0, one for each style image"
        )
        raise OptionError(f"option 'style_weights': {told}")
    if options.masks and len(options.masks) != count:
        raise OptionError(f"option 'masks': got {len(options.masks)}, expected {count}, one for each style image")
    for name, images in (("styles", options.styles), ("masks", options.masks)):
        if not all(bool(image.values.isfinite().all()) for image in images):
            raise InputError(f"option '{name}': got a tensor with values that are not finite; give one without them")
    if not options.content_weight and not options.style_weight:
        raise OptionError("options 'content_weight' and 'style_weight' are both 0; give one of them a weight")


def _usual(request: Request, content: Tensor) -> str:
    """Return the second activation of the last map size but one; for VGG it is relu4_2."""
    return last_size_but_one(request.calls(content))[:2][-1].name


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique("style-transfer", style_transfer, StyleTransferOptions, family="style", on_request=True, whole=True)
    )
