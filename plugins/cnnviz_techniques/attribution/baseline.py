"""What stands for "nothing to see": a number, a number for each channel, or an image."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import Tensor

from cnnviz import Field, ImageOption, InputError, OptionError, Request


def _number_or_numbers(value: Any) -> Any:
    """Read the command line's "0.5" and "0.1,0.2,0.3"; everything else is left to the field's own types."""
    if isinstance(value, str):
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            return value
        return numbers[0] if len(numbers) == 1 else numbers
    return value


_Number = Annotated[float, Field(allow_inf_nan=False)]
Baseline = Annotated[_Number | tuple[_Number, ...] | ImageOption, BeforeValidator(_number_or_numbers)]


def baseline_image(request: Request, baseline: float | tuple[float, ...] | ImageOption) -> Tensor:
    """Return the baseline in the units of the model's input, (C, H, W) or (C, 1, 1)."""
    shape = request.inputs.shape[1:]
    if isinstance(baseline, ImageOption):
        image = request.image(baseline)[0]
        if image.shape != shape:
            raise InputError(f"the baseline image is {tuple(image.shape)}, the inputs are {tuple(shape)}; resize it")
        return image
    values = (baseline,) * shape[0] if isinstance(baseline, float) else baseline
    if len(values) != shape[0]:
        raise OptionError(
            f"option 'baseline': got {len(values)} numbers, expected one, or one for each of the {shape[0]} channels"
        )
    return request.inputs.new_tensor(values)[:, None, None]
