"""What a network makes of the images of one part of a data set, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.decoding import Decoded
from ..errors import InputError, LayerError
from ..models import Model, Survey, capture, know_calls, own_randomness, replicate, survey
from .tally import Histogram, Strongest


@dataclass(frozen=True)
class Recipe:
    """What is kept of each image, and how images are put together.

    Attributes:
        layers: full names of the layers.
        batch: images that the network sees at once.
        part: images whose results are written at once; a multiple of `batch`.
        top: how many of its strongest units are kept for each channel.
        thumbnail: side in pixels of the small pictures that are kept.
        exact: layers all of whose values are kept, so that quantiles are exact.
    """

    layers: tuple[str, ...]
    batch: int
    part: int
    top: int = 16
    thumbnail: int = 32
    exact: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Return what `to_json` wrote."""
        fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**fields)

    def batches(self, images: int, part: int) -> list[range]:
        """Return the numbers of the images in each batch of a part of so many images."""
        stop = min(images, (part + 1) * self.part)
        return [range(i, min(i + self.batch, stop)) for i in range(part * self.part, stop, self.batch)]

    def parts(self, images: int) -> int:
        """Return how many parts so many images make."""
        return -(-images // self.part)


@dataclass(frozen=True)
class Observed:
    """What was made of a part.

    Attributes:
        tensors: by name, see `Observer.observe`.
        numbers: which images of the data set the rows are.
        digests: SHA-256 of each image's file.
        left_out: number of an image that could not be read, and why.
    """

    tensors: dict[str, Tensor]
    numbers: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)


def flat(maps: Any, layer: str) -> Tensor:
    """Return what a layer returned as maps, (N, C, h, w); of (N, C) values as maps of one unit.

    Raises:
        LayerError: it is neither.
    """
    if isinstance(maps, Tensor) and maps.dim() in (2, 4) and maps.is_floating_point():
        return maps.detach() if maps.dim() == 4 else maps.detach()[:, :, None, None]
    told = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
    raise LayerError(f"layer '{layer}' returns {told}, expected maps (N, C, h, w) or values (N, C); name another")


class Observer:
    """A network made ready to look at many images; for one thread."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self._replica: nn.Module = replicate(model.module)
        self._survey: Survey | None = None

    def observe(self, batches: Iterable[list[Decoded]]) -> Observed:
        """Return what the network makes of the images of a part.

        Of layer number l: ``features.l`` (n, C), its maps' means; ``strongest.l`` (k, C) and ``places.l`` (k, C, 3),
        see `Strongest`, whose images are rows of this part; ``bins.l`` and ``counts.l``, a packed `Histogram`;
        ``values.l`` (C, n · h · w) where they are kept. Of each image ``thumbnails`` (n, 3, side, side) uint8; where
        the network returns (N, K) scores ``predictions`` (n,) and ``probabilities`` (n,).

        Raises:
            InputError: the network returns values that are not finite, or pictures have different sizes.
            LayerError: a layer returns no maps.
        """
        tallies = [_Tally(self.recipe, layer) for layer in self.recipe.layers]
        rows: list[dict[str, Tensor]] = []
        observed = Observed({})
        for batch in batches:
            pictures = [(image, image.picture) for image in batch if image.picture is not None]
            observed.left_out.update({image.number: image.why for image in batch if image.picture is None})
            if not pictures:
                continue
            if len({picture.shape for _, picture in pictures}) > 1:
                raise InputError("pictures have different sizes after preprocessing; give a preprocessing that crops")
            shown = torch.from_numpy(numpy.stack([picture for _, picture in pictures])).permute(0, 3, 1, 2)
            maps, made = self._looked_at(shown, batch[0].number)
            rows.append(made)
            for tally, seen in zip(tallies, maps, strict=True):
                tally.add(seen, len(observed.numbers))
            observed.numbers.extend(image.number for image, _ in pictures)
            observed.digests.extend(image.digest for image, _ in pictures)
        if rows:
            observed.tensors.update({name: torch.cat([made[name] for made in rows]) for name in rows[0]})
            for number, tally in enumerate(tallies):
                observed.tensors.update({f"{name}.{number}": tensor for name, tensor in tally.tensors().items()})
        return observed

    def _looked_at(self, pictures: Tensor, first: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the layers' maps of pictures, (n, 3, h, w) uint8, and what is kept of each; `first` is the first's."""
        x = self.model.normalisation.normalise(pictures.float() / 255).to(self.model.device, self.model.dtype)
        if self._survey is None:
            self._survey = survey(self.model.module, x)
            know_calls(self._replica, self._survey.counts if self._survey.fixed else {})
        drawing = own_randomness(x.device, first) if self._survey.draws else nullcontext()
        with torch.no_grad(), drawing, capture(self._replica, self.recipe.layers) as seen:
            output = self._replica(x)
        maps = [flat(values, layer) for layer, values in seen.values.items()]
        for layer, values in zip(self.recipe.layers, maps, strict=True):
            wrong = (~torch.isfinite(values.flatten(1))).any(1).nonzero()
            if len(wrong):
                raise InputError(
                    f"layer '{layer}' returns values that are not finite for image {first + int(wrong[0])} of the data "
                    "set; look at it and at the model's weights, or use a wider floating type"
                )
        made = {"thumbnails": thumbnails(pictures, self.recipe.thumbnail)}
        if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1:
            best = output.float().softmax(1).max(1)
            made["predictions"], made["probabilities"] = best.indices.int().cpu(), best.values.cpu()
        return maps, made


def features_of(
    model: Model, recipe: Recipe, images: Sequence[Image.Image], layer: int, *, pixels: bool = False
) -> Tensor:
    """Return the features of pictures at the recipe's layer of a number, (Q, C), or their small pictures' values.

    Pictures are as the network sees them, resized and cropped; the values are in [0, 1], (Q, 3 · side · side).
    """
    shown = [Decoded(i, numpy.asarray(image)) for i, image in enumerate(images)]
    batches = (shown[i : i + recipe.batch] for i in range(0, len(shown), recipe.batch))
    tensors = Observer(model, recipe).observe(batches).tensors
    return tensors["thumbnails"].flatten(1) / 255 if pixels else tensors[f"features.{layer}"]


class _Tally:
    """What is kept of one layer."""

    def __init__(self, recipe: Recipe, layer: str) -> None:
        self._top = recipe.top
        self._exact = layer in recipe.exact
        self._features: list[Tensor] = []
        self._values: list[Tensor] = []
        self._strongest: Strongest | None = None
        self._histogram: Histogram | None = None

    def add(self, maps: Tensor, first: int) -> None:
        """Take in maps, (n, C, h, w), of rows that are numbered from `first`."""
        self._features.append(maps.float().mean((2, 3)).cpu())
        found = Strongest.of(maps, first)
        self._strongest = Strongest.merged([self._strongest, found] if self._strongest else [found], self._top)
        self._histogram = self._histogram or Histogram.none(maps.shape[1])
        self._histogram.add(maps)
        if self._exact:
            self._values.append(maps.float().transpose(0, 1).flatten(1).cpu())

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name."""
        assert self._strongest is not None
        assert self._histogram is not None
        bins, counts = self._histogram.packed()
        made = {
            "features": torch.cat(self._features),
            "strongest": self._strongest.values,
            "places": self._strongest.places,
            "bins": bins,
            "counts": counts,
        }
        return {**made, "values": torch.cat(self._values, 1)} if self._exact else made


def thumbnails(pictures: Tensor, side: int) -> Tensor:
    """Return uint8 pictures, (n, 3, h, w), made small: (n, 3, side, side)."""
    return torch.nn.functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
