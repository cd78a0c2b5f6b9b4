"""Tests under asyncio leave nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from .hosting import RUNS


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Runs a coroutine as `asyncio.run` does; what asyncio complains of fails the test."""
    yield request.param
    gc.collect()  # a coroutine or task that was forgotten warns now, and a warning is an error
