"""Options that techniques which make pictures have in common; a technique takes those it needs as base classes."""

from __future__ import annotations

import json
from typing import Any

from ..errors import OptionError
from ..options import Field, Options
from ..request import Request
from .checkpoint import Checkpoint
from .optimise import Optimiser
from .regularisers import Edit, Penalty, blur, clip_gradients, clip_pixels, p_norm, total_variation
from .transforms import Transform, affine, jitter


class Optimised(Options):
    """How the loss is brought down."""

    steps: int = Field(256, ge=1, le=100_000, description="how many steps are taken")
    step_size: float = Field(0.05, gt=0, le=100, description="learning rate")
    optimiser: Optimiser = Field(
        "adam", description="Adam; L-BFGS, one picture at a time; or plain ascent along the normalised gradient"
    )
    checkpoint: str | None = Field(
        None,
        min_length=1,
        description="a .safetensors file in which the state is kept every 15 seconds, and which is continued if it "
        "exists",
    )

    def resumed(self, request: Request, **identity: Any) -> Checkpoint | None:
        """Return the checkpoint that the options name; `identity` is what else the run depends on.

        Raises:
            SaveError: the file is damaged, or of another run.
        """
        if self.checkpoint is None:
            return None
        mine = self.model_dump(mode="json", exclude={"steps", "checkpoint"})
        known = {**mine, **request.identity(), **identity}
        # One for all parts of the call: it notes those that are done.
        key = "checkpoint", self.checkpoint, json.dumps(known, sort_keys=True)
        return request.once(key, lambda: Checkpoint(str(self.checkpoint), known))


class Transformed(Options):
    """What happens to the picture at random before the network sees it."""

    jitter: int = Field(8, ge=0, le=1024, description="shift by up to so many pixels")
    scale: float = Field(0.0, ge=0, le=1, description="enlarge or shrink by up to this part")
    rotate: float = Field(0.0, ge=0, le=180, description="turn by up to so many degrees")

    def transforms(self) -> list[Transform]:
        """Return the transforms that the options ask for."""
        made = [jitter(self.jitter)] if self.jitter else []
        return [*made, affine(self.scale, self.rotate)] if self.scale or self.rotate else made


class Regularised(Options):
    """What keeps pictures from noise."""

    l2: float = Field(0.0, ge=0, description="weight of the mean square of the pixels")
    total_variation: float = Field(0.0, ge=0, description="weight of the mean square of neighbours' differences")
    blur: float = Field(0.0, ge=0, le=50, description="blur by a Gaussian of so many pixels' standard deviation")
    blur_every: int = Field(4, ge=1, description="after how many steps to blur")
    clip_pixels: float = Field(0.0, ge=0, lt=100, description="percentage of pixels set to zero for a small norm")
    clip_gradients: float = Field(
        0.0, ge=0, lt=100, description="percentage of pixels set to zero for a small contribution to the score"
    )

    def penalties(self) -> list[tuple[float, Penalty]]:
        """Return the penalties that the options ask for."""
        return [(self.l2, p_norm), (self.total_variation, total_variation)]

    def edits(self, *, pixels: bool) -> list[tuple[int, Edit]]:
        """Return the edits that the options ask for.

        Raises:
            OptionError: there are some, and it is no pixels that are optimised.
        """
        made: list[tuple[int, Edit]] = []
        if self.blur:
            made.append((self.blur_every, blur(self.blur)))
        if self.clip_pixels:
            made.append((1, clip_pixels(self.clip_pixels)))
        if self.clip_gradients:
            made.append((1, clip_gradients(self.clip_gradients)))
        if made and not pixels:
            raise OptionError(
                "options 'blur', 'clip_pixels' and 'clip_gradients' change pixels; give parameterisation='pixels' too"
            )
        return made
