"""From a picture to what a network takes, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..render import to_tensor


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise a picture as the network was trained, and undo the normalisation.

    Attributes:
        resize: length of the shorter side in pixels, or (height, width); None leaves the size.
        crop: (height, width) cut from the middle; None leaves the size.
        mean: subtracted from each channel of the [0, 1] picture; three numbers, or one for a grey network.
        std: divided by, likewise.
        interpolation: "nearest", "bilinear" or "bicubic".
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    def picture(self, image: Image.Image) -> Image.Image:
        """Return the part of `image` that the network sees, at the size at which it sees it."""
        # torchvision is slow to import, and needed only once a picture is opened.
        from torchvision.transforms import InterpolationMode, functional

        if self.resize is not None:
            size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
            image = functional.resize(image, size, InterpolationMode(self.interpolation), antialias=True)
        if self.crop is not None:
            image = functional.center_crop(image, list(self.crop))
        return image

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return where boxes on a picture lie in the part that the network sees; those outside of it are left out.

        Args:
            boxes: (k, 4), left, top, right and bottom in pixels of the picture.
            size: (height, width) of the picture.
        """
        height, width = size
        if self.resize is not None:
            new = self.resize if isinstance(self.resize, tuple) else _shorter_side(size, self.resize)
        else:
            new = size
        scale = torch.tensor([new[1] / width, new[0] / height] * 2, dtype=torch.float64)
        moved = boxes.double() * scale
        seen = new
        if self.crop is not None:
            down, across = (round((have - want) / 2) for have, want in zip(new, self.crop, strict=True))
            moved, seen = moved - moved.new_tensor([across, down] * 2), self.crop
        most = moved.new_tensor([seen[1], seen[0]] * 2)
        moved = torch.minimum(moved.clamp(min=0), most)
        return moved[(moved[:, :2] < moved[:, 2:]).all(1)]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the network's input for `image`: (3, H, W), or (1, H, W) for a grey network, float32."""
        return self.normalise(to_tensor(self.picture(image)))

    def normalise(self, picture: Tensor) -> Tensor:
        """Return the network's input for a [0, 1] picture of shape (…, 3, H, W)."""
        if len(self.mean) == 1 and picture.shape[-3] == 3:
            picture = (picture * picture.new_tensor(_LUMA).reshape(3, 1, 1)).sum(-3, keepdim=True)
        return (picture - self._column(self.mean, picture)) / self._column(self.std, picture)

    def inverse(self, inputs: Tensor) -> Tensor:
        """Return the [0, 1] pictures (…, 3, H, W) that lead to these network inputs."""
        if inputs.shape[-3] != len(self.mean):
            raise InputError(f"inputs have {inputs.shape[-3]} channels, the preprocessing {len(self.mean)}")
        picture = inputs * self._column(self.std, inputs) + self._column(self.mean, inputs)
        return picture.clamp(0, 1).expand(*inputs.shape[:-3], 3, *inputs.shape[-2:])

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).reshape(-1, 1, 1)


def _shorter_side(size: tuple[int, int], length: int) -> tuple[int, int]:
    """Return the size at which the shorter side has this length, as torchvision rounds it."""
    short, long = min(size), max(size)
    other = int(length * long / short)
    return (length, other) if size[0] <= size[1] else (other, length)


_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's own conversion to grey
