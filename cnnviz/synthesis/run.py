"""Many pictures at once, in batches that fit the memory budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..request import Request, within
from .canvas import Canvas
from .optimise import optimise
from .options import Optimised
from .regularisers import Edit, Penalty
from .transforms import Transform


def synthesise(
    request: Request,
    options: Optimised,
    begin: Callable[[int, int], Canvas],
    loss: Callable[[Tensor, int, int], Tensor],
    count: int,
    *,
    example: Tensor,
    transforms: Sequence[Transform] = (),
    penalties: Sequence[tuple[float, Penalty]] = (),
    edits: Sequence[tuple[int, Edit]] = (),
    share: tuple[float, float] = (0.0, 1.0),
    stage: str = "",
    **identity: Any,
) -> tuple[Tensor, Tensor]:
    """Optimise pictures, as many at once as the memory budget allows; every one as it would come out alone.

    Args:
        request: of the technique.
        options: how to optimise.
        begin: ``begin(start, stop)`` returns a canvas of pictures start to stop - 1, in float32 or wider.
        loss: ``loss(x, start, stop)`` returns their losses, (stop - start,); x, (stop - start, C, H, W), is what the
            network sees of them, in its own type.
        count: how many pictures there are.
        example: what one of them is like, (1, C, H, W).
        transforms: see `optimise`, as the next two.
        penalties: as there.
        edits: as there.
        share: from where to where the technique's progress goes meanwhile, in [0, 1].
        stage: which of the technique's several runs this is.
        **identity: what else the pictures depend on, as plain values, so that no other run's checkpoint is continued.

    Returns:
        The pictures in the units of the network's input, (count, C, H, W), and the losses, (count, steps), on the CPU.
    """
    checkpoint = options.resumed(request, **identity)
    step = within(request.progress, share)

    def part(start: int, stop: int) -> tuple[Tensor, Tensor]:
        canvas = begin(start, stop)
        name = f"{stage}{request.first + start} to {request.first + stop}"
        history = optimise(
            canvas,
            lambda x: loss(request.laid_out(x.to(example.dtype)), start, stop),
            steps=options.steps,
            step_size=options.step_size,
            optimiser=options.optimiser,
            transforms=transforms,
            penalties=penalties,
            edits=edits,
            generator=torch.Generator().manual_seed(request.generator.initial_seed()),  # the same for every part
            progress=lambda done, total: step(start * total + (stop - start) * done, count * total),
            checkpoint=None if checkpoint is None else (checkpoint, name),
        )
        return canvas.image().detach(), history

    at_most = 1 if options.optimiser == "lbfgs" else None  # a curvature is that of one picture
    parts = request.batched(part, count, backward=True, example=example, at_most=at_most)
    return torch.cat([images for images, _ in parts]), torch.cat([history for _, history in parts])
