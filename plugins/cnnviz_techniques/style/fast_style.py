"""Pictures painted in one pass by a network that was trained for it."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from cnnviz import Field, Gallery, ModelError, OptionError, Options, Request, Technique, hookimpl
from cnnviz.render import resize
from cnnviz.synthesis import StyleNetwork

from .colours import luminance, painted_over


class FastStyleOptions(Options):
    """Options of `fast-style`."""

    style_weights: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(
        (), description="weight of each style that the network knows, which are mixed; the first alone by default"
    )
    colours: Literal["style", "luminance"] = Field(
        "style", description="the style's, or the picture's own, painted over in grey"
    )
    size: int | None = Field(None, ge=32, le=16384, description="longer side in pixels; the picture's own by default")


def fast_style(request: Request, options: FastStyleOptions) -> Gallery:
    """Picture painted by a style network, which `cnnviz train-style` trains, in one forward pass.

    Of each sample one painting, (N, 3, H, W). Johnson 2016; instance normalisation: Ulyanov 2016; several styles and
    their mixtures in one network: Dumoulin 2017.
    """
    network = request.model
    if not isinstance(network, StyleNetwork):
        raise ModelError(
            f"technique 'fast-style' got {type(network).__name__}, expected a network that cnnviz train-style wrote; "
            "give its file as the model: cnnviz.load_model('style.safetensors')"
        )
    x = request.inputs
    if options.size is not None:
        x = resize(x, [max(1, round(side * options.size / max(x.shape[2:]))) for side in x.shape[2:]])
    mix, told = _mixed(network, options.style_weights)
    shown = luminance(x) if options.colours == "luminance" else x
    with torch.no_grad():
        parts = request.batched(lambda start, stop: network(shown[start:stop], mix.to(x)), len(x), example=x[:1])
    images = torch.cat(parts)
    if options.colours == "luminance":
        images = painted_over(luminance(images), x)
    return Gallery(images=images.float().cpu(), captions=(told,) * len(images))


def _mixed(network: StyleNetwork, weights: tuple[float, ...]) -> tuple[torch.Tensor, str]:
    """Return the share of each style, (S,), and what the mixture is called."""
    names = network.styles
    given = weights or (1.0, *(0.0 for _ in names[1:]))
    if len(given) != len(names) or not sum(given):
        raise OptionError(
            f"option 'style_weights': got {', '.join(map(str, given))}, expected {len(names)} numbers with a sum above "
            f"0, one for each of {', '.join(names)}"
        )
    shares = [weight / sum(given) for weight in given]
    told = [f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True) if share]
    return torch.tensor(shares, device="cpu"), ", ".join(told) if len(told) > 1 else told[0].rpartition(" ")[0]


@hookimpl
def cnnviz_techniques(register):
    register(Technique("fast-style", fast_style, FastStyleOptions, family="style", on_request=True, whole=True))
