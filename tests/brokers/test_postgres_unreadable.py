"""Rows of PostgreSQL that cannot be read: each is buried or shown as far as it can be, and those beside it go on."""

from __future__ import annotations

import pytest
import trio
from engines.postgres import Postgres

from repid import Connection, Counts, PostgresServer, Repid, Router

from .broker_aids import ids, message, now_ready

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize("rare", [b"\xc1", b"\x94\xc0\xc0\xc0\x05"], ids=["no MessagePack", "of another version"])
async def test_a_message_that_cannot_be_read_is_buried_and_the_rest_goes_on(
    postgres: Postgres, schema: str, rare: bytes
) -> None:
    server = PostgresServer(postgres.url, schema=schema)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([message("before"), message("bad"), message("after")])
        postgres.execute(f"UPDATE {schema}.message SET rare = %s WHERE id = %s", rare, b"bad\xff")
        assert ids(await server.browse("q", "ready")) == ["before", "bad", "after"]  # type: ignore[arg-type]  # they have envelopes, too
        async with server.consume({"q": None}) as consumer:
            assert ids(await now_ready(consumer)) == ["before", "after"]
            assert await server.counts("q") == Counts(leased=2, dead=1)
            [[letter]] = await server.find(["bad"])
            assert letter.reason == "payload"
            assert letter.failure is not None
            assert "cannot be read" in letter.failure.text
            [result] = await server.fetch_results(["bad"])
            assert result is not None
            assert result.state == "failure"
            await server.revive("q")
            assert await now_ready(consumer) == []
            assert await server.counts("q") == Counts(leased=2, dead=1)


async def test_a_schedule_that_cannot_be_read_is_stored_anew_by_its_declaration(
    postgres: Postgres, schema: str
) -> None:
    server, router = PostgresServer(postgres.url, schema=schema), Router()

    @router.actor(every=3600)
    async def sync() -> None: ...

    app = Repid(Connection(server))
    app.include_router(router)
    async with app.magic():
        await app.run_worker(burst=True)
        postgres.execute(f"UPDATE {schema}.schedule SET body = %s", b"\xc1")
        assert await server.schedules() == []
        with trio.fail_after(10):
            await app.run_worker(burst=True)
        assert [stored.schedule.name for stored in await server.schedules()] == ["default:sync"]
