"""Style as statistics of features: which layers, what is wanted of them, and how far a picture is from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError, LayerError, OptionError
from ..models import Layer
from ..models import layers as described
from ..ops import gram_matrix
from .features import by_size, features
from .tiles import with_slope

_SIZES = 5


def style_layers(model: nn.Module, picture: Tensor, named: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the layers whose Gram matrices make up a picture's style.

    Args:
        model: the network.
        picture: the style or texture, (1, C, H, W).
        named: layers that the user chose. Otherwise it is the first activation at each of the five largest map sizes,
            which for VGG are Gatys' relu1_1 to relu5_1, as far as its units see no more than the picture.

    Raises:
        LayerError: a layer that was named sees more than the picture or was named twice, or no layer sees so little.
    """
    called = described(model, picture)
    known = _by_name(called)
    full = [known[name].name if name in known else name for name in named]
    twice = next((name for name, whole in zip(named, full, strict=True) if full.count(whole) > 1), None)
    if twice is not None:
        raise LayerError(f"style layer '{twice}' is named twice; give it more weight instead")
    wanted = tuple(named) or tuple(group[0].name for group in by_size(called)[:_SIZES])
    return _fitting(wanted, known, picture, every=bool(named))


def shares_that_fit(model: nn.Module, picture: Tensor, shares: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return of style layers with their weights those whose units see no more than a picture, (1, C, H, W).

    Raises:
        LayerError: none of those with a weight does.
    """
    known = _by_name(described(model, picture))
    kept = _fitting([name for name, weight in shares if weight], known, picture)
    return [(name, weight) for name, weight in shares if name in kept]


def _by_name(called: Sequence[Layer]) -> dict[str, Layer]:
    """Return layers by each of the names that they can be given."""
    known: dict[str, Layer] = {}
    for layer in called:
        module, _, call = layer.name.partition("#")
        # A name alone is the module's last call.
        known |= dict.fromkeys((layer.name, module, f"{module}#{call or 0}"), layer)
    return known


def _fitting(
    names: Sequence[str], known: Mapping[str, Layer], picture: Tensor, *, every: bool = False
) -> tuple[str, ...]:
    """Return the layers whose units see no more than the picture.

    Raises:
        LayerError: one does not where every one is wanted, or none does.
    """
    size = picture.shape[2:]

    def fits(name: str) -> bool:
        field = known[name].receptive_field
        return field is not None and field.size[0] <= size[0] and field.size[1] <= size[1]

    unfit = [name for name in names if name in known and not fits(name)]
    if unfit and (every or len(unfit) == len(names)):
        field = known[unfit[0]].receptive_field
        sees = f"{field.size[0]} x {field.size[1]} pixels" if field else "the whole picture"
        raise LayerError(
            f"layer '{unfit[0]}' sees {sees}, more than the style image of {size[0]} x {size[1]}; give a larger image, "
            "or layers that see less (cnnviz layers shows receptive fields)"
        )
    return tuple(name for name in names if name not in unfit)


def layer_shares(layers: Sequence[str], weights: Sequence[float] = ()) -> list[tuple[str, float]]:
    """Return style layers, each with its weight; all alike where none are given.

    Raises:
        OptionError: not one weight for each layer, or a sum of 0.
    """
    shares = weights or (1.0,) * len(layers)
    if len(shares) != len(layers) or not sum(shares):
        told = f"got {len(shares)} that sum to {sum(shares):g}, expected one for each of {', '.join(layers)}"
        raise OptionError(f"option 'style_layer_weights': {told}, and a sum above 0")
    return list(zip(layers, shares, strict=True))


@dataclass(frozen=True)
class Style:
    """What a picture's style is: a Gram matrix for each layer, divided by its number of entries and places.

    Attributes:
        grams: (1, C, C) for each layer, or (N, C, C) where each of N pictures has a style of its own.
        mask: where the style is wanted, (1, 1, H, W) in [0, 1]; None is everywhere.
    """

    grams: tuple[Tensor, ...]
    mask: Tensor | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        layers: Sequence[str],
        picture: Tensor,
        mask: Tensor | None = None,
        *,
        tile: int | None = None,
    ) -> Style:
        """Return the style of a picture, without gradients.

        Args:
            model: the network.
            layers: whose Gram matrices make it up.
            picture: (1, C, H, W).
            mask: where the style is wanted, see above.
            tile: longest side, in pixels, of the pieces in which the picture is seen; None takes it whole.

        Raises:
            InputError: a layer sees nothing in it.
        """
        seen: list[list[_Mean]] = []
        with torch.no_grad():
            for piece in Piece.all((picture.shape[2], picture.shape[3]), tile):
                maps = [piece.core(found) for found in features(model, layers, piece.cut(picture))]
                seen.append([_mean(gram_matrix(found), found) for found in maps])
        grams = tuple(_together(seen)[0])
        for name, gram in zip(layers, grams, strict=True):
            if not bool(gram.any()):
                raise InputError(f"layer '{name}' is all zero on the style image; name other layers, or another image")
        return cls(grams, mask)

    @classmethod
    def blend(cls, styles: Sequence[Style], weights: Sequence[float]) -> Style:
        """Return the weighted mean of several styles."""
        shares = torch.tensor(weights, dtype=torch.float64, device="cpu") / sum(weights)
        stacked = (torch.cat(grams) for grams in zip(*(style.grams for style in styles), strict=True))
        return cls(tuple((grams * shares.to(grams)[:, None, None]).sum(0, keepdim=True) for grams in stacked))

    @classmethod
    def each(cls, styles: Sequence[Style]) -> Style:
        """Return a style that is another for each of N pictures."""
        return cls(tuple(torch.cat(grams) for grams in zip(*(style.grams for style in styles), strict=True)))


class StyleLoss:
    """How far pictures are from wanted styles and wanted content, and from exciting layers.

    Distances are squared, and relative to the squared size of what is wanted, so that a weight means the same for every
    layer and network; but for that they are Gatys 2016, equations 1 and 5. A picture that is larger than `tile` is seen
    in pieces, each with a margin: first for the Gram matrices, which are the whole picture's, then for gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        styles: Sequence[tuple[float, Style]],
        style_layers: Sequence[tuple[str, float]],
        *,
        picture: Tensor | None = None,
        content_layers: Sequence[tuple[str, float]] = (),
        dream_layers: Sequence[tuple[str, float]] = (),
        tile: int | None = None,
    ) -> None:
        """Prepare the loss.

        Args:
            model: the network.
            styles: each with its weight.
            style_layers: each with its weight.
            picture: whose content is wanted, (1, C, H, W), or for each of N pictures another, (N, C, H, W).
            content_layers: each with its weight.
            dream_layers: what is to be excited more than `picture` excites it, each with its weight.
            tile: longest side of a piece, in pixels; None takes every picture whole.
        """
        self._model = model
        self._styles = list(styles)
        self._style_layers = list(style_layers)
        self._content_layers = list(content_layers)
        self._dream_layers = list(dream_layers)
        self._layers = tuple(dict.fromkeys(name for name, _ in (*style_layers, *content_layers, *dream_layers)))
        self._tile = tile
        self._wanted: list[dict[str, Tensor]] = []  # the picture's features, for each piece
        self._sizes: dict[str, Tensor] = {}  # their mean square, for each layer
        if picture is not None and (content_layers or dream_layers):
            self._see(picture)

    def _see(self, picture: Tensor) -> None:
        names = tuple(dict.fromkeys(name for name, _ in (*self._content_layers, *self._dream_layers)))
        with torch.no_grad():
            self._wanted = [self._maps(picture, piece, names) for piece in self.pieces(picture)]
        squares = [[_mean(maps.square().mean((1, 2, 3)), maps) for maps in seen.values()] for seen in self._wanted]
        sizes, _ = _together(squares)
        tiny = torch.finfo(picture.dtype).tiny
        self._sizes = {name: size.clamp(min=tiny) for name, size in zip(self._wanted[0], sizes, strict=True)}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the loss of pictures, (N, C, H, W) -> (N,); gradients flow."""
        pieces = self.pieces(x)
        if len(pieces) == 1:
            return self.judged([mean for mean, _ in self.statistics(x, 0, pieces[0])])
        return with_slope(x, lambda picture: self._in_pieces(picture, pieces))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weighted distances from the styles and the content, and the excitement, (N,) each."""
        seen, _ = self.whole(x, self.pieces(x))
        return self.distances(seen)

    def whole(self, x: Tensor, pieces: Sequence[Piece]) -> tuple[list[Tensor], list[int]]:
        """Return what is seen of the whole picture, each a mean, and over how many places."""
        return _together([self.statistics(x, number, piece) for number, piece in enumerate(pieces)])

    def pieces(self, x: Tensor) -> list[Piece]:
        """Return the pieces in which such a picture is seen."""
        return Piece.all((x.shape[2], x.shape[3]), self._tile)

    def statistics(self, x: Tensor, number: int, piece: Piece) -> list[_Mean]:
        """Return what is seen of a piece, each a mean over places.

        First the Gram matrices, (N, C, C), of each style at each layer, then mean squares, (N,): the distance from the
        content at each of its layers, and the excitement of each layer to dream of.
        """
        maps = self._maps(x, piece, self._layers)
        found: dict[tuple[str, int], _Mean] = {}  # styles without masks share their Gram matrices
        keys = [(name, id(style.mask)) for _, style in self._styles for name, _ in self._style_layers]
        masks = {id(style.mask): style.mask for _, style in self._styles}
        for name, mask in keys:
            if (name, mask) not in found:
                found[name, mask] = _mean(gram_matrix(_masked(maps[name], masks[mask], piece)), maps[name])
        seen = [found[key] for key in keys]
        for name, _ in self._content_layers:
            squares = functional.mse_loss(
                maps[name], self._wanted[number][name].expand_as(maps[name]), reduction="none"
            )
            apart = squares.mean((1, 2, 3))
            seen.append(_mean(apart / self._sizes[name], maps[name]))
        for name, _ in self._dream_layers:
            seen.append(_mean(maps[name].square().mean((1, 2, 3)) / self._sizes[name], maps[name]))
        return seen

    def judged(self, statistics: Sequence[Tensor]) -> Tensor:
        """Return the loss that follows from what is seen of the whole picture, (N,)."""
        style, content, dream = self.distances(statistics)
        return style + content - dream

    def distances(self, statistics: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `parts` does, from what is seen of the whole picture."""
        left = iter(statistics)
        nothing = statistics[0].new_zeros(len(statistics[0]))
        total = sum(weight for _, weight in self._style_layers)
        style, content, dream = nothing, nothing, nothing
        for weight, wanted in self._styles:
            for (_, share), gram in zip(self._style_layers, wanted.grams, strict=True):
                apart = (next(left) - gram).square().sum((1, 2)) / gram.square().sum((1, 2))
                style = style + weight * share / total * apart
        for _, weight in self._content_layers:
            content = content + weight * next(left)
        for _, weight in self._dream_layers:
            dream = dream + weight * next(left)
        return style, content, dream

    def _in_pieces(self, x: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """Return losses and slope: all pieces are seen for what the loss depends on, then each for its gradient."""
        whole, counts = self.whole(x, pieces)
        whole = [seen.requires_grad_() for seen in whole]
        with torch.enable_grad():
            losses = self.judged(whole)
            pulls = torch.autograd.grad(losses.sum(), whole)
        slope = torch.zeros_like(x)
        for number, piece in enumerate(pieces):
            with torch.enable_grad():
                part = x.detach().requires_grad_()
                seen = zip(self.statistics(part, number, piece), counts, pulls, strict=True)
                pulled = [(mean * pull).sum() * (count / total) for (mean, count), total, pull in seen if count]
                if pulled:
                    slope += torch.autograd.grad(torch.stack(pulled).sum(), part)[0]
        return losses.detach(), slope

    def _maps(self, x: Tensor, piece: Piece, layers: Sequence[str]) -> dict[str, Tensor]:
        seen = features(self._model, layers, piece.cut(x))
        # Sums over many places would lose too much in half precision.
        return {
            name: piece.core(maps.to(torch.promote_types(maps.dtype, torch.float32)))
            for name, maps in zip(layers, seen, strict=True)
        }


@dataclass(frozen=True)
class Piece:
    """A part of a picture, and the margin around it that its units see.

    Attributes:
        inner: its rows and columns.
        outer: those of it and its margin.
    """

    inner: tuple[slice, slice]
    outer: tuple[slice, slice]

    @classmethod
    def all(cls, size: tuple[int, int], tile: int | None) -> list[Piece]:
        """Return pieces that cover a picture; they begin where every layer's grid has a place.

        Raises:
            OptionError: the longest side of a piece leaves nothing between its margins.
        """
        if tile is None or max(size) <= tile:
            whole = slice(0, size[0]), slice(0, size[1])
            return [cls(whole, whole)]
        if tile < LEAST_TILE:
            raise OptionError(f"tile: got {tile}, expected at least {LEAST_TILE} pixels, or a picture of no more")
        step = (tile - 2 * _MARGIN) // _GRID * _GRID
        # Of each row of pieces, and of each column, its inner and its outer places.
        rows, columns = (
            [
                (slice(a, min(a + step, length)), slice(max(0, a - _MARGIN), min(length, a + step + _MARGIN)))
                for a in range(0, length, step)
            ]
            for length in size
        )
        return [cls((y, x), (around_y, around_x)) for (y, around_y), (x, around_x) in product(rows, columns)]

    def cut(self, x: Tensor) -> Tensor:
        """Return the part with its margin."""
        return x[..., self.outer[0], self.outer[1]]

    def core(self, maps: Tensor) -> Tensor:
        """Return of maps of the part with its margin those of the part alone; none where no place lies in it."""
        if self.inner == self.outer:
            return maps
        places = []
        for inner, outer, length in zip(self.inner, self.outer, maps.shape[2:], strict=True):
            scale = length / (outer.stop - outer.start)
            start = round((inner.start - outer.start) * scale)
            places.append(slice(start, max(start + 1, round((inner.stop - outer.start) * scale))))
        return maps[..., places[0], places[1]]


_GRID = 32  # pixels; the stride of the deepest layers of usual networks
_MARGIN = 64
LEAST_TILE = _GRID + 2 * _MARGIN
"""The least longest side of a piece, in pixels."""


_Mean = tuple[Tensor, int]
"""A mean over places, and how many."""


def _mean(value: Tensor, maps: Tensor) -> _Mean:
    return value, maps.shape[2] * maps.shape[3]


def _together(pieces: Sequence[Sequence[_Mean]]) -> tuple[list[Tensor], list[int]]:
    """Return the means over all pieces, and over how many places; a mean over none is left out."""
    counts = [sum(count for _, count in parts) for parts in zip(*pieces, strict=True)]
    means = [
        torch.stack([value * (count / total) for value, count in parts if count]).sum(0)
        for parts, total in zip(zip(*pieces, strict=True), counts, strict=True)
    ]
    return means, counts


def _masked(maps: Tensor, mask: Tensor | None, piece: Piece) -> Tensor:
    if mask is None or not maps.numel():
        return maps
    # Gatys 2017, "Controlling Perceptual Factors", equation 4: features times a mask of mean square 1.
    here = mask[..., piece.inner[0], piece.inner[1]].to(maps)
    small = functional.interpolate(here, maps.shape[2:], mode="area")
    return maps * (small / mask.to(maps).square().mean().sqrt())
