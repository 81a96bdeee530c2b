"""Random crops of image files, for training: the n-th is the same whenever and wherever it is asked for."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import CnnvizError, InputError
from ..render import to_tensor
from .dataset import for_good
from .images import open_image

_AHEAD = 2  # crops that are made ready for each thread


@dataclass(frozen=True)
class Crop:
    """A crop, and which files could not be read on the way to it, and why.

    Attributes:
        picture: (3, size, size) in [0, 1].
        left_out: reason by file.
    """

    picture: Tensor
    left_out: dict[Path, str]


@dataclass(frozen=True)
class Crops:
    """An endless series of square crops: every epoch shows each file once, in another order.

    A crop is of at least two thirds of its picture's shorter side, and mirrored half of the time.

    Attributes:
        paths: the files.
        size: side of a crop in pixels.
        seed: of order, places and mirroring.
    """

    paths: Sequence[Path]
    size: int
    seed: int

    def __call__(self, n: int) -> Crop:
        """Return the n-th crop; of the next file that can be read, where the one whose turn it is cannot.

        Raises:
            InputError: no file can be read.
            CnnvizError: one cannot be read for now; trying again may help.
        """
        draws = torch.Generator().manual_seed(_mixed(self.seed, n))
        count = len(self.paths)
        epoch, place = divmod(n, count)
        order = _order(count, _mixed(self.seed, -1 - epoch))
        left_out: dict[Path, str] = {}
        for further in range(count):
            path = self.paths[int(order[(place + further) % count])]
            try:
                return Crop(self._cut(open_image(path), draws), left_out)
            except InputError as error:
                why = error.__cause__
                # The system's errors have numbers, those of decoders have none.
                if isinstance(why, OSError) and why.errno is not None and not for_good(why):
                    told = f"image '{path}' cannot be read for now: {why!r}"
                    raise CnnvizError(f"{told}; start again when it can, what was done is kept") from error
                left_out[path] = str(error)
        raise InputError(f"none of {count} images can be read; {next(iter(left_out.values()))}")

    def _cut(self, image: Image.Image, draws: torch.Generator) -> Tensor:
        share, down, across, mirrored = torch.rand(4, generator=draws, dtype=torch.float32, device="cpu").tolist()
        side = min(image.size) * (1 - share / 3)
        left, top = across * (image.width - side), down * (image.height - side)
        box = (left, top, left + side, top + side)
        cut = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        made = to_tensor(cut)
        return made.flip(2) if mirrored < 1 / 2 else made

    def batches(self, count: int, start: int, stop: int, *, threads: int) -> Generator[tuple[Tensor, dict[Path, str]]]:
        """Yield batches `start` to `stop` - 1 of `count` crops each, and what was left out; decoded ahead by threads.

        Raises:
            CnnvizError: as above.
        """
        with ThreadPoolExecutor(threads, "cnnviz-decoder") as pool:

            def begun(batch: int) -> list[Future[Crop]]:
                return [pool.submit(self, batch * count + i) for i in range(count)]

            numbers = iter(range(start, stop))
            waiting = deque(map(begun, islice(numbers, 1 + math.ceil(_AHEAD * threads / count))))
            try:
                while waiting:
                    crops = [future.result() for future in waiting.popleft()]
                    waiting.extend(map(begun, islice(numbers, 1)))
                    left_out = {path: why for crop in crops for path, why in crop.left_out.items()}
                    yield torch.stack([crop.picture for crop in crops]), left_out
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _mixed(seed: int, n: int) -> int:
    """Return a seed for the n-th of something."""
    return (seed * 0x9E3779B97F4A7C15 + n * 0xBF58476D1CE4E5B9) % 2**63


@lru_cache(maxsize=4)
def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
