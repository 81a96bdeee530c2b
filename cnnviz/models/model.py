"""A network together with what is needed to feed it pictures and to name what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError, OptionError
from .preprocess import Preprocess
from .randomness import own_randomness
from .replica import replicate, unwrap
from .state import digest


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its preprocessing and labels.

    Attributes:
        module: the network.
        name: what it is called in results.
        preprocess: from picture to input and back; None where the module takes tensors only.
        labels: name of each class, in order or by its number; None where they are not known.
        input_size: (height, width) that the preprocessing delivers, or None where it varies.
        source: where architecture and weights come from.

    Raises:
        OptionError: labels that name no classes, or an input size that is no (height, width).
    """

    module: nn.Module
    name: str = ""
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | None = None
    input_size: tuple[int, int] | None = None
    source: str = "nn.Module"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or type(unwrap(self.module)).__name__)
        if self.labels is not None:
            object.__setattr__(self, "labels", class_names(self.labels))
        if self.input_size is not None:
            object.__setattr__(self, "input_size", _pair(self.input_size))
        elif self.preprocess is not None:
            object.__setattr__(self, "input_size", self.preprocess.delivers)

    @property
    def digest(self) -> str:
        """SHA-256 of every weight and buffer, computed when asked for."""
        return digest(self.module)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def channels(self) -> int:
        """Number of input channels: the preprocessing's, or the first convolution's; 3 where there is none."""
        if self.preprocess is not None:
            return len(self.preprocess.mean)
        convolutions = (module for module in self.module.modules() if isinstance(module, nn.Conv2d))
        return next((module.in_channels for module in convolutions), 3)

    @property
    def normalisation(self) -> Preprocess:
        """From [0, 1] pictures of any size to inputs and back; where nothing is known, inputs are such pictures."""
        if self.preprocess is None:
            return Preprocess(mean=(0.0,) * self.channels, std=(1.0,) * self.channels)
        return replace(self.preprocess, resize=None, crop=None)

    def example(self, size: tuple[int, int] | None = None) -> Tensor:
        """Return one blank input, (1, C, H, W), of `size` or the usual 224 × 224 where none is known."""
        height, width = size or self.input_size or (224, 224)
        return torch.zeros(1, self.channels, height, width, dtype=self.dtype, device=self.device)

    def prepare(self, images: Sequence[Image.Image], *, whole: bool = False) -> Tensor:
        """Return the network's input for upright RGB pictures: (N, C, H, W) on the module's device and dtype.

        Args:
            images: the pictures.
            whole: neither resize nor crop them.

        Raises:
            InputError: there is no preprocessing, or it leaves the pictures at different sizes.
        """
        if self.preprocess is None and not whole:
            raise InputError(
                f"{self.name} has no preprocessing, so that pictures cannot be fed to it; give a tensor (N, C, H, W), "
                "or wrap it: cnnviz.load_model(module, preprocess=cnnviz.Preprocess(…))"
            )
        preprocess = self.normalisation if whole or self.preprocess is None else self.preprocess
        rows = [preprocess(image) for image in images]
        sizes = {tuple(row.shape) for row in rows}
        if len(sizes) > 1:
            raise InputError(
                f"the pictures have different sizes{'' if whole else ' after preprocessing'} "
                f"({', '.join(map(str, sorted(sizes)))}); give them one by one"
                f"{'' if whole else ', or a preprocessing that crops'}"
            )
        return torch.stack(rows).to(self.device, self.dtype)

    def label(self, index: int) -> str:
        """Return the name of a class, or ``class 281`` where names are not known."""
        return self.labels[index] if self.labels is not None and index < len(self.labels) else f"class {index}"

    def predict(self, inputs: Tensor, *, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return for each input the `k` most probable classes with their probability; [] where it gives no classes."""
        with own_randomness(inputs.device, 0), torch.no_grad():
            output = replicate(self.module)(inputs.clone())
        if not isinstance(output, Tensor) or output.dim() != 2:
            return [[] for _ in range(len(inputs))]
        found = output.float().softmax(1).topk(min(k, output.shape[1]), dim=1)
        rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [[(self.label(i), p) for i, p in zip(indices, values, strict=True)] for indices, values in rows]


def class_names(labels: Any) -> tuple[str, ...]:
    """Return the name of each class, from names in order, or by the class's number as in ``{0: "cat", 1: "dog"}``.

    Raises:
        OptionError: anything else.
    """
    expected = "expected the names of the classes in order, or a dictionary from their numbers, 0 to K - 1, to names"
    if isinstance(labels, Mapping):
        numbered = {int(key) if str(key).isdecimal() else key: name for key, name in labels.items()}
        if numbered.keys() != set(range(len(numbered))):
            raise OptionError(f"labels: got a dictionary with the keys {list(labels)[:5]}, {expected}")
        labels = [numbered[number] for number in range(len(numbered))]
    if isinstance(labels, (str, bytes, set, frozenset)) or not isinstance(labels, Iterable):
        raise OptionError(f"labels: got {labels!r:.60}, {expected}")
    names = tuple(labels)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise OptionError(f"labels: got {wrong[0]!r:.60} among them, {expected}")
    return names


def _pair(size: Any) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise OptionError(f"input_size: got {size!r}, expected (height, width) in pixels")
    return pair
