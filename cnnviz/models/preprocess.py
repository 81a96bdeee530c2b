"""From a picture to what a network takes, and back."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal, get_args

from PIL import Image
from torch import Tensor

from ..data import MAX_PIXELS
from ..errors import InputError, OptionError
from ..render import to_tensor

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise a picture as the network was trained, and undo the normalisation.

    Attributes:
        resize: length of the shorter side in pixels, or (height, width); None leaves the size.
        crop: (height, width) cut from the middle, or one number for both; None leaves the size. As torchvision does it,
            a smaller picture is put in the middle of a black one.
        mean: subtracted from each channel of the [0, 1] picture; three numbers, or one for a grey network.
        std: divided by, likewise.
        interpolation: "nearest", "bilinear" or "bicubic".

    Raises:
        OptionError: a size that is no whole number of pixels, a mean or std that is not a number for each channel, or
            an unknown interpolation.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        set_to = partial(object.__setattr__, self)
        set_to("resize", _size("resize", self.resize))
        crop = _size("crop", self.crop)
        set_to("crop", (crop, crop) if isinstance(crop, int) else crop)
        set_to("mean", _channels("mean", self.mean))
        set_to("std", _channels("std", self.std))
        if len(self.mean) != len(self.std):
            raise OptionError(
                f"preprocessing: got a mean of {len(self.mean)} channels and a std of {len(self.std)}, expected one "
                "number of each for each channel"
            )
        if min(self.std) <= 0:
            raise OptionError(f"preprocessing: got std {self.std}, which is divided by; expected numbers above 0")
        if self.interpolation not in get_args(Interpolation):
            expected = ", ".join(map(repr, get_args(Interpolation)))
            raise OptionError(f"preprocessing: got interpolation {self.interpolation!r}, expected one of {expected}")

    @property
    def delivers(self) -> tuple[int, int] | None:
        """(height, width) that pictures are cropped to, or None where they keep their own."""
        return self.crop if isinstance(self.crop, tuple) else None

    def picture(self, image: Image.Image) -> Image.Image:
        """Return the part of `image` that the network sees, at the size at which it sees it."""
        # torchvision is slow to import, and needed only once a picture is opened.
        from torchvision.transforms import InterpolationMode, functional

        if self.resize is not None:
            size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
            if len(size) == 1 and size[0] ** 2 * max(image.size) / min(image.size) > MAX_PIXELS:
                raise InputError(
                    f"a picture of {image.width} x {image.height} pixels is too long to be resized to {size[0]} on its "
                    "shorter side; crop it first"
                )
            image = functional.resize(image, size, InterpolationMode(self.interpolation), antialias=True)
        if self.delivers is not None:
            image = functional.center_crop(image, list(self.delivers))
        return image

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return where boxes on a picture lie in the part that the network sees; those outside of it are left out.

        Args:
            boxes: (k, 4), left, top, right and bottom in pixels of the picture.
            size: (height, width) of the picture.
        """
        from torchvision.transforms.v2 import functional  # slow to import, as above
        from torchvision.tv_tensors import BoundingBoxes

        moved: Any = BoundingBoxes(boxes.double(), format="XYXY", canvas_size=size)
        if self.resize is not None:
            moved = functional.resize(moved, [self.resize] if isinstance(self.resize, int) else list(self.resize))
        if self.delivers is not None:
            moved = functional.center_crop(moved, list(self.delivers))
        seen: Tensor = functional.clamp_bounding_boxes(moved).as_subclass(Tensor)
        return seen[(seen[:, :2] < seen[:, 2:]).all(1)]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the network's input for `image`: (3, H, W), or (1, H, W) for a grey network, float32."""
        return self.normalise(to_tensor(self.picture(image)))

    def normalise(self, picture: Tensor) -> Tensor:
        """Return the network's input for a [0, 1] picture of shape (…, 3, H, W)."""
        self._check()
        if len(self.mean) == 1 and picture.shape[-3] == 3:
            picture = (picture * picture.new_tensor(_LUMA).reshape(3, 1, 1)).sum(-3, keepdim=True)
        return (picture - self._column(self.mean, picture)) / self._column(self.std, picture)

    def inverse(self, inputs: Tensor) -> Tensor:
        """Return the [0, 1] pictures (…, 3, H, W) that lead to these network inputs."""
        if inputs.shape[-3] != len(self.mean):
            raise InputError(f"inputs have {inputs.shape[-3]} channels, the preprocessing {len(self.mean)}")
        self._check()
        picture = inputs * self._column(self.std, inputs) + self._column(self.mean, inputs)
        return picture.clamp(0, 1).expand(*inputs.shape[:-3], 3, *inputs.shape[-2:])

    @property
    def shows(self) -> bool:
        """Whether what the network takes can be shown as a picture."""
        return len(self.mean) in (1, 3)

    def _check(self) -> None:
        if not self.shows:
            raise InputError(
                f"pictures have 1 or 3 channels, and the network takes {len(self.mean)}; techniques that take a tensor "
                "(N, C, H, W) and make no picture work with it"
            )

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).reshape(-1, 1, 1)


def _size(name: str, given: Any) -> int | tuple[int, int] | None:
    """Return a size in pixels as it is, with whole numbers of Python's own.

    Raises:
        OptionError: neither None, nor a number, nor two.
    """
    if given is None:
        return None
    sides = list(given) if isinstance(given, (tuple, list)) else [given]
    try:
        whole = [operator.index(side) for side in sides]
    except TypeError:
        whole = []
    if len(whole) not in (1, 2) or min(whole) < 1 or any(isinstance(side, bool) for side in sides):
        raise OptionError(f"preprocessing: got {name} {given!r}, expected pixels, (height, width), or None")
    return whole[0] if len(whole) == 1 else (whole[0], whole[1])


def _channels(name: str, given: Any) -> tuple[float, ...]:
    """Return a number for each channel.

    Raises:
        OptionError: anything else.
    """
    numbers = tuple(given) if isinstance(given, Iterable) else ()
    if not numbers or not all(isinstance(number, Real) and math.isfinite(number) for number in numbers):
        raise OptionError(
            f"preprocessing: got {name} {given!r}, expected a tuple with a number for each channel, such as "
            "(0.5, 0.5, 0.5), or (0.5,) for a grey network"
        )
    return tuple(float(number) for number in numbers)


_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's own conversion to grey
