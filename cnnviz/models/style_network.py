"""A network that paints any picture in the styles that it was trained in, in one forward pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError, ModelError, OptionError, SaveError
from ..writing import write_file

_FORMAT: Final = "cnnviz-style-network-1"
_LEAST: Final = 8  # pixels, as borders are mirrored


class StyleNetwork(nn.Module):
    """From pictures in [0, 1], (N, 3, H, W), to the same pictures painted, at least 8 pixels high and wide.

    Convolutions with mirrored borders, instance normalisation whose scale and shift are the style's, residual blocks
    at a quarter of the size, and nearest-neighbour enlargements before convolutions, which leave no checkerboard.
    Johnson 2016; Ulyanov 2016; Dumoulin 2017, table 1; Odena 2016.

    Attributes:
        styles: name of each style.
        width: channels of the first layer.
        about: how it was trained, as plain values.

    Example:
        >>> network = StyleNetwork(["waves", "stars"], width=4, blocks=1)
        >>> network(torch.rand(1, 3, 30, 41), torch.tensor([0.5, 0.5])).shape
        torch.Size([1, 3, 30, 41])
    """

    def __init__(self, styles: Sequence[str], *, width: int = 32, blocks: int = 5) -> None:
        """Make a network with random weights.

        Args:
            styles: name of each style.
            width: channels of the first layer; the middle has four times as many.
            blocks: number of residual blocks.

        Raises:
            OptionError: there are no styles.
        """
        super().__init__()
        if not len(styles):
            raise OptionError("styles: got none, expected the name of one style or more")
        self.styles = tuple(styles)
        self.width = width
        self.about: Mapping[str, Any] = {}
        count = len(self.styles)
        self.shrinking = nn.ModuleList(
            [
                _Layer(3, width, 9, count),
                _Layer(width, 2 * width, 3, count, stride=2),
                _Layer(2 * width, 4 * width, 3, count, stride=2),
            ]
        )
        self.residual = nn.ModuleList(_Residual(4 * width, count) for _ in range(blocks))
        self.growing = nn.ModuleList(
            [_Growing(4 * width, 2 * width, 3, count), _Growing(2 * width, width, 3, count)],
        )
        self.painting = nn.Conv2d(width, 3, 9, padding=4, padding_mode="reflect")

    def forward(self, x: Tensor, mix: Tensor | None = None) -> Tensor:
        """Paint pictures.

        Args:
            x: (N, 3, H, W) in [0, 1].
            mix: share of each style, (S,), or for each picture, (N, S), which should add up to 1; the first style alone
                by default.

        Returns:
            (N, 3, H, W) in [0, 1].

        Raises:
            InputError: no colour pictures of 8 x 8 pixels or more, or of another type than the weights, or a mixture of
                other numbers of styles or pictures.
        """
        if x.dim() != 4 or x.shape[1] != 3 or not x.is_floating_point() or x.shape[2] < _LEAST or x.shape[3] < _LEAST:
            told = f"got {tuple(x.shape)} {_named(x.dtype)}"
            raise InputError(f"{told}, expected float (N, 3, H, W), of {_LEAST} x {_LEAST} pixels or more, in [0, 1]")
        own = self.painting.weight.dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise InputError(
                f"got {_named(x.dtype)} pictures, expected {_named(own)} as the weights are; give x.to({own})"
            )
        if not isinstance(mix, Tensor | None):
            raise InputError(f"mix: got {type(mix).__name__}, expected a tensor, (S,) or (N, S)")
        count = len(self.styles)
        if mix is None:
            mix = functional.one_hot(torch.zeros((), dtype=torch.long, device=x.device), count)
        shares = mix.to(x)[None] if mix.dim() == 1 else mix.to(x)
        if shares.dim() != 2 or shares.shape[1] != count or shares.shape[0] not in (1, x.shape[0]):
            raise InputError(f"mix: got {tuple(mix.shape)}, expected ({count},), or (N, {count}) for N pictures")
        if not len(shares):
            shares = shares.new_zeros(1, count)  # of no pictures
        maps = x
        for layer in self.shrinking:
            maps = layer(maps, shares).relu_()
        for block in self.residual:
            maps = block(maps, shares)
        for layer in self.growing:
            maps = layer(maps, shares).relu_()
        # Sides that are no multiples of 4 have grown.
        painted: Tensor = self.painting(maps[..., : x.shape[2], : x.shape[3]])
        return painted.sigmoid()

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the first weights from a generator on the CPU."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    drawn = torch.empty(module.weight.shape, dtype=torch.float32, device="cpu")
                    nn.init.kaiming_normal_(drawn, nonlinearity="relu", generator=generator)
                    module.weight.copy_(drawn)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, _Layer):
                    module.scale.fill_(1.0)
                    module.shift.zero_()

    def save(self, path: str | Path) -> Path:
        """Write the network to a ``.safetensors`` file, with what it is in the file's metadata.

        Raises:
            SaveError: the file cannot be written, or its name ends otherwise; what was there is as it was.
        """
        if Path(path).suffix != ".safetensors":
            raise SaveError(f"'{path}': expected a file name that ends in .safetensors")
        built = {"styles": self.styles, "width": self.width, "blocks": len(self.residual)}
        told = {"format": _FORMAT, "built": json.dumps(built), "about": json.dumps(dict(self.about))}
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        return write_file(path, save(state, told))

    @classmethod
    def load(cls, path: str | Path) -> StyleNetwork:
        """Read a network that `save` wrote, in eval mode, on the CPU.

        Raises:
            ModelError: there is no such file, it is damaged, or holds something else.
        """
        place = Path(path).expanduser()
        if not place.is_file():
            raise ModelError(f"style network '{path}' does not exist; give a file that cnnviz train-style wrote")
        try:
            with safe_open(place, framework="pt") as file:
                told = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError) as error:
            raise ModelError(f"'{path}' is no .safetensors file, or a damaged one ({error})") from error
        if told.get("format") != _FORMAT:
            raise ModelError(f"'{path}' holds no style network; give a file that cnnviz train-style wrote")
        try:
            built = json.loads(told["built"])
            with torch.device("meta"):  # initial weights are not drawn, as they would be overwritten
                made = cls(built["styles"], width=built["width"], blocks=built["blocks"])
            made.load_state_dict(state, assign=True)
            made.about = json.loads(told["about"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"'{path}' is a damaged style network ({error}); copy or train it again") from error
        return made.eval()

    def export_onnx(self, path: str | Path) -> Path:
        """Write the network as ONNX, for any number and size of pictures.

        It takes `picture`, (N, 3, H, W) in [0, 1], and `mix`, the share of each style, (1, S); it gives `painting`,
        (N, 3, H, W). Needs the extra `onnx`. No other thread may run a model meanwhile, since torch's exporter changes
        modules of the whole process while it traces.

        Raises:
            ModelError: onnx or onnxscript is not installed.
            SaveError: the file cannot be written, or its name ends otherwise; what was there is as it was.
        """
        if Path(path).suffix != ".onnx":
            raise SaveError(f"'{path}': expected a file name that ends in .onnx")
        if find_spec("onnx") is None or find_spec("onnxscript") is None:
            raise ModelError("ONNX files need onnx and onnxscript; pip install 'cnnviz[onnx]'")
        like = self.painting.weight
        mix = like.new_zeros(1, len(self.styles))
        free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        program = torch.onnx.export(
            copy.deepcopy(self).eval(),
            (like.new_zeros(2, 3, 64, 48), mix),
            dynamo=True,
            dynamic_shapes={"x": free, "mix": None},
            input_names=["picture", "mix"],
            output_names=["painting"],
            verbose=False,
        )
        assert program is not None  # it is with dynamo
        program.model.metadata_props["cnnviz"] = json.dumps({"styles": self.styles, "about": dict(self.about)})
        return write_file(path, program.model_proto.SerializeToString())


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Layer(nn.Module):
    """A convolution with mirrored borders, and the normalisation of its output."""

    def __init__(self, inside: int, outside: int, kernel: int, styles: int, *, stride: int = 1) -> None:
        super().__init__()
        # A bias would be subtracted again.
        self.convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, padding_mode="reflect", bias=False)
        self.scale = nn.Parameter(torch.ones(styles, outside))
        self.shift = nn.Parameter(torch.zeros(styles, outside))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """Return maps whose means and deviations are those of the styles, mixed by `shares`, (N or 1, S)."""
        return self.normalised(self.convolution(x), shares)

    def normalised(self, maps: Tensor, shares: Tensor) -> Tensor:
        """Give each map the mean and the deviation that the styles want."""
        # No matrix product, which would be of half precision under autocast.
        scale, shift = ((shares[:, :, None] * each).sum(1) for each in (self.scale, self.shift))
        count, channels = maps.shape[:2]
        if len(shares) == 1:
            return functional.group_norm(maps, channels, scale[0], shift[0])
        # Each picture's channels are groups by themselves, which is instance normalisation in one pass over memory.
        apart = functional.group_norm(
            maps.reshape(1, count * channels, *maps.shape[2:]), count * channels, scale.flatten(), shift.flatten()
        )
        return apart.reshape(maps.shape)


class _Growing(_Layer):
    """The same at twice the size: nearest-neighbour enlargement, convolution with a 3 x 3 kernel, normalisation.

    Of the enlarged pixels under the kernel several are one pixel, so that each of the four that it becomes sees 2 x 2
    pixels, by weights that are sums of the kernel's: four ninths of the work. Mirrored borders of what was enlarged are
    repeated borders of what was not.
    """

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """Return maps of twice the size."""
        height, width = x.shape[2:]
        around = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        quarters = [
            functional.conv2d(around[:, :, a : a + height + 1, b : b + width + 1], kernel)
            for a, rows in enumerate(_halves(self.convolution.weight, 2))
            for b, kernel in enumerate(_halves(rows, 3))
        ]
        return self.normalised(functional.pixel_shuffle(torch.stack(quarters, 2).flatten(1, 2), 2), shares)


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return what three weights are for the first, and for the second, of two pixels that one became: two weights."""
    before, here, after = kernel.unbind(dim)
    return torch.stack((before, here + after), dim), torch.stack((before + here, after), dim)


class _Residual(nn.Module):
    def __init__(self, channels: int, styles: int) -> None:
        super().__init__()
        self.first = _Layer(channels, channels, 3, styles)
        self.second = _Layer(channels, channels, 3, styles)

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        changed: Tensor = self.second(self.first(x, shares).relu_(), shares)
        return x + changed
