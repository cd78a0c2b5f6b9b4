"""A real PgBouncer in transaction mode, with fewer connections than its clients want."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from engines.pgbouncer import pooled
from engines.postgres import Postgres

from repid import ConfigurationError, Connection, Job, Message, PostgresServer, Repid, Router, Server

pytestmark = pytest.mark.real_time


class Work:
    """An app with one actor, which counts its runs, fails at first for one number in ten."""

    def __init__(self, server: Server) -> None:
        self.runs: Counter[int] = Counter()
        self.sent = 0
        self.app, router = Repid(Connection(server)), Router(retries=3, retry_policy=lambda _: 0.05)
        router.actor(self.work)
        router.actor(store_result=True)(self.done)
        self.app.include_router(router)

    async def work(self, number: int, message: Message) -> int:
        self.runs[number] += 1
        if number % 10 == 0 and message.attempt == 1:
            raise ValueError(number)
        return number

    async def done(self, number: int) -> int:
        return number


async def test_two_workers_share_two_connections_of_a_pooler(postgres: Postgres, schema: str) -> None:
    with pooled(postgres) as url:
        one, two = (Work(PostgresServer(url, schema=schema, listen=False)) for _ in range(2))
        async with one.app.magic(), two.app.magic(), trio.open_nursery() as nursery:
            handles = [await nursery.start(each.app.run_worker) for each in (one, two)]
            with trio.fail_after(60):
                for start in range(0, 200, 50):
                    jobs = [Job("work", args={"number": n}, app=one.app) for n in range(start, start + 50)]
                    await one.app.enqueue_many(jobs)
                answer = await Job("done", args={"number": 7}, app=two.app).enqueue()
                assert (await answer.wait()).value == 7
                while (one.runs + two.runs).total() < 220:
                    await trio.sleep(0.02)
            for handle in handles:
                handle.stop()
        assert one.runs + two.runs == Counter({n: 2 if n % 10 == 0 else 1 for n in range(200)})


@pytest.mark.parametrize("ignores_options", [False, True], ids=["refuses options", "ignores options"])
async def test_a_pooler_is_noticed_by_a_server_that_would_listen(
    ignores_options: bool, postgres: Postgres, schema: str
) -> None:
    with pooled(postgres, ignores_options=ignores_options) as url:
        with pytest.raises(ConfigurationError, match=r"PgBouncer.*listen=False"):
            async with PostgresServer(url, schema=schema).connection():
                pass
        async with PostgresServer(url, schema=schema, listen=False).connection() as server:
            await server.declare(["q"])
