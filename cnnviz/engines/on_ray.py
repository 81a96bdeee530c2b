"""The engine for a Ray cluster: actors decode images and run the network, each a part of the index at a time."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any, Final

from ..data.decoding import decoded
from ..errors import CnnvizError, InputError, reason
from ..heap import keep_freed_memory
from ..index import Job, Observer
from ..memory import ran_out
from ..models import Model
from ..request import Progress

_TRIALS: Final = 3  # of an actor that dies
_CPUS: Final = 4  # the least that Ray Data schedules its own work and actors on without waiting for itself


class _Actor:
    """Makes parts. What goes wrong is told in a column, so that no other part is lost."""

    def __init__(self, job: Job, model: Model) -> None:
        keep_freed_memory()
        self._job = job
        self._observer = Observer(model, job.recipe)
        assert model.preprocess is not None
        self._prepare = model.preprocess.picture

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        (part,) = rows["part"].tolist()
        error = ""
        try:
            stream = decoded(self._job.dataset.items, self._job.batches(part), self._prepare, workers=0)
            self._job.write(part, self._observer.observe(stream))
        except Exception as caught:  # noqa: BLE001  # it is raised where all are known
            error = self._job.too_large() if ran_out(caught) else reason(caught)
        return {"part": [part], "error": [error]}


def run_ray(job: Job, model: Model, parts: Sequence[int], *, actors: int, progress: Progress) -> None:
    """Make parts of an index on the Ray cluster in use, or on one that is started here and ended afterwards.

    The index's folder must be the same for all machines. Parts that are there already are not made again, whoever was
    killed; an actor that dies is replaced, and its part begun anew.

    Raises:
        InputError: Ray is not installed.
        CnnvizError: a part could not be made, after a few trials where its actor died.
    """
    if not os.environ.get("RAY_ADDRESS"):
        # What its own name says, and on Linux too: a cluster of this machine alone, which listens on loopback alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # read when Ray is imported
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("the Ray engine needs Ray; pip install 'cnnviz[ray]', or take engine='local'") from error
    total = len(job.dataset)
    sizes = {part: sum(map(len, job.batches(part))) for part in parts}
    done = total - sum(sizes.values())
    started = not ray.is_initialized()
    if started:
        _start(ray)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        # One block for each part, before and after the actors, so that a part is one task that can be done again.
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        with warnings.catch_warnings():
            # There is no other way to say how often an actor is tried, and without a bound it is tried for ever.
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            made = rows.map_batches(
                _Actor,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_cpus=1,
                num_gpus=1 if model.device.type == "cuda" else None,
                fn_constructor_args=(job, model),
                ray_remote_args_fn=lambda: {"max_restarts": _TRIALS, "max_task_retries": _TRIALS},
            )
        wrong: list[str] = []
        progress(done, total)
        for row in made.iter_rows():
            wrong += [row["error"]] * bool(row["error"])
            done += sizes[row["part"]]
            progress(done, total)
        if wrong:
            raise CnnvizError(f"{len(wrong)} of {len(parts)} parts could not be made; {wrong[0]}")
        if job.missing():
            raise CnnvizError(f"the actors did not write to '{job.folder}' as it is here; give a folder that all share")
    except ray.exceptions.RayError as error:
        raise CnnvizError(f"Ray could not go on ({error}); start again, what was done is kept") from error
    finally:
        context.enable_progress_bars = bars
        if started:
            ray.shutdown()


def _start(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine, without a dashboard."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=max(_CPUS, os.cpu_count() or 1), include_dashboard=False, **quiet)
