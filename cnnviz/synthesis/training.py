"""A style network in training: its steps, and what is kept of it on disk."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn import functional

from .. import render
from ..data.crops import Crops
from ..errors import CnnvizError, InputError, ModelError, OptionError, SaveError
from ..lock import alone
from ..memory import Batches, batch_size
from ..models import Lender, Model, know_calls, survey, telling
from ..models.style_network import StyleNetwork
from ..options import Field, ImageOption, ImagesOption, Options
from ..request import Progress
from ..version import __version__
from ..writing import Kind, write_file
from .checkpoint import Checkpoint, advance
from .features import by_size
from .regularisers import total_variation
from .style import Style, StyleLoss, layer_shares, style_layers

_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

NETWORK: Final = "style.safetensors"
CHECKPOINT: Final = "checkpoint.safetensors"
LOG: Final = "log.csv"
SAMPLES: Final = "samples"
LOCK: Final = "training.lock"
FOLDER: Final = Kind("a training of styles", (NETWORK, CHECKPOINT, LOG, SAMPLES, LOCK))
_SAMPLES = 3
_SAMPLE_SIDE = 512
_TILE = 256
_LEAST = 8  # pixels, for a style network


class StyleTraining(Options):
    """How a style network is trained."""

    styles: ImagesOption = Field(
        min_length=1,
        description="style images, one for each style that the network learns; a tensor's values are in [0, 1]",
    )
    style_size: int = Field(256, ge=32, le=4096, description="longer side of the style images: how large strokes are")
    content_weight: _Weight = Field(1.0, description="weight of what pictures show")
    style_weight: _Weight = Field(3.0, description="weight of how they are painted")
    total_variation: _Weight = Field(0.0, description="weight of neighbours' differences")
    content_layers: tuple[str, ...] = Field(
        (), description="layers whose features are kept; for VGG-16 relu3_3 by default"
    )
    style_layers: tuple[str, ...] = Field(
        (), description="layers whose Gram matrices are matched; for VGG relu1_1 to relu5_1"
    )
    style_layer_weights: tuple[_Weight, ...] = Field((), description="weight of each style layer; all alike by default")
    size: int = Field(256, ge=32, le=2048, description="side of the crops that it is trained on")
    batch: int = Field(4, ge=1, le=1024, description="crops in a step")
    steps: int = Field(10_000, ge=1, le=10_000_000, description="how many steps are taken")
    step_size: float = Field(1e-3, gt=0, le=1, description="learning rate of Adam")
    width: int = Field(32, ge=1, le=512, description="channels of the network's first layer")
    blocks: int = Field(5, ge=0, le=64, description="number of its residual blocks")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the arithmetic; auto is bfloat16 on a GPU that has it, and float32 on a CPU"
    )
    samples: ImagesOption = Field(
        (),
        description="pictures that are painted now and then; three of the images by default; a tensor's values are in "
        "[0, 1]",
    )
    sample_every: int = Field(500, ge=1, description="after how many steps")
    log_every: int = Field(10, ge=1, description="steps in a line of the log, which is their mean")
    threads: int = Field(2, ge=1, le=256, description="how many images are decoded at once")


class Training:
    """A training at some step."""

    def __init__(
        self,
        model: Model,
        lender: Lender,
        paths: list[Path],
        folder: Path,
        options: StyleTraining,
        seed: int,
        memory: int,
    ) -> None:
        self.model, self.options, self.folder, self.seed = model, options, folder, seed
        self.device = model.device
        self.units = model.normalisation
        if len(self.units.mean) != 3:
            raise ModelError(f"{model.name} takes {len(self.units.mean)} channels, expected 3: styles have colours")
        if not options.content_weight and not options.style_weight:
            raise OptionError("options 'content_weight' and 'style_weight' are both 0; give one of them a weight")
        self.crops = Crops(paths, options.size, seed)
        self.names = _names(options.styles)
        self.pictures = [_sized(image, options.style_size, "styles").to(self.device) for image in options.styles]
        self.layers, self.styles = self._wanted()
        blank = torch.zeros(1, 3, options.size, options.size, dtype=torch.float32, device="cpu")
        example = self.units.normalise(blank).to(self.device, model.dtype)
        with telling(model.name, example):
            known = lender.survey(example)
        know_calls(model.module, known.counts if known.fixed else {})
        # For VGG-16 it is relu3_3, as in Johnson 2016.
        self.kept = options.content_layers or (by_size(known.layers)[-3:][0][-1].name,)
        with torch.device("meta"):
            self.network = StyleNetwork(self.names, width=options.width, blocks=options.blocks).float()
        self.network.to_empty(device=self.device)
        self.network.initialise(torch.Generator().manual_seed(seed))
        own = survey(self.network, example.float())
        halves = (batch_size(each, memory // 2, self.device, backward=True) for each in (known, own))
        self.at_once = min(options.batch, *halves)
        self.batches = Batches()
        self.precision = self._precision()
        self.optimiser = torch.optim.Adam(self.network.parameters(), options.step_size)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.identity = self._identity(lender, memory)
        self.done = 0
        self.seconds = 0.0
        self.since: list[Tensor] = []  # losses that the log does not have yet
        self.left_out: dict[str, str] = {}

    def run(self, progress: Progress) -> None:
        """Take all steps that are left, and write the network; nobody else may train in the folder meanwhile."""
        samples = self._samples()
        with alone(self.folder / LOCK, "training"):
            self.checkpoint = Checkpoint(self.folder / CHECKPOINT, self.identity)
            self._go_on()
            if self.done < self.options.steps:
                self._train(samples, progress)
            elif not self._shown():
                self._show(samples)

    def _go_on(self) -> None:
        """Go back to where the checkpoint is, if there is one.

        Raises:
            SaveError: it is more steps on, or there is a network without one.
        """
        if (kept := self.checkpoint.state("training")) is not None:
            self._restore(kept)
        elif (self.folder / NETWORK).exists():
            raise SaveError(
                f"'{self.folder}' holds a trained network and no checkpoint to go on from; give a new folder"
            )
        if self.done > self.options.steps:
            raise SaveError(
                f"the training in '{self.folder}' is {self.done} steps on, expected at most the {self.options.steps} "
                "asked for; ask for as many, or give another folder"
            )

    def _shown(self) -> bool:
        """Whether the network that is written is the one at this step."""
        try:
            return StyleNetwork.load(self.folder / NETWORK).about.get("steps") == self.done
        except ModelError:  # there is none, or a damaged one
            return False

    def _train(self, samples: list[Tensor], progress: Progress) -> None:
        options = self.options
        log = _Log(self.folder / LOG, self.done)
        batches = self.crops.batches(options.batch, self.done, options.steps, threads=options.threads)
        whole = True  # the state is that after some step
        begun = time.monotonic() - self.seconds
        try:
            for crops, left_out in batches:
                self.left_out |= {str(path): why for path, why in left_out.items()}
                told = self._losses(crops)
                whole = False
                self.scaler.step(self.optimiser)
                self.scaler.update()
                self.done += 1
                self.since.append(told)
                last = self.done == options.steps
                self.seconds = time.monotonic() - begun
                if last or self.done % options.log_every == 0:
                    log.add(self.done, torch.stack(self.since).mean(0).tolist(), self.seconds)
                    self.since.clear()
                whole = True
                if last or self.done % options.sample_every == 0:
                    self._keep(now=True)  # a network that is to be seen can be trained further
                    self._show(samples)
                advance(self.done, options.steps, progress, self._keep)
        except (KeyboardInterrupt, CnnvizError):
            if whole and self._sound():
                self._keep(now=True)
            raise
        finally:
            batches.close()

    def _losses(self, crops: Tensor) -> Tensor:
        """Take the slopes of the loss; return its mean and its parts: style, content, total variation.

        Raises:
            InputError: it is not finite.
        """
        x = crops.to(self.device)
        count, options = len(x), self.options
        turns = [(self.done * count + i) % len(self.styles) for i in range(count)]
        parameters = list(self.network.parameters())

        def part(start: int, stop: int) -> tuple[tuple[Tensor, ...], Tensor]:
            piece, turn = x[start:stop], turns[start:stop]
            with self._arithmetic():
                loss = StyleLoss(
                    self.model.module,
                    [(1.0, Style.each([self.styles[k] for k in turn]))],
                    self.layers,
                    picture=self.units.normalise(piece).to(self.model.dtype),
                    content_layers=[(name, 1 / len(self.kept)) for name in self.kept],
                )
                mix = functional.one_hot(torch.tensor(turn, device=self.device), len(self.styles))
                painted = self.network(piece, mix).float()
                style, content, _ = loss.parts(self.units.normalise(painted).to(self.model.dtype))
                variation = total_variation(painted)
            parts = torch.stack([each.float().sum() for each in (style, content, variation)]) / count
            weights = parts.new_tensor([options.style_weight, options.content_weight, options.total_variation])
            total = (weights * parts).sum()
            slopes = torch.autograd.grad(self.scaler.scale(total), parameters)
            return slopes, torch.cat([total[None], parts]).detach()

        # A part that runs out of memory is taken again in halves, so that slopes are added up once it is whole.
        made = self.batches.run(count, self.at_once, part)
        for parameter, *slopes in zip(parameters, *(slopes for slopes, _ in made), strict=True):
            parameter.grad = torch.stack(slopes).sum(0) if len(slopes) > 1 else slopes[0]
        told = torch.stack([told for _, told in made]).sum(0).cpu()
        if not bool(torch.isfinite(told).all()):
            kept = self._sound() or self.checkpoint.path.exists()  # a sound state is kept on the way out
            where = f"in '{self.folder}'" if kept else "of no use"
            raise InputError(
                f"the loss is {float(told[0])} at step {self.done + 1}; what was trained until then is {where}; begin "
                "anew elsewhere with a smaller step_size, or with precision='float32'"
            )
        return told

    def _show(self, samples: list[Tensor]) -> None:
        """Write the sample pictures in each style, and then the network as it is."""
        shown = [torch.ones(1, 3, 1, 1, dtype=torch.float32, device="cpu"), *self.pictures]
        mixes = torch.eye(len(self.styles), device=self.device)
        for sample in samples:
            with torch.no_grad(), self._arithmetic():
                shown += [sample, *(self.network(sample, mix).float() for mix in mixes)]
        tiles = [ImageOps.fit(render.to_pil(picture[0]), (_TILE, _TILE)) for picture in shown]
        file = io.BytesIO()
        render.grid(tiles, columns=1 + len(self.styles), gap=4).save(file, "PNG")
        write_file(self.folder / SAMPLES / f"step-{self.done:07d}.png", file.getvalue())
        self.network.about = self._about()
        self.network.save(self.folder / NETWORK)

    def _samples(self) -> list[Tensor]:
        """Return the pictures that are painted now and then, (1, 3, h, w) each."""
        side = min(2 * self.options.size, _SAMPLE_SIDE)
        made = [_sized(image, side, "samples") for image in self.options.samples]
        for path in self.crops.paths if not made else ():
            with suppress(InputError):
                made.append(_sized(ImageOption(path), side, "samples"))
            if len(made) == _SAMPLES:
                break
        return [picture.to(self.device) for picture in made]

    def _wanted(self) -> tuple[list[tuple[str, float]], list[Style]]:
        """Return style layers with their weights, and the styles."""
        inputs = [self.units.normalise(picture).to(self.model.dtype) for picture in self.pictures]
        smallest = min(inputs, key=lambda picture: min(picture.shape[2:]))
        names = style_layers(self.model.module, smallest, self.options.style_layers)
        shares = layer_shares(names, self.options.style_layer_weights)
        return shares, [Style.of(self.model.module, names, picture) for picture in inputs]

    def _precision(self) -> torch.dtype:
        chosen = self.options.precision
        if chosen != "auto":
            made: torch.dtype = getattr(torch, chosen)
            return made
        if self.device.type != "cuda":
            return torch.float32
        with torch.cuda.device(self.device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

    @property
    def emulated(self) -> bool:
        """Whether the processor lacks instructions for the precision: PyTorch then takes a hundred times as long."""
        if self.device.type != "cpu" or self.precision == torch.float32:
            return False
        if not torch._C._has_mkldnn:
            return True
        asked = torch.ops.mkldnn  # PyTorch has no public name for this
        half, brain = asked._is_mkldnn_fp16_supported, asked._is_mkldnn_bf16_supported
        return not (brain if self.precision == torch.bfloat16 else half)()

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision == torch.float32 else torch.autocast(self.device.type, self.precision)

    def _identity(self, lender: Lender, memory: int) -> dict[str, Any]:
        aside = {"steps", "samples", "sample_every", "log_every", "threads", "precision"}
        files = [(path.name, path.stat().st_size) for path in self.crops.paths]
        return {
            **self.options.model_dump(mode="json", exclude=aside),
            "model": lender.fingerprint(),
            "images": hashlib.sha256(repr(files).encode()).hexdigest()[:16],
            "seed": self.seed,
            "memory": memory,
            "device": self.device.type,
            "precision": str(self.precision),
        }

    def _about(self) -> dict[str, Any]:
        return {
            "options": self.options.model_dump(mode="json", exclude={"samples"}),
            "layers": {"style": [name for name, _ in self.layers], "content": list(self.kept)},
            "model": {"name": self.model.name, "source": self.model.source},
            "images": len(self.crops.paths),
            "seed": self.seed,
            "steps": self.done,
            "seconds": round(self.seconds, 1),
            "device": str(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "versions": {"cnnviz": __version__, "torch": torch.__version__},
        }

    def _keep(self, done: bool = False, now: bool = False) -> None:
        self.checkpoint.keep("training", self._state, now=done or now)

    def _sound(self) -> bool:
        """Whether there is a state that can be trained further."""
        return self.done > 0 and all(bool(weights.isfinite().all()) for weights in self.network.parameters())

    def _state(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "seconds": self.seconds,
            "since": self.since,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "left_out": self.left_out,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.done, self.seconds = state["done"], state["seconds"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.since = state.get("since", [])  # checkpoints did not always have it
        self.left_out = state["left_out"]
        self.network.about = self._about()


def _names(images: Sequence[ImageOption]) -> list[str]:
    """Return a name for each style image, no two alike."""
    names: list[str] = []
    for number, image in enumerate(images):
        name = image.name or f"style-{number}"
        others = (f"{name}-{count}" for count in itertools.count(number))
        names.append(next(free for free in itertools.chain([name], others) if free not in names))
    return names


def _sized(image: ImageOption, longer: int, option: str) -> Tensor:
    """Return a picture in [0, 1], (1, 3, h, w), whose longer side is so many pixels."""
    picture = image.values[None].float()
    size = [round(side * longer / max(picture.shape[2:])) for side in picture.shape[2:]]
    if picture.shape[1] != 3 or min(size) < _LEAST:
        longest = f"at most {longer // _LEAST} times as long as wide"
        raise InputError(f"option '{option}': got a picture {tuple(picture.shape[1:])}, expected (3, h, w), {longest}")
    low, high = float(picture.min()), float(picture.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"option '{option}': got a tensor with values from {low:g} to {high:g}, expected 0 to 1")
    return render.resize(picture, size).clamp(0, 1)


class _Log:
    """A CSV file to which lines are added; what a training that was interrupted wrote beyond its checkpoint goes."""

    _COLUMNS = ("step", "loss", "style", "content", "total_variation", "seconds")

    def __init__(self, path: Path, done: int) -> None:
        self._path = path
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise SaveError(f"'{path}' cannot be read ({error.strerror}); move it away to go on without it") from error
        kept = [line for line in text.splitlines(keepends=True) if self._step(line) <= done]
        write_file(path, "".join([",".join(self._COLUMNS) + "\n", *kept]))

    def _step(self, line: str) -> float:
        """Return the step of a line; of one that is damaged, as the last may be that was cut off, infinity."""
        try:
            values = [float(value) for value in line.split(",")]
        except ValueError:
            return math.inf
        return values[0] if len(values) == len(self._COLUMNS) and line.endswith("\n") else math.inf

    def add(self, step: int, losses: list[float], seconds: float) -> None:
        """Add a line."""
        try:
            with self._path.open("a") as file:
                file.write(",".join(map(str, (step, *losses, round(seconds, 3)))) + "\n")
        except OSError as error:
            raise SaveError(f"'{self._path}' cannot be written ({error.strerror})") from error
