"""The fixtures that give tests a real server. One of PostgreSQL is started for the whole run, when the first test wants it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .postgres import Postgres
    from .redis import Redis

POSTGRES = os.environ.get("REPID_TEST_POSTGRES", "embedded").split()
"""The PostgreSQL servers that the tests are run against."""


@pytest.fixture(scope="session", params=POSTGRES)
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A PostgreSQL server, that nobody may stop."""
    from .postgres import running

    with running(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def one_schema(postgres: Postgres) -> Iterator[str]:
    """A name for a schema that the tests of a module share."""
    with postgres.schema() as name:
        yield name


@pytest.fixture
def schema(postgres: Postgres, one_schema: str) -> str:
    """A schema with nothing in it: making one for each test takes longer than the tests."""
    postgres.empty(one_schema)
    return one_schema


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    """A Redis server of the module's own, which it may stop. Modules that want another one override this."""
    from .redis import embedded

    with embedded() as server:
        yield server


@pytest.fixture
def prefix(redis: Redis) -> Iterator[str]:
    """A prefix of the module's `redis` that nobody else has."""
    with redis.prefix() as name:
        yield name
