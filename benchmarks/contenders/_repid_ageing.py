"""Whether claims in PostgreSQL stay flat while nothing can be vacuumed: millions of rows are there, and an old snapshot is held."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import psycopg
import trio

from repid import PostgresServer
from repid.delivery import ACK, Settlement
from repid.envelope import Envelope, new_id

from ._shared import Arguments, Figures

CLAIMED = 100
PARTS = 10
"""The drain is divided into so many parts; figures are of the first and of the last one."""

FILL = """
INSERT INTO repid.message (seq, lane, rank, id, payload, kind, enqueued_at)
SELECT 1000000000 + n, lane.id, repid.clock() + n, uuid_send(gen_random_uuid()), '{"number": 1}', 1, repid.clock()
FROM generate_series(1, %s) AS n, (SELECT id FROM repid.lane WHERE NOT suspects LIMIT 1) AS lane;
"""
MAKE_READY = """
INSERT INTO repid.ready (lane, rank, seq) SELECT lane, rank, seq FROM repid.message WHERE seq > 1000000000
"""
BURY = """
INSERT INTO repid.dead (queue, lane, id, payload, kind, attempt, lost, reason, enqueued_at, died_at)
SELECT lane.queue, lane.id, uuid_send(gen_random_uuid()), '{"number": 1}', 1, 1, 0, 'failed', repid.clock(), repid.clock()
FROM generate_series(1, %s) AS n, (SELECT * FROM repid.lane WHERE NOT suspects LIMIT 1) AS lane
"""
STATE = """
SELECT sum(n_dead_tup), sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables WHERE schemaname = 'repid'
"""


async def measure_ageing(arguments: Arguments) -> Figures:
    server = PostgresServer(arguments["url"])
    async with server.connection():
        await server.declare(["work"])
        await server.publish([Envelope(new_id(), "work", b"1", headers={"topic": "noop"})])
        with psycopg.connect(arguments["url"], autocommit=True) as connection:
            connection.execute(FILL, [arguments["ready"]])
            connection.execute(MAKE_READY)
            connection.execute(BURY, [arguments["dead"]])
            connection.execute("VACUUM ANALYZE")
        with psycopg.connect(arguments["url"]) as old:
            old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            old.execute("SELECT count(*) FROM pg_class")  # from here on nothing that dies can be vacuumed
            claims, settlements = await _drain(server, arguments["ready"])
            with psycopg.connect(arguments["url"], autocommit=True) as connection:
                [(dead_rows, size)] = connection.execute(STATE).fetchall()
    first, last = median(claims[0]), median(claims[-1])
    return {
        "growth": last / first,
        "settling": median(settlements[-1]) / median(settlements[0]),
        "claim": last,
        "dead_rows": int(dead_rows) / 1e6,
        "size": int(size) / 2**20,
        "parts": [[median(part), max(part)] for part in claims],
    }


async def _drain(server: PostgresServer, ready: int) -> tuple[list[list[float]], list[list[float]]]:
    """Claim and acknowledge all; milliseconds of each claim and settlement, by parts of the drain."""
    claims: list[list[float]] = [[] for _ in range(PARTS)]
    settlements: list[list[float]] = [[] for _ in range(PARTS)]
    done = 0
    async with server.consume({"work": None}) as consumer:
        while True:
            began = perf_counter()
            deliveries = await consumer.receive(CLAIMED, max_wait=0)
            claimed = perf_counter()
            if not deliveries:
                return claims, settlements
            await consumer.settle([Settlement(delivery, ACK) for delivery in deliveries])
            part = min(done * PARTS // ready, PARTS - 1)
            claims[part].append((claimed - began) * 1000)
            settlements[part].append((perf_counter() - claimed) * 1000)
            done += len(deliveries)
            await trio.lowlevel.checkpoint()
