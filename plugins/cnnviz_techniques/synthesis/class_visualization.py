"""Pictures that make a class, channel, neuron or direction score high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, Gallery, ImageOption, ImagesOption, OptionError, Pair, Request, Technique, hookimpl
from cnnviz.synthesis import (
    Canvas,
    Fourier,
    Optimised,
    Pixels,
    Regularised,
    Transformed,
    by_size,
    clusters,
    features,
    synthesise,
)

_NOISE = 0.02  # standard deviation in [0, 1]
_GREY = 0.5


class ClassVisualizationOptions(Optimised, Transformed, Regularised):
    """Options of `class-visualization`."""

    scale: float = Field(0.1, ge=0, le=1, description="enlarge or shrink by up to this part")
    rotate: float = Field(5.0, ge=0, le=180, description="turn by up to so many degrees")
    starts: int = Field(1, ge=1, le=1000, description="how many pictures of each target are made, from as many starts")
    start: Literal["noise", "grey"] | ImageOption = Field("noise", description="what the pictures begin as")
    examples: ImagesOption = Field(
        (), description="photographs, of which those that the network finds alike are averaged to as many starts"
    )
    parameterisation: Literal["fourier", "pixels"] = Field(
        "fourier", description="what is optimised: Fourier coefficients of decorrelated colours, or pixels"
    )
    size: Pair | None = Field(None, description="height and width in pixels; the model's own by default")


def class_visualization(request: Request, options: ClassVisualizationOptions) -> Gallery:
    """Picture that makes a class, channel, neuron or direction score high, found by gradient ascent from a start.

    Of each target as many pictures as `starts` says, (M, 3, H, W); `rows` is the target's number, `history` (M, steps)
    the score before each step, of the picture shifted and turned as the network saw it then. Scores are raw outputs,
    no softmax. With `examples` each start is a facet of the target: Nguyen 2016, "Multifaceted Feature Visualization".
    Simonyan 2013; regularisers of Yosinski 2015; Fourier coefficients of Olah 2017.
    """
    rows = torch.arange(request.count, device="cpu").repeat_interleave(options.starts)
    begins = _starts(request, options)
    example = request.normalisation.normalise(begins[:1]).to(request.example)

    def begin(start: int, stop: int) -> Canvas:
        made = begins[torch.arange(start, stop, device="cpu") % options.starts].to(example.device)
        if options.parameterisation == "fourier":
            return Fourier(made, request.normalisation)
        return Pixels(request.normalisation.normalise(made), request.normalisation)

    inputs, losses = synthesise(
        request,
        options,
        begin,
        lambda x, start, stop: -request.score(x, rows[start:stop]),
        len(rows),
        example=example,
        transforms=options.transforms(),
        penalties=options.penalties(),
        edits=options.edits(pixels=options.parameterisation == "pixels"),
    )
    images = request.normalisation.inverse(inputs).cpu()
    reached = request.sweep(lambda start, stop: inputs[start:stop].to(example.dtype), len(rows), rows)
    captions = tuple(
        f"{request.told(row)}: score {score:.4g}" for row, score in zip(rows.tolist(), reached.tolist(), strict=True)
    )
    return Gallery(images=images, rows=rows, history=-losses, captions=captions)


def _starts(request: Request, options: ClassVisualizationOptions) -> Tensor:
    """Return the picture that each start begins as, in [0, 1], (starts, 3, H, W)."""
    size = options.size or request.example.shape[2:]
    if options.examples:
        return _facets(request, options, size)
    noise = _NOISE * torch.randn(
        options.starts, 3, *size, generator=request.generator, dtype=torch.float32, device="cpu"
    )
    if options.start == "noise":
        return _GREY + noise
    begin = torch.full_like(noise, _GREY)
    if isinstance(options.start, ImageOption):
        begin[:] = request.normalisation.inverse(request.image(options.start, size=size)).cpu()
    return begin + noise if options.starts > 1 else begin  # several must differ


def _facets(request: Request, options: ClassVisualizationOptions, size: Sequence[int]) -> Tensor:
    """Return the mean of each cluster of the examples, by their features before the head, (starts, 3, H, W)."""
    if len(options.examples) < options.starts:
        told = f"got {len(options.examples)} images for {options.starts} starts; give as many or more, or fewer starts"
        raise OptionError(f"option 'examples': {told}")
    images = [request.image(option, size=size) for option in options.examples]
    layer = by_size(request.calls(images[0]))[-1][-1].name

    def seen(start: int, stop: int) -> Tensor:
        with torch.no_grad():
            (maps,) = features(request.model, [layer], torch.cat(images[start:stop]))
        return maps.mean((2, 3)).float().cpu()

    points = torch.cat(request.batched(seen, len(images), example=images[0]))
    belongs = clusters(points, options.starts, request.generator)
    pictures = request.normalisation.inverse(torch.cat(images).float()).cpu()
    return torch.stack([pictures[belongs == cluster].mean(0) for cluster in range(options.starts)])


@hookimpl
def cnnviz_techniques(register):
    register(
        Technique(
            "class-visualization", class_visualization, ClassVisualizationOptions, family="synthesis", inputs="none"
        )
    )
