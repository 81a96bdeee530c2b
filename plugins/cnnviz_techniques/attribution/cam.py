"""Class activation maps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnviz import Field, ModelError, Options, Request, TargetError, Technique, hookimpl

from .spread_head import SpreadHead


class CamOptions(Options):
    """Options of `cam`."""

    upsample: Literal["bilinear"] | None = Field(
        "bilinear", description="resize the map to the input; none leaves it at the size of the last maps"
    )


def cam(request: Request, options: CamOptions) -> Tensor:
    """Weight the last activation maps by the class's weights in the linear layer after their pooling, and add them up.

    Signed, (N, C, H, W) -> (N, 1, h, w), resized to the input by the framework; without the bias, so that its mean is
    the score less the bias where pooling is global and one linear layer follows. Any other head of linear layers,
    rectifiers and normalisations is turned into convolutions, with zeros around the map: each place then has the score
    of the window around it, at any size of the input. For classes only. Zhou 2016, equations 1 and 2.

    Raises:
        ModelError: the head cannot be turned into convolutions; says why.
        TargetError: the target is no class.
    """

    def class_maps() -> Tensor:
        head = SpreadHead()
        with torch.no_grad(), head:
            output = request.output()
        if request.classes() is None:
            raise TargetError("class activation maps explain classes; use grad-cam for any other target")
        spread = head.of(output) if isinstance(output, Tensor) else None
        if spread is None or not (spread.flat and spread.window == (1, 1)):
            reason = head.reason if spread is None else "it ends in no linear layer"
            raise ModelError(
                f"class activation maps need a head that pools or flattens maps and multiplies them by weights, but "
                f"{reason}; use grad-cam, which takes any network"
            )
        return spread.map if spread.unbiased is None else spread.unbiased

    maps = request.once("class maps", class_maps)
    classes = request.classes()
    assert classes is not None
    return maps[torch.arange(len(maps), device="cpu"), classes.to(maps.device)][:, None]


@hookimpl
def cnnviz_techniques(register):
    register(Technique("cam", cam, CamOptions, family="attribution"))
