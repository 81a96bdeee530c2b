"""Memory formats: what an operator makes lies as what it was made from."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """Return channels-last for a (N, C, H, W) tensor that is so and not contiguous too, otherwise contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def is_channels_first(x: Tensor) -> bool:
    """Whether (N, C, H, W) lies so by its strides, of axes of one element too: layers that are run on it go by them."""
    _, channels, height, width = x.shape
    return x.stride() == (channels * height * width, height * width, width, 1)


def empty(like: Tensor, shape: tuple[int, ...], layout: torch.memory_format | None = None) -> Tensor:
    """Return memory of the type and device of `like`, and of its format unless another is asked for, not filled."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout or memory_format(like))
