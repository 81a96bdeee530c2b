"""What callers give as inputs: checked, put into a tensor, and turned back into pictures for display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Identity

from ..data import open_image
from ..errors import InputError
from ..models import Model, Preprocess
from ..targets import describe

Inputs: TypeAlias = Tensor | str | Path | Image.Image | Sequence[str | Path | Image.Image] | None


def prepare(inputs: Any, model: Model | None, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Return the samples, (N, C, H, W), as the model takes them, and the pictures, (N, 3, H, W) in [0, 1], they show.

    Args:
        inputs: what the caller gave.
        model: what they are for, or None.
        whole: leave pictures at their size; where nothing is known of the model's units, take them for [0, 1].

    Raises:
        InputError: neither a float tensor that the model can take, nor pictures that it can be fed.
    """
    samples = _checked(inputs, model) if isinstance(inputs, Tensor) else _opened(inputs, model, whole=whole)
    with torch.inference_mode(False), torch.no_grad():
        # A clone, which a faulty technique may write to, and which can take part in gradients if an inference tensor.
        samples = samples.detach().clone() if isinstance(inputs, Tensor) else samples
        return samples, _shown(samples, model) if whole else _pictures(samples, model)


def _checked(inputs: Tensor, model: Model | None) -> Tensor:
    got = f"inputs: got a tensor {tuple(inputs.shape)} {_short(inputs.dtype)} on {inputs.device}"
    if inputs.dim() != 4:
        hint = "; add the batch dimension with inputs[None]" if inputs.dim() == 3 else ""
        raise InputError(f"{got}, expected float (N, C, H, W) as the model takes it{hint}")
    if not inputs.is_floating_point():
        raise InputError(
            f"{got}, expected floating point as the model takes it; convert it and normalise as in training"
        )
    if inputs.numel() == 0:
        raise InputError(f"{got}, expected at least one sample with at least one pixel")
    if model is None or next(model.module.parameters(), None) is None:
        return inputs
    own = f"the model's weights are {_short(model.dtype)} on {model.device}"
    if inputs.device != model.device:
        raise InputError(f"{got}, but {own}; use inputs.to('{model.device}'), or move the model")
    if inputs.dtype != model.dtype and not torch.is_autocast_enabled(inputs.device.type):
        raise InputError(f"{got}, but {own}; use inputs.to({model.dtype}), or convert the model")
    return inputs


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _opened(inputs: Any, model: Model | None, *, whole: bool) -> Tensor:
    items = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not items:
        raise InputError("inputs: got an empty list, expected at least one picture")
    if all(isinstance(item, Tensor) for item in items):
        sizes = sorted({tuple(item.shape) for item in items})
        sized = f" of different sizes {', '.join(map(str, sizes))}; resize them to one and" if len(sizes) > 1 else ";"
        raise InputError(f"inputs: got a list of {len(items)} tensors{sized} torch.stack them to (N, C, H, W)")
    for item in items:
        if not isinstance(item, (str, Path, Image.Image)):
            expected = "a tensor (N, C, H, W), a path, a PIL image, or a list of these two"
            raise InputError(f"inputs: got {describe(item)}, expected {expected}")
    if model is None and not whole:
        raise InputError("inputs: got a picture, but there is no model to prepare it for; give a tensor (N, C, H, W)")
    return (model or Model(Identity())).prepare([open_image(item) for item in items], whole=whole)


def _shown(samples: Tensor, model: Model | None) -> Tensor:
    """Return the pictures behind samples in known units.

    Raises:
        InputError: they are in other units than [0, 1], and nothing says in which.
    """
    units = Preprocess() if model is None else model.normalisation
    if samples.shape[1] != len(units.mean):
        raise InputError(f"inputs: got a tensor with {samples.shape[1]} channels, expected {len(units.mean)}")
    low, high = float(samples.min()), float(samples.max())
    if (model is None or model.preprocess is None) and not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(
            f"inputs: got values from {low:.3g} to {high:.3g}, and no preprocessing that tells what they show; give "
            "pictures in [0, 1], or cnnviz.load_model(module, preprocess=cnnviz.Preprocess(mean=…, std=…))"
        )
    return units.inverse(samples.float()).cpu().contiguous()


_ROUNDING = 1e-3


def _pictures(samples: Tensor, model: Model | None) -> Tensor:
    preprocess = model.preprocess if model is not None else None
    if preprocess is not None and preprocess.shows and len(preprocess.mean) == samples.shape[1]:
        return preprocess.inverse(samples.float()).cpu().contiguous()
    # How the numbers became what they are is not known: each sample is stretched to [0, 1].
    plain = samples.float().cpu()
    plain = plain if plain.shape[1] == 3 else plain.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = plain.amin((1, 2, 3), keepdim=True), plain.amax((1, 2, 3), keepdim=True)
    return (plain - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
