"""Images of a data set, decoded ahead by other processes, in order, never more than a few batches of them at once."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Indexed

from ..errors import CnnvizError, InputError
from .dataset import Item
from .images import open_image

_AHEAD: Final = 2  # batches that are made ready by each process
_EVERY: Final = 1.0  # seconds between two looks at whether anybody waits for them


@dataclass(frozen=True)
class Decoded:
    """An image, or why there is none.

    Attributes:
        number: its place in the data set.
        picture: (h, w, 3) uint8, what `prepare` made of it; None where it could not be read.
        digest: SHA-256 of the file's bytes, "" where there are none.
        why: the reason why there is no picture, "" where there is one.
    """

    number: int
    picture: numpy.ndarray | None
    digest: str = ""
    why: str = ""


def decode(item: Item, number: int, prepare: Callable[[Image.Image], Image.Image]) -> Decoded:
    """Read an image, and let `prepare` resize and crop it."""
    digest = ""
    try:
        raw = item.read()
        digest = hashlib.sha256(raw).hexdigest()
        return Decoded(number, numpy.asarray(prepare(open_image(raw))), digest)
    except InputError as error:
        return Decoded(number, None, digest, str(error))
    except CnnvizError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a preprocessing makes of a strange picture; the others go on
        return Decoded(number, None, digest, f"it cannot be resized and cropped ({error!r})")


@dataclass(frozen=True)
class _Batches(Indexed[list[Decoded]]):
    items: Sequence[Item]
    batches: Sequence[range]
    prepare: Callable[[Image.Image], Image.Image]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> list[Decoded]:
        return [decode(self.items[number], number, self.prepare) for number in self.batches[batch]]


def decoded(
    items: Sequence[Item],
    batches: Sequence[range],
    prepare: Callable[[Image.Image], Image.Image],
    *,
    workers: int,
) -> Generator[list[Decoded]]:
    """Yield batches of decoded images, in order.

    Args:
        items: the images of the data set.
        batches: the numbers of the images in each batch.
        prepare: resizes and crops an upright RGB picture.
        workers: processes that decode; 0 decodes where the images are used.

    Raises:
        CnnvizError: a process was killed, or an image's file could not be read for now.
    """
    options: dict[str, Any] = {"prefetch_factor": _AHEAD} if workers else {}
    # Arrays go through pipes: shared memory, which tensors would take, is often scarce in containers.
    loader = DataLoader(
        _Batches(items, batches, prepare),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # otherwise the global one is drawn from
        worker_init_fn=_end_with_parent,
        **options,
    )
    try:
        with torch.device("cpu"):  # where the seed of its processes is drawn
            batches_made = iter(loader)
        yield from batches_made
    except RuntimeError as error:
        if not re.search("DataLoader worker .* (exited unexpectedly|is killed by signal)", str(error)):
            raise
        raise CnnvizError(
            f"a process that decodes images was killed ({error}); look for lack of memory, and start again"
        ) from error


def _end_with_parent(_: int) -> None:
    """End this process once the one that it decodes for has: killed, that tells nobody, and a full pipe waits."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(batch: list[Decoded]) -> list[Decoded]:
    return batch
