"""The engine that needs no service: this process runs the network, others decode."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice

from ..data.decoding import Decoded, decoded
from ..index import Job, Observer
from ..models import Model
from ..request import Progress


def run_local(job: Job, model: Model, parts: Sequence[int], *, workers: int, progress: Progress) -> None:
    """Make parts of an index, one after the other, while other processes decode the images that come next."""
    observer = Observer(model, job.recipe)
    total = len(job.dataset)
    done = total - sum(len(batch) for part in parts for batch in job.batches(part))
    assert model.preprocess is not None
    batches = [batch for part in parts for batch in job.batches(part)]
    stream = decoded(job.dataset.items, batches, model.preprocess.picture, workers=workers)

    def told() -> Generator[list[Decoded]]:
        nonlocal done
        progress(done, total)
        for batch in stream:
            yield batch
            done += len(batch)
            progress(done, total)

    # Closed whatever happens, so that no process goes on decoding.
    with closing(stream), closing(told()) as looked_at:
        for part in parts:
            job.write(part, observer.observe(islice(looked_at, len(job.batches(part)))))
    progress(total, total)
