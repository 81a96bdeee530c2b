"""What a network makes of the images of one part of a data set, in one pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Final

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.decoding import Decoded
from ..errors import InputError, LayerError
from ..models import Model, Survey, capture, know_calls, own_randomness, replicate, survey
from .streams import in_order, thread_count, threads
from .tally import Histogram, Strongest

_MERGED: Final = 16  # batches whose strongest units are merged at once


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
        left_out: number of an image that could not be read, or of which the network makes no finite values, and why.
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
    raise no_maps(layer, str(tuple(maps.shape)) if isinstance(maps, Tensor) else type(maps).__name__)


def no_maps(layer: str, told: str) -> LayerError:
    """Return what is raised where a layer returns what an index cannot keep."""
    return LayerError(f"layer '{layer}' returns {told}, expected maps (N, C, h, w) or values (N, C); name another")


@dataclass(frozen=True)
class _Look:
    """What the network makes of a batch: what is kept of each layer, and by name of each of its pictures."""

    batch: list[Decoded]
    shown: list[Decoded]
    layers: list[_Seen] = field(default_factory=list)
    made: dict[str, Tensor] = field(default_factory=dict)


class Observer:
    """A network made ready to look at many images; for one thread, which on a CPU lets two others look."""

    def __init__(self, model: Model, recipe: Recipe, known: Survey | None = None) -> None:
        self.model = model
        self.recipe = recipe
        self._known = known or survey(model.module, model.example())
        self._pool = threads(2) if model.device.type == "cpu" and thread_count() > 1 else None
        self._idle: SimpleQueue[nn.Module] = SimpleQueue()  # replicas: passes at once may note things on them

    def observe(self, batches: Iterable[list[Decoded]], looked_at: Callable[[int], None] = lambda _: None) -> Observed:
        """Return what the network makes of the images of a part.

        Of layer number l: ``features.l`` (n, C), its maps' means; ``strongest.l`` (k, C) and ``places.l`` (k, C, 3),
        see `Strongest`, whose images are rows of this part; ``bins.l`` and ``counts.l``, a packed `Histogram`;
        ``values.l`` (C, n · h · w) where they are kept. Of each image ``thumbnails`` (n, 3, side, side) uint8; where
        the network returns (N, K) scores ``predictions`` (n,) and ``probabilities`` (n,).

        Args:
            batches: the images of the part, taken as they are needed.
            looked_at: called after each batch with the number of its images.

        Raises:
            InputError: pictures have different sizes.
            LayerError: a layer returns no maps.
        """
        tallies = [_Tally(self.recipe, layer) for layer in self.recipe.layers]
        rows: list[dict[str, Tensor]] = []
        observed = Observed({})

        def look(batch: list[Decoded]) -> _Look:
            return self._look(batch, tallies)

        # Closed whatever happens, so that nobody goes on looking.
        with closing(in_order(look, batches, streams=2 if self._pool else 1, pool=self._pool)) as looks:
            for one in looks:
                first = len(observed.numbers)
                observed.left_out.update({image.number: image.why for image in one.batch if image.picture is None})
                if one.shown:
                    rows.append(one.made)
                    for tally, seen in zip(tallies, one.layers, strict=True):
                        tally.add(seen, first)
                    observed.numbers.extend(image.number for image in one.shown)
                    observed.digests.extend(image.digest for image in one.shown)
                looked_at(len(one.batch))
        if rows:
            observed.tensors.update({name: torch.cat([made[name] for made in rows]) for name in rows[0]})
            for number, tally in enumerate(tallies):
                observed.tensors.update({f"{name}.{number}": tensor for name, tensor in tally.tensors().items()})
        return observed

    def _look(self, batch: list[Decoded], tallies: list[_Tally]) -> _Look:
        pictures = [(image, image.picture) for image in batch if image.picture is not None]
        if not pictures:
            return _Look(batch, [])
        if len({picture.shape for _, picture in pictures}) > 1:
            raise InputError("pictures have different sizes after preprocessing; give a preprocessing that crops")
        shown = torch.from_numpy(numpy.stack([picture for _, picture in pictures])).permute(0, 3, 1, 2)
        x = self.model.normalisation.normalise(shown.float() / 255).to(self.model.device, self.model.dtype)
        first = batch[0].number
        maps, output = self._passed(x, first)
        known = torch.ones(len(pictures), dtype=torch.bool, device="cpu")
        for layer, values in zip(self.recipe.layers, maps, strict=True):
            finite = torch.isfinite(values.flatten(1)).all(1).cpu()
            why = f"layer '{layer}' returns values that are not finite; look at it, or use a wider floating type"
            unknown = {pictures[int(row)][0].number for row in (known & ~finite).nonzero()}
            batch = [replace(one, picture=None, why=why) if one.number in unknown else one for one in batch]
            known &= finite
        if not bool(known.all()):
            pictures = [one for one, there in zip(pictures, known.tolist(), strict=True) if there]
            if not pictures:
                return _Look(batch, [])
            rows = known.nonzero()[:, 0]
            shown, maps = shown[rows], [values[rows.to(values.device)] for values in maps]
            output = output[rows.to(output.device)] if isinstance(output, Tensor) else output
        made = {"thumbnails": thumbnails(shown, self.recipe.thumbnail)}
        if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1:
            best = output.float().softmax(1).max(1)
            made["predictions"], made["probabilities"] = best.indices.int().cpu(), best.values.cpu()
        layers = [tally.look(values) for tally, values in zip(tallies, maps, strict=True)]
        return _Look(batch, [image for image, _ in pictures], layers, made)

    def _passed(self, x: Tensor, seed: int) -> tuple[list[Tensor], Any]:
        """Return the layers' maps of network inputs, and what the network returns."""
        replica = self._replica()
        drawing = own_randomness(x.device, seed) if self._known.draws else nullcontext()
        try:
            # Whatever precision the caller computes in, features are the network's own.
            own = torch.autocast(x.device.type, enabled=False)
            with torch.no_grad(), own, drawing, capture(replica, self.recipe.layers) as seen:
                output = replica(x)
        finally:
            self._idle.put(replica)
        return [flat(values, layer) for layer, values in seen.values.items()], output

    def _replica(self) -> nn.Module:
        """Return a replica that nobody uses."""
        try:
            return self._idle.get_nowait()
        except Empty:
            made = replicate(self.model.module)
            know_calls(made, self._known.counts if self._known.fixed else {})
            return made


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


@dataclass(frozen=True)
class _Seen:
    """What is kept of one layer's maps of a batch."""

    features: Tensor
    strongest: Strongest
    values: Tensor | None


class _Tally:
    """What is kept of one layer."""

    def __init__(self, recipe: Recipe, layer: str) -> None:
        self._top = recipe.top
        self._exact = layer in recipe.exact
        self._features: list[Tensor] = []
        self._values: list[Tensor] = []
        self._strongest: list[Strongest] = []
        self._histogram: Histogram | None = None
        self._counting = threading.Lock()

    def look(self, maps: Tensor) -> _Seen:
        """Count the values of maps, (n, C, h, w), in any order, in several threads, and return what `add` takes in."""
        with self._counting:
            self._histogram = self._histogram or Histogram.none(maps.shape[1])
            self._histogram.add(maps)
        values = maps.float().transpose(0, 1).flatten(1).cpu() if self._exact else None
        return _Seen(maps.float().mean((2, 3)).cpu(), Strongest.of(maps, 0), values)

    def add(self, seen: _Seen, first: int) -> None:
        """Take in what `look` made of the next batch, whose rows are numbered from `first`."""
        self._features.append(seen.features)
        self._strongest.append(seen.strongest.shifted(first))
        if len(self._strongest) == _MERGED:
            self._strongest = [Strongest.merged(self._strongest, self._top)]
        if seen.values is not None:
            self._values.append(seen.values)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name."""
        assert self._histogram is not None
        strongest = Strongest.merged(self._strongest, self._top)
        bins, counts = self._histogram.packed()
        made = {
            "features": torch.cat(self._features),
            "strongest": strongest.values,
            "places": strongest.places,
            "bins": bins,
            "counts": counts,
        }
        return {**made, "values": torch.cat(self._values, 1)} if self._exact else made


def thumbnails(pictures: Tensor, side: int) -> Tensor:
    """Return uint8 pictures, (n, 3, h, w), made small: (n, 3, side, side)."""
    return torch.nn.functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
