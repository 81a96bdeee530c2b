"""What becomes of a patch, call by call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import OptionError
from ..models import replicate
from ..models.receptive_field import function_name, tensors_in
from .geometry import Pair
from .patched import Base, Patched, Unfollowed, patched_in
from .work import Operations


@dataclass(frozen=True)
class Step:
    """A call of a torch function during a forward pass.

    Attributes:
        call: the function's name.
        size: (height, width) of the maps that it returns, None where it returns none.
        patch: (height, width) of the part of them that is computed, None where it is all.
        whole: multiplications for a whole image.
        done: multiplications for the patch.
    """

    call: str
    size: Pair | None
    patch: Pair | None
    whole: int
    done: int


def plan(model: nn.Module, image: Tensor, window: Pair) -> list[Step]:
    """Return what a forward pass does of an image, (1, C, H, W), of which a window in the middle was changed.

    The model is left as it is; a twin of it is run in eval mode.

    Raises:
        OptionError: the window is empty or larger than the image.
        Unfollowed: the network does something that patches cannot be taken through, or other things with whole images.
    """
    height, width = window
    if not (1 <= height <= image.shape[2] and 1 <= width <= image.shape[3]):
        told = f"a height and width of 1 to {tuple(image.shape[2:])}"
        raise OptionError(f"window: got {(height, width)}, expected {told}, the size of the image")
    model = replicate(model)
    corner = torch.tensor([[(image.shape[2] - height) // 2, (image.shape[3] - width) // 2]], device="cpu")
    patch = image.new_zeros(1, image.shape[1], height, width)
    base = Base()
    with torch.no_grad():
        for _ in range(2):  # the first time, what is made of the image itself is computed too
            patched = Patched(image, patch, corner, base)
            with _Watch() as seen:
                model(patched)
        whole_image = image.clone()
        with _Watch() as dense:
            model(whole_image)
    if len(seen.calls) != len(dense.calls):
        raise Unfollowed(f"it calls {len(dense.calls)} functions, and {len(seen.calls)} others with patches")
    return [
        Step(name, size, extent, whole, done)
        for (name, size, extent, done), (_, _, _, whole) in zip(seen.calls, dense.calls, strict=True)
    ]


_SILENT = frozenset(("__get__", "size", "dim", "is_floating_point", "requires_grad_", "__len__", "numel", "contiguous"))


class _Watch(TorchFunctionMode):
    """Notes each call of this thread within the block: its name, what it returns, and what it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Pair | None, Pair | None, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run a function and note it."""
        with Operations() as done:
            made = func(*args, **(kwargs or {}))
            for value in patched_in(made):
                _ = value.patch, value.base  # what is put off is done now, and counted
        if function_name(func) in _SILENT:
            return made
        followed = [value for value in patched_in(made) if value.whole is None]
        maps = [value for value in tensors_in(made) if value.dim() == 4]
        size = (followed[0].form[-2], followed[0].form[-1]) if followed else None
        if size is None and maps:
            size = (maps[0].shape[-2], maps[0].shape[-1])
        extent = followed[0].extent if followed and not followed[0].full else None
        self.calls.append((function_name(func), size, extent, done.count))
        return made
