"""psycopg with nothing around it: what the client and the server allow at most for the same work in batches.

Enqueueing inserts a batch into two tables in one statement; a claim moves the first hundred from one of them to a third with
SKIP LOCKED, and a third statement deletes the leases and the bodies. No ids are compared, nothing is delayed or retried.
"""

from __future__ import annotations

import json

import psycopg

from ._servers import Watch
from ._shared import Arguments, Figures, Measurement, chunks, typed_payloads
from .bare_loops import measure_naps

TABLES = """
CREATE TABLE body (seq bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, payload bytea NOT NULL);
CREATE TABLE ready (seq bigint PRIMARY KEY);
CREATE TABLE lease (seq bigint PRIMARY KEY, until timestamptz NOT NULL);
"""
ENQUEUE = """
WITH new AS (INSERT INTO body (payload) SELECT unnest(%s::bytea[]) RETURNING seq) INSERT INTO ready SELECT seq FROM new
"""
CLAIM = """
WITH picked AS (SELECT seq FROM ready ORDER BY seq LIMIT 100 FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM ready WHERE seq = ANY(ARRAY(SELECT seq FROM picked)) RETURNING seq),
leased AS (INSERT INTO lease SELECT seq, now() + interval '1 minute' FROM gone RETURNING seq)
SELECT body.seq, payload FROM leased JOIN body USING (seq)
"""
SETTLE = """
WITH gone AS (DELETE FROM lease WHERE seq = ANY(%s) RETURNING seq)
DELETE FROM body WHERE seq = ANY(ARRAY(SELECT seq FROM gone))
"""


def enqueue(connection: psycopg.Connection, payloads: list[dict[str, object]], batch: int) -> None:
    for part in chunks(payloads, batch):
        connection.execute(ENQUEUE, [[json.dumps(payload, separators=(",", ":")).encode() for payload in part]])


def bulk(arguments: Arguments) -> Figures:
    payloads = typed_payloads(arguments["messages"])
    with psycopg.connect(arguments["url"], autocommit=True, prepare_threshold=0) as connection:
        connection.execute(TABLES.encode(), prepare=False)
        watch = Watch(arguments)
        enqueue(connection, payloads, arguments["batch"])
        return watch.rate(len(payloads))


def noop(arguments: Arguments) -> Figures:
    count, done = arguments["messages"], 0
    with psycopg.connect(arguments["url"], autocommit=True, prepare_threshold=0) as connection:
        connection.execute(TABLES.encode(), prepare=False)
        enqueue(connection, [{}] * count, 1000)
        watch = Watch(arguments)
        while rows := connection.execute(CLAIM, binary=True).fetchall():
            connection.execute(SETTLE, [[seq for seq, _ in rows]])
            done += len(rows)
        figures = watch.rate(count)
    assert done == count
    return figures


MEASUREMENTS: dict[str, Measurement] = {"postgres-bulk": bulk, "postgres-noop": noop, "postgres-sleep": measure_naps}
DISTRIBUTIONS = ("psycopg", "trio")
