"""The engine that needs no service: this process runs the network, others decode."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice

from ..data.decoding import decoded
from ..index import Job, Observer
from ..models import Model, Survey
from ..request import Progress


def run_local(job: Job, model: Model, known: Survey, parts: Sequence[int], *, workers: int, progress: Progress) -> None:
    """Make parts of an index, one after the other, while other processes decode the images that come next."""
    observer = Observer(model, job.recipe, known)
    total = len(job.dataset)
    done = total - sum(len(batch) for part in parts for batch in job.batches(part))
    assert model.preprocess is not None
    batches = [batch for part in parts for batch in job.batches(part)]
    stream = decoded(job.dataset.items, batches, model.preprocess.picture, workers=workers)

    def looked_at(images: int) -> None:
        nonlocal done
        progress(done, total)  # of those before, whose parts are written: what is cancelled here is lost
        done += images

    progress(done, total)
    # Closed whatever happens, so that no process goes on decoding.
    with closing(stream):
        for part in parts:
            job.write(part, observer.observe(islice(stream, len(job.batches(part))), looked_at))
    progress(total, total)
