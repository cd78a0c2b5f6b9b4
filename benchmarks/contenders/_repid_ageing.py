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
SELECT sum(n_dead_tup) / 1e6, sum(pg_total_relation_size(relid)) / 2^20 FROM pg_stat_user_tables WHERE schemaname = 'repid'
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
            parts = await _drain(server, arguments)
    first, last = parts[0], parts[-1]
    return {
        "growth": last["claim"] / first["claim"],
        "settling": last["settlement"] / first["settlement"],
        "claim": last["claim"],
        "dead_rows": last["dead_rows"],
        "size": last["size"],
        "parts": parts,
    }


async def _drain(server: PostgresServer, arguments: Arguments) -> list[Figures]:
    """Claim and acknowledge all. Of each part: the median milliseconds of a claim and of a settlement, then the millions of
    rows that wait to be vacuumed, and the megabytes of all tables.
    """
    parts: list[Figures] = []
    claims: list[float] = []
    settlements: list[float] = []
    async with server.consume({"work": None}) as consumer:
        with psycopg.connect(arguments["url"], autocommit=True) as connection:
            while len(parts) < PARTS:
                began = perf_counter()
                deliveries = await consumer.receive(CLAIMED, max_wait=0)
                claimed = perf_counter()
                await consumer.settle([Settlement(delivery, ACK) for delivery in deliveries])
                claims.append((claimed - began) * 1000)
                settlements.append((perf_counter() - claimed) * 1000)
                await trio.lowlevel.checkpoint()
                if len(claims) * CLAIMED * PARTS >= arguments["ready"]:
                    [(dead_rows, size)] = connection.execute(STATE).fetchall()
                    parts.append(
                        {
                            "claim": median(claims),
                            "settlement": median(settlements),
                            "dead_rows": float(dead_rows),
                            "size": float(size),
                        }
                    )
                    claims, settlements = [], []
    return parts
