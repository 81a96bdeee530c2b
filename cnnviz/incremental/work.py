"""How much a forward pass computes."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .patched import Patched


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Counts the multiplications of convolutions and matrix products that this thread runs within the block.

    Attributes:
        count: so many.
        weights: how many numbers of weights were read for it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0
        self.weights: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        made = func(*args, **(kwargs or {}))
        match func:
            case torch.ops.aten.convolution.default:
                transposed = bool(args[6])
                self.count += (args[0] if transposed else made).numel() * args[1][0].numel()
                self.weights += args[1].numel()
            case torch.ops.cnnviz.conv_crops.default:
                kernel = args[2]  # its first or last axes are those of what is made
                self.count += made.numel() * (kernel[..., 0] if kernel.dim() == 3 else kernel[0, ..., 0]).numel()
                self.weights += kernel.numel()
            case torch.ops.cnnviz.winograd_crops.default:  # as many as in the plain way
                self.count += made.numel() * 9 * args[2].shape[2]
                self.weights += args[2].numel()
            case torch.ops.cnnviz.conv_cat.default:
                self.count += made.numel() * args[9].shape[3]
                self.weights += args[9].numel()
            case torch.ops.aten.addmm.default:
                self.count += made.numel() * args[1].shape[-1]
                self.weights += args[2].numel()
            case torch.ops.aten.mm.default | torch.ops.aten.bmm.default | torch.ops.aten.mv.default:
                self.count += made.numel() * args[0].shape[-1]
            case torch.ops.aten.baddbmm.default:
                self.count += made.numel() * args[1].shape[-1]
            case _ if "scaled_dot_product" in str(func):
                self.count += 2 * args[0].numel() * args[1].shape[-2]
        return made


class WholeMaps(TorchFunctionMode):
    """Counts the multiplications of functions that this thread calls with plain tensors alone within the block."""

    def __init__(self, operations: Operations) -> None:
        """Take what counts them."""
        super().__init__()
        self._operations = operations

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run a function, and count it unless it is one of patches, which note themselves what they do."""
        if any(issubclass(kind, Patched) for kind in types):
            return func(*args, **(kwargs or {}))
        with self._operations:
            return func(*args, **(kwargs or {}))
