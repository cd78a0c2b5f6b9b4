"""What the tests of brokers share."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from repid.brokers import InMemoryServer


@pytest.fixture
async def server() -> AsyncGenerator[InMemoryServer, None]:
    """A connected broker in memory, with the queues "q" and "r"."""
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["q", "r"])
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of a SQLite broker will be."""
    return tmp_path / "repid.db"
