"""A real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    found = os.environ.get("CNNVIZ_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        told = "no Chromium found; install it, or name it in CNNVIZ_CHROMIUM"
        pytest.fail(told) if os.environ.get("CNNVIZ_REQUIRE_BROWSER") == "1" else pytest.skip(told)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        yield started
        started.close()
