"""From a picture to what a network takes, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from ..data import MAX_PIXELS
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
            if len(size) == 1 and size[0] ** 2 * max(image.size) / min(image.size) > MAX_PIXELS:
                raise InputError(
                    f"a picture of {image.width} x {image.height} pixels is too long to be resized to {size[0]} on its "
                    "shorter side; crop it first"
                )
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
        from torchvision.transforms.v2 import functional  # slow to import, as above
        from torchvision.tv_tensors import BoundingBoxes

        moved: Any = BoundingBoxes(boxes.double(), format="XYXY", canvas_size=size)
        if self.resize is not None:
            moved = functional.resize(moved, [self.resize] if isinstance(self.resize, int) else list(self.resize))
        if self.crop is not None:
            moved = functional.center_crop(moved, list(self.crop))
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


_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's own conversion to grey
