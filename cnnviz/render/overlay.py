"""A map over the photograph it explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .colour import colour
from .normalise import Scale, numbers


def to_pil(picture: Tensor) -> Image.Image:
    """Return a (3, H, W) or (1, H, W) picture in [0, 1] as an RGB image."""
    pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte().cpu()
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as a (3, H, W) float tensor in [0, 1]."""
    width, height = image.size
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.reshape(height, width, 3).permute(2, 0, 1).float() / 255


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an (h, w) map at another size: bilinear upwards, mean of areas downwards."""
    if tuple(values.shape) == size:
        return values
    bigger = size[0] >= values.shape[0] and size[1] >= values.shape[1]
    mode = "bilinear" if bigger else "area"
    return functional.interpolate(numbers(values)[None, None], size, mode=mode)[0, 0]


def resize(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """Return pictures or inputs, (N, C, H, W), at another (height, width): bilinear, antialiased; gradients flow."""
    if tuple(pictures.shape[2:]) == tuple(size):
        return pictures
    return functional.interpolate(pictures, tuple(size), mode="bilinear", antialias=True)


def overlay(picture: Tensor, values: Tensor, scale: Scale) -> Image.Image:
    """Lay a map over a photograph: where it is weak the (greyed) photograph shows, where it is strong the colour.

    Args:
        picture: (3, H, W) in [0, 1].
        values: (h, w), resized to the photograph.
        scale: what the colours stand for.
    """
    photo = numpy.asarray(to_pil(picture), dtype=numpy.float32)
    values = resize_map(values, (photo.shape[0], photo.shape[1]))
    grey = photo @ numpy.array([0.299, 0.587, 0.114], dtype=numpy.float32)
    ground = 0.35 * photo + 0.65 * grey[..., None]
    strength = torch.sqrt(scale.strength(values)).cpu().numpy()[..., None] * 0.8
    mixed = (1 - strength) * ground + strength * colour(values, scale)
    return Image.fromarray(mixed.round().clip(0, 255).astype(numpy.uint8))
