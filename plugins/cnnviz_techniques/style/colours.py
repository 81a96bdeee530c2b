"""Whose colours a painted picture has; all of [0, 1] pictures, (1, 3, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luminance(picture: Tensor) -> Tensor:
    """Return the picture in grey."""
    return (picture * picture.new_tensor(_LUMA).reshape(3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)


def painted_over(grey: Tensor, picture: Tensor) -> Tensor:
    """Return `grey` in the colours of a picture. Gatys 2016, "Preserving Color in Neural Artistic Style Transfer"."""
    return (grey + picture - luminance(picture)).clamp(0, 1)


def matched(style: Tensor, picture: Tensor) -> Tensor:
    """Return the style in colours whose mean and covariance are those of the picture; as above, section 4."""
    pixels, wanted = (image[0].flatten(1).double() for image in (style, picture))
    turn = _root(torch.cov(wanted)) @ torch.linalg.pinv(_root(torch.cov(pixels)), rtol=1e-4, hermitian=True)
    moved = turn @ (pixels - pixels.mean(1, keepdim=True)) + wanted.mean(1, keepdim=True)
    return moved.reshape(style.shape).to(style).clamp(0, 1)


def _root(covariance: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(covariance)
    return axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.mT
