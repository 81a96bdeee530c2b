"""One pass of a network over a data set, whatever engine runs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import torch
from torch import nn

from ..data import Dataset, open_dataset
from ..errors import CnnvizError, InputError, LayerError, OptionError
from ..index import Index, Job, Recipe, begin, ids_in, no_maps, read_manifest
from ..memory import batch_size, parse_memory, ran_out
from ..models import Model, Survey, find_module, load_model, survey, telling
from ..request import Progress, unwatched
from .local import run_local

_LARGEST: Final = 256  # images in a batch, and, about, in a part
_EXACT: Final = 1 << 24  # values of a layer up to which all are kept


def build_index(
    model: nn.Module | Model | None,
    images: Dataset | str | Path,
    folder: str | Path,
    *,
    layer: str | Sequence[str] | None = None,
    top: int = 16,
    thumbnail: int = 32,
    add: bool = False,
    restart: bool = False,
    engine: Literal["local", "ray"] = "local",
    workers: int = 1,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Index:
    """Run a network over a data set and keep what it makes of it; what is interrupted goes on where it was.

    The same call after an interruption, even by a kill, computes what is missing; no image is lost or counted twice.
    Batches are those of the data set, whoever computes them, so that engines give the same bits on the same device with
    the same number of threads.

    Args:
        model: the network with its preprocessing; None for the embedded MobileNetV2.
        images: a data set, or its place; see `cnnviz.data.open_dataset`.
        folder: where to keep it: new, empty, or an index that was begun with the same arguments.
        layer: whose features are kept, one or several; the last spatial output before the head by default.
        top: how many of its strongest units are kept for each channel.
        thumbnail: side in pixels of the small pictures that are kept.
        add: add the images that a finished index does not have, by their ids; layers, batches, units and small pictures
            are as the index has them.
        restart: forget what an interrupted run left whose images were others, or that was made otherwise.
        engine: "local", or "ray" for a Ray cluster (``pip install 'cnnviz[ray]'``), which this starts if there is none.
        workers: processes that decode images; with Ray, actors that decode and run the network.
        memory: budget for a batch, in bytes or as "2GiB"; 1 GiB by default. On a CPU two batches are looked at at once.
        progress: called with images done and their total; may raise to cancel.

    Returns:
        The finished index.

    Raises:
        CnnvizError: one of its subclasses; says what was got, what is expected and what to do next.

    Example:
        >>> import tempfile
        >>> from cnnviz.data import demo_picture
        >>> from cnnviz.engines import build_index
        >>> with tempfile.TemporaryDirectory() as place:
        ...     demo_picture().save(f"{place}/cat.png")
        ...     build_index(None, place, f"{place}/index", workers=0)
        <index of 1 images, mobilenet_v2, layers features>
    """
    loaded = load_model(model)
    if loaded.preprocess is None:
        raise InputError(f"{loaded.name} has no preprocessing; wrap it: cnnviz.load_model(module, preprocess=…)")
    for name, value, least in (("top", top, 1), ("thumbnail", thumbnail, 4), ("workers", workers, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"{name}: got {value!r}, expected a whole number of at least {least}")
    if engine not in ("local", "ray"):
        raise OptionError(f"engine: got {engine!r}, expected 'local' or 'ray'")
    dataset = images if isinstance(images, Dataset) else open_dataset(images)
    example = loaded.example()
    # Batches do not depend on the precision that the caller computes in.
    own = torch.autocast(loaded.device.type, enabled=False)
    with own, telling(loaded.name, example, hint="; give a preprocessing that crops to the size that it takes"):
        known = survey(loaded.module, example)
    if add:
        if layer is not None:
            raise OptionError("layer: images are added with the layers that the index has; leave it out")
        recipe = _of_more(known, Path(folder).expanduser(), dataset)
    else:
        recipe = _recipe(loaded, known, layer, len(dataset), parse_memory(memory), top=top, thumbnail=thumbnail)
    with begin(folder, loaded, dataset, recipe, add=add, restart=restart) as job:
        try:
            _run(job, loaded, known, engine, workers, progress or unwatched)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            raise CnnvizError(job.too_large()) from error
        job.finish()
    return Index(folder)


def _run(job: Job, model: Model, known: Survey, engine: str, workers: int, progress: Progress) -> None:
    missing = job.missing()
    if not missing:
        return
    if engine == "local":
        run_local(job, model, known, missing, workers=workers, progress=progress)
        return
    from .on_ray import run_ray

    run_ray(job, model, missing, actors=max(1, workers), progress=progress)


def _recipe(
    model: Model,
    known: Survey,
    layer: str | Sequence[str] | None,
    images: int,
    memory: int,
    *,
    top: int,
    thumbnail: int,
) -> Recipe:
    names = (layer,) if isinstance(layer, str) else tuple(layer or ())
    if not names and known.cam_layer is None:
        raise LayerError(f"no layer of {model.name} returns a map larger than 1 x 1; name one with layer=…")
    for name in names:
        find_module(model.module, name)
    layers = tuple(known.resolve(name) for name in names or (str(known.cam_layer),))
    if len(set(layers)) < len(layers):
        raise LayerError(f"layer: got {', '.join(layers)}; name each once")
    for one in known.layers:
        if one.name in layers and (one.shape is None or len(one.shape) not in (1, 3)):
            raise no_maps(one.name, "no tensor" if one.shape is None else f"({', '.join(map(str, ('N', *one.shape)))})")
    batch = min(batch_size(known, memory, model.device, backward=False), _LARGEST)
    made = Recipe(layers, batch, -(-_LARGEST // batch) * batch, top, thumbnail)
    return replace(made, exact=_exact(known, layers, images))


def _of_more(known: Survey, folder: Path, dataset: Dataset) -> Recipe:
    """Return how images are added to an index: as its own were made, but for what would grow too large."""
    manifest = read_manifest(folder)
    recipe = Recipe.from_json(manifest["recipe"])
    ids = {item.id for item in dataset.items}.union(*ids_in(manifest, folder).values())
    exact = _exact(known, recipe.layers, len(ids))
    return replace(recipe, exact=tuple(layer for layer in recipe.exact if layer in exact))


def _exact(known: Survey, layers: Sequence[str], images: int) -> tuple[str, ...]:
    """Return the layers that have so few values on so many images that all can be kept."""
    shapes = {layer.name: layer.shape for layer in known.layers}
    return tuple(name for name in layers if (shape := shapes.get(name)) and images * math.prod(shape) <= _EXACT)
