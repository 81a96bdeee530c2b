"""What is optimised: pixels, or the Fourier coefficients of pixels in decorrelated colours."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..models import Preprocess


class Canvas(Protocol):
    """An image parameterisation: numbers that an optimiser changes, and the pictures that they stand for.

    Attributes:
        leaves: the numbers, each (N, …).
    """

    leaves: list[Tensor]

    def centred(self) -> Tensor:
        """Return the [0, 1] pictures less the mean colour of the network's training images; gradients flow."""
        ...

    def image(self) -> Tensor:
        """Return the pictures in the units of the network's input, (N, C, H, W); gradients flow to the leaves."""
        ...

    def bound(self) -> None:
        """Bring the pictures back to what can be shown."""
        ...


class Pixels:
    """The pixels themselves, less the mean colour of the network's training images; kept between black and white."""

    def __init__(self, start: Tensor, normalisation: Preprocess) -> None:
        """Begin with pictures in the units of the network's input, (N, C, H, W)."""
        self._spread = start.new_tensor(normalisation.std).reshape(-1, 1, 1)
        self._mean = start.new_tensor(normalisation.mean).reshape(-1, 1, 1)
        self.leaves = [(start.detach() * self._spread).contiguous().requires_grad_()]  # as L-BFGS asks for

    def centred(self) -> Tensor:
        """Return the pixels."""
        return self.leaves[0]

    def image(self) -> Tensor:
        """Return the pixels in the units of the network's input."""
        return self.leaves[0] / self._spread

    def bound(self) -> None:
        """Clip what is darker than black or brighter than white."""
        with torch.no_grad():
            self.leaves[0].copy_(self.leaves[0].clamp(-self._mean, 1 - self._mean))


class Fourier:
    """Fourier coefficients of decorrelated colours, scaled so that each frequency is as strong as in photographs.

    Gradients then spread over all frequencies and colours alike. What comes out lies between black and white by a
    sigmoid. Olah 2017, "Feature Visualization", section "Preconditioning and Parameterization".
    """

    def __init__(self, start: Tensor, normalisation: Preprocess) -> None:
        """Begin with pictures in [0, 1], (N, 3, H, W)."""
        self._normalisation = normalisation
        self._spread = start.new_tensor(normalisation.std).reshape(-1, 1, 1)
        self._size = (start.shape[2], start.shape[3])
        self._scale = _spectrum(self._size).to(start)
        self._colours = _COLOURS.to(start)
        # The sigmoid's ends are infinitely far away.
        plain = torch.logit(start.detach().clamp(0.02, 0.98))
        mixed = torch.einsum("ck,nkhw->nchw", torch.linalg.inv(self._colours), plain)
        waves = torch.fft.rfft2(mixed, norm="ortho") / self._scale
        self.leaves = [torch.view_as_real(waves).contiguous().requires_grad_()]

    def centred(self) -> Tensor:
        """Return the pictures less the mean colour."""
        return self.image() * self._spread

    def image(self) -> Tensor:
        """Return the pictures in the units of the network's input."""
        waves = torch.view_as_complex(self.leaves[0]) * self._scale
        mixed = torch.fft.irfft2(waves, s=self._size, norm="ortho")
        plain: Tensor = torch.einsum("ck,nkhw->nchw", self._colours, mixed)
        return self._normalisation.normalise(plain.sigmoid())

    def bound(self) -> None:
        """Nothing is out of bounds."""


def _spectrum(size: tuple[int, int]) -> Tensor:
    """Return the amplitude of each frequency in a photograph, (H, W // 2 + 1): inverse to the frequency."""
    single = {"dtype": torch.float32, "device": "cpu"}
    rows, columns = torch.fft.fftfreq(size[0], **single), torch.fft.rfftfreq(size[1], **single)
    frequency = (rows[:, None] ** 2 + columns**2).sqrt()
    # The constant is given the amplitude of the lowest wave. The factor makes a step of 0.05 a good one.
    amplitude: Tensor = 0.25 / frequency.clamp(min=1 / max(size))
    return amplitude


# From decorrelated colours to RGB: the square root of the colours' covariance over ImageNet, whose largest column is
# given length 1; the figures are lucid's (Apache 2.0).
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], device="cpu")
_COLOURS = _COLOURS / _COLOURS.norm(dim=0).max()
