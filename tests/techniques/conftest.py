from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.techniques.networks import one_thread


@pytest.fixture(autouse=True, scope="package")
def on_one_thread() -> Iterator[None]:
    """Run these small networks on one thread: more of them gain nothing, and wait for one another on a busy machine."""
    with one_thread():
        yield
