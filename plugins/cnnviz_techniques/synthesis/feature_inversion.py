"""Pictures whose features at a layer match those of a given picture."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnviz import Field, Gallery, InputError, Request, Technique, hookimpl
from cnnviz.synthesis import Canvas, Optimised, Pixels, Transformed, features, p_norm, synthesise, total_variation

_ROUNDING = 1e-3
_NOISE = 0.05  # standard deviation in [0, 1]


class FeatureInversionOptions(Optimised, Transformed):
    """Options of `feature-inversion`."""

    steps: int = Field(300, ge=1, le=100_000, description="how many steps are taken")
    step_size: float = Field(0.02, gt=0, le=100, description="learning rate")
    jitter: int = Field(0, ge=0, le=1024, description="shift by up to so many pixels")
    total_variation: float = Field(0.5, ge=0, description="weight of neighbours' differences")
    norm: float = Field(0.05, ge=0, description="weight of the sixth power of the pixels")


def feature_inversion(request: Request, options: FeatureInversionOptions) -> Gallery:
    """Picture, found from noise, whose features at a layer match those of the given picture: what the layer remembers.

    Of each sample one picture for each layer, (N, 3, H, W); `history` (N, steps) the relative error of the features
    before each step: the norm of their difference over the norm of the given picture's. Mahendran & Vedaldi 2015,
    equation 1, with total variation and the norm of their section 3.

    Where nothing is known of the units of the network's input, samples beyond [0, 1] go from black, which is their
    lowest number, to white.
    """
    model, layers = request.model, (str(request.layer),)
    x = request.inputs
    black, spread = _units(request)
    noise = torch.randn(1, 3, *x.shape[2:], generator=request.generator, dtype=torch.float32, device="cpu")
    begins = (0.5 + _NOISE * noise).to(x.device)

    def seen(start: int, stop: int) -> Tensor:
        return features(model, layers, request.laid_out(x[start:stop]))[0]

    with torch.no_grad():
        wanted = torch.cat(request.batched(seen, len(x)))
    precise = torch.promote_types(wanted.dtype, torch.float32)  # sums of squares are more than half precision holds
    size = wanted.to(precise).square().flatten(1).sum(1)
    if not bool(size.all()):
        raise InputError(
            f"layer '{request.layer}' is all zero on a picture; name another layer, or give other pictures"
        )

    def begin(start: int, stop: int) -> Canvas:
        noise = begins.expand(stop - start, -1, -1, -1)
        return Pixels(request.normalisation.normalise(noise), request.normalisation)

    def loss(made: Tensor, start: int, stop: int) -> Tensor:
        (maps,) = features(model, layers, black[start:stop] + spread[start:stop] * made)
        return (maps - wanted[start:stop]).to(precise).square().flatten(1).sum(1) / size[start:stop]

    inputs, losses = synthesise(
        request,
        options,
        begin,
        loss,
        len(x),
        example=x[:1],
        transforms=options.transforms(),
        penalties=[(options.norm, lambda y: p_norm(y, 6)), (options.total_variation, total_variation)],
        stage=f"layer {request.layer}, ",
    )
    history = losses.sqrt()
    captions = tuple(f"{request.layer}: relative error {row[-1]:.3g}" for row in history.tolist())
    return Gallery(images=request.normalisation.inverse(inputs).cpu(), history=history, captions=captions)


def _units(request: Request) -> tuple[Tensor, Tensor]:
    """Return what 0 and what a step of 1 on the canvas is for each sample, (N, 1, 1, 1), in the units of the input."""
    x = request.inputs
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    known = ((low >= -_ROUNDING) & (high <= 1 + _ROUNDING)) | (request.described.preprocess is not None)
    return torch.where(known, 0.0, low), torch.where(known, 1.0, high - low)


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "feature-inversion",
            feature_inversion,
            FeatureInversionOptions,
            family="synthesis",
            layers="many",
            on_request=True,
        )
    )
