"""Training of networks that paint in one pass what style transfer optimises picture by picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import find_images
from ..memory import parse_memory
from ..models import Lender, Model
from ..models.style_network import StyleNetwork
from ..options import check_seed, make_options
from ..request import Progress, unwatched
from .training import FOLDER, StyleTraining, Training


@dataclass(frozen=True)
class TrainedStyle:
    """What came out of a training.

    Attributes:
        network: the network, in eval mode, on the device that it was trained on.
        folder: where it is, with checkpoint, log and samples.
        left_out: image files that could not be read, and why.
    """

    network: StyleNetwork
    folder: Path
    left_out: dict[str, str]


def train_style(
    model: nn.Module | Model,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> TrainedStyle:
    """Train a network that paints any picture in one or several styles; an interrupted training goes on.

    The loss is that of the technique `style-transfer`, of random crops of the images, each in one of the styles.
    Johnson 2016, section 3; of several styles: Dumoulin 2017, section 2.2.

    Args:
        model: whose features tell style and content, such as ``load_model("vgg16")``; it is left as it was, and the
            network is trained on its device.
        images: image files, or folders of them; those that cannot be read are left out.
        out: folder for the network, ``style.safetensors``, a checkpoint every 15 seconds, ``log.csv`` and samples. A
            training that was interrupted there is continued; on a CPU it ends with the bits that it would have had.
            One training at a time may write there.
        seed: of the network's first weights and of the crops.
        memory: budget in bytes, or as "2GiB"; 1 GiB by default. A batch that needs more is taken in parts.
        progress: called with steps done and their total; may raise to cancel.
        **options: see `StyleTraining`.

    Returns:
        A `TrainedStyle`.

    Raises:
        OptionError: an unknown or malformed option or seed, or weights without any sum.
        InputError: no image can be read, a style image shows nothing, or the loss is no longer finite.
        LayerError: a layer that does not exist, or that cannot be matched.
        ModelError: a model without maps, or that takes no colour pictures.
        SaveError: the folder holds something else, another training or one that is more steps on, or a network whose
            checkpoint is gone; or somebody else trains there.
        CnnvizError: an image cannot be read for now; start again when it can.
    """
    wanted = make_options("train-style", StyleTraining, options)
    assert isinstance(wanted, StyleTraining)
    described = model if isinstance(model, Model) else Model(model)
    paths = find_images([images] if isinstance(images, (str, Path)) else images)
    folder, seed = FOLDER.check(out), check_seed(seed)
    lender = Lender(described.module)
    # The precision is that of the options.
    own = torch.autocast(described.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), own, lender.borrow() as replica:
        ready = replace(described, module=replica)
        training = Training(ready, lender, paths, folder, wanted, seed, parse_memory(memory))
        if training.emulated:
            warnings.warn(
                f"option 'precision': this processor has no instructions for {wanted.precision}, with which training "
                "takes up to a hundred times as long as in float32; take 'auto'",
                stacklevel=2,
            )
        training.run(progress or unwatched)
    return TrainedStyle(training.network.eval(), folder, training.left_out)
