"""What is published in one call to PostgreSQL."""

from __future__ import annotations

import pytest
from engines.postgres import Postgres

from repid import PostgresServer
from repid.envelope import new_ids

from .broker_aids import message

pytestmark = pytest.mark.real_time

USUAL = new_ids(3)


@pytest.mark.parametrize(
    "ids",
    [
        USUAL,
        [*USUAL, "1", ""],
        [*USUAL, USUAL[0].upper()],
        [*USUAL, "a b" + 29 * "0"],
        [*USUAL, 32 * "é"],
        [16 * "0", 48 * "0"],
    ],
    ids=["usual ones", "short ones", "capitals", "blanks", "other letters", "32 on average"],
)
async def test_messages_that_go_together_keep_their_ids_whatever_these_are(
    postgres: Postgres, schema: str, ids: list[str]
) -> None:
    server = PostgresServer(postgres.url, schema=schema)
    async with server.connection():
        await server.declare(["q"])
        assert await server.publish([message(id_) for id_ in ids]) == [None] * len(ids)
        assert [one.envelope.id for one in await server.browse("q", "ready")] == ids
        twice = await server.publish([message(id_) for id_ in ids])
        assert [type(outcome).__name__ for outcome in twice] == ["DuplicateId"] * len(ids)
