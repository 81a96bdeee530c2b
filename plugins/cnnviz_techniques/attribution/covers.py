"""What a window of an image is covered by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cnnviz import OptionError, Perturbation, Request
from cnnviz.incremental import cropped
from cnnviz.ops import occlude


class Cover:
    """Makes patches for boxes of the inputs, which lie in memory as they do."""

    def __init__(self, request: Request, baseline: object, window: tuple[int, int]) -> None:
        self._images = request.inputs
        self._layout = torch.channels_last if _channels_last(self._images) else torch.contiguous_format
        self._everywhere: Tensor | None = None  # the same for all images, (C, 1 or H, 1 or W)
        self._ways: Sequence[Perturbation] = []  # one for each image
        if baseline == "inpaint":
            self._ways = [inpainted] * len(self._images)
        elif baseline == "blur":
            self._ways = [_cut(image[None]) for image in blurred(self._images, window)]
        elif baseline == "noise":
            self._ways = [_cut(image[None]) for image in noise(self._images, request.generator)]
        elif callable(baseline):
            self._ways = [_checked(baseline)] * len(self._images)
        else:
            self._everywhere = request.baseline(baseline)
            self._ways = [_cut(self._everywhere[None])] * len(self._images)

    def patches(self, number: int, boxes: Tensor) -> Tensor:
        """Return what is put into boxes (k, 4) of one size of the image of this number: (k, C, height, width)."""
        return self._ways[number](self._images[number : number + 1], boxes).contiguous(memory_format=self._layout)

    def whole(self, chosen: Tensor) -> Tensor:
        """Return images of which a box is covered, (k, C, H, W), from (k, 5): the image's number and the box."""
        if self._everywhere is not None:
            return occlude(self._images, chosen, self._everywhere, channels_last=self._layout == torch.channels_last)
        made = self._images[chosen[:, 0]].contiguous(memory_format=self._layout)
        sizes = chosen[:, 2::2] - chosen[:, 1::2]
        kinds, kind = torch.unique(torch.cat([chosen[:, :1], sizes], 1), dim=0, return_inverse=True)
        for one, (number, height, width) in enumerate(kinds.tolist()):
            rows = (kind == one).nonzero()[:, 0]
            if height * width == 0:  # beyond the border
                continue
            patches = self.patches(number, chosen[rows, 1:])
            for row, patch in zip(rows.tolist(), patches, strict=True):
                top, bottom, left, right = chosen[row, 1:].tolist()
                made[row, :, top:bottom, left:right] = patch
        return made


def inpainted(image: Tensor, boxes: Tensor) -> Tensor:
    """Fill boxes smoothly from what surrounds them, (1, C, H, W) and (k, 4) of one size -> (k, C, h, w).

    Each pixel is the mean of its four neighbours (Laplace's equation), or of those that it has at the image's border.
    A box that is all of the image gets the image's mean.
    """
    top, bottom, left, right = boxes.unbind(1)
    height, width = _size(boxes)
    there = torch.stack([top > 0, bottom < image.shape[2], left > 0, right < image.shape[3]], 1)
    made = image.mean((2, 3), keepdim=True).repeat(len(boxes), 1, height, width)
    kinds, kind = torch.unique(there, dim=0, return_inverse=True)
    for one, (above, below, before, after) in enumerate(kinds.tolist()):
        rows = (kind == one).nonzero()[:, 0]
        sides = torch.zeros(len(rows), image.shape[1], height, width, dtype=torch.double, device=image.device)
        for is_there, place, y, x, size in (
            (above, (..., slice(0, 1), slice(None)), top - 1, left, (1, width)),
            (below, (..., slice(-1, None), slice(None)), bottom, left, (1, width)),
            (before, (..., slice(0, 1)), top, left - 1, (height, 1)),
            (after, (..., slice(-1, None)), top, right, (height, 1)),
        ):
            if is_there:
                sides[place] += cropped(image, torch.stack([y, x], 1)[rows], size)
        if above or below or before or after:
            (low, down), (high, across) = _modes(height, above, below), _modes(width, before, after)
            down, across, slopes = down.to(sides), across.to(sides), (low[:, None] + high).to(sides)
            made[rows] = (down @ ((down.T @ sides @ across) / slopes) @ across.T).to(image)
    return made


def _modes(count: int, first: bool, last: bool) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and the eigenvectors of what a row of pixels differ from their neighbours in it.

    Args:
        count: how many pixels.
        first: whether there is a neighbour before them.
        last: whether there is one after them.
    """
    differences = torch.zeros(count, count, dtype=torch.double, device="cpu")
    differences.diagonal().fill_(2)
    differences.diagonal(1).fill_(-1)
    differences.diagonal(-1).fill_(-1)
    differences[0, 0] -= 0 if first else 1
    differences[-1, -1] -= 0 if last else 1
    values, vectors = torch.linalg.eigh(differences)
    return values, vectors


def blurred(images: Tensor, window: tuple[int, int]) -> Tensor:
    """Blur images by a Gaussian of half a window's standard deviation each way; at the border by what is there."""
    down, across = (_gaussian(side, span / 2).to(images) for side, span in zip(images.shape[2:], window, strict=True))
    return down @ images @ across.T


def _gaussian(side: int, deviation: float) -> Tensor:
    places = torch.arange(side, dtype=torch.double, device="cpu")
    weights = (-0.5 * ((places - places[:, None]) / deviation).square()).exp()
    return weights / weights.sum(1, keepdim=True)


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal noise of each image's own mean and standard deviation, channel by channel; drawn once for all."""
    drawn = torch.randn(images.shape[1:], generator=generator, dtype=torch.double, device="cpu").to(images)
    deviation, mean = torch.std_mean(images, (2, 3), correction=0, keepdim=True)
    return mean + deviation * drawn


def _cut(picture: Tensor) -> Perturbation:
    """Return the way to cover boxes by the same places of a picture (1, C, H, W) or of one colour (1, C, 1, 1)."""

    def cut(image: Tensor, boxes: Tensor) -> Tensor:
        if picture.shape[2:] == (1, 1):
            return picture.expand(len(boxes), -1, *_size(boxes))
        return cropped(picture, boxes[:, ::2].contiguous(), _size(boxes))

    return cut


def _checked(perturb: Callable[[Tensor, Tensor], object]) -> Perturbation:
    """Return a user's way to cover boxes, which gets copies, and whose patches must fit."""

    def checked(image: Tensor, boxes: Tensor) -> Tensor:
        made = perturb(image.clone(), boxes.clone())
        want = (len(boxes), image.shape[1], *_size(boxes))
        if not isinstance(made, Tensor):
            got = f"a {type(made).__name__}"
        elif made.shape != want or made.dtype != image.dtype or made.device != image.device:
            got = f"{tuple(made.shape)} {made.dtype} on {made.device}"
        else:
            return made.detach()
        raise OptionError(
            f"option 'baseline' of 'occlusion': the function returned {got}, expected patches {want} {image.dtype} on "
            f"{image.device} for the {len(boxes)} boxes that it was given"
        )

    return checked


def _size(boxes: Tensor) -> tuple[int, int]:
    """Return (height, width) of boxes of one size."""
    height, width = (boxes[0, 1::2] - boxes[0, ::2]).tolist()
    return height, width


def _channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
