"""`sqlite3` with nothing around it, in one thread: what the platform allows at most.

WAL at synchronous=FULL, so that every commit is on the disk. Enqueueing is one transaction for each batch; claiming
marks the oldest as leased in one transaction, and the next one deletes them. One by one, a trio task hands each payload to
the file's thread and waits for its commit: a program on an event loop must not wait for the disk itself.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from trio.lowlevel import Abort, current_task, current_trio_token, reschedule, wait_task_rescheduled

from ._shared import Arguments, Figures, Measurement, chunks, file_size, now, on_trio, rate, ready_cost, typed_payloads

SCHEMA = "CREATE TABLE job (id INTEGER PRIMARY KEY, payload BLOB NOT NULL, leased INTEGER)"
CLAIM = """
UPDATE job SET leased = 1 WHERE id IN (SELECT id FROM job WHERE leased IS NULL ORDER BY id LIMIT ?)
RETURNING id, payload
"""


def open_file(arguments: Arguments) -> sqlite3.Connection:
    connection = sqlite3.connect(path_of(arguments), isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 2000")
    connection.execute(SCHEMA)
    return connection


def path_of(arguments: Arguments) -> str:
    return str(Path(arguments["folder"]) / "bare.db")


def enqueue(connection: sqlite3.Connection, payloads: Sequence[dict[str, Any]], batch: int) -> None:
    for part in chunks(payloads, batch):
        rows = [(json.dumps(payload, separators=(",", ":")),) for payload in part]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO job (payload) VALUES (?)", rows)
        connection.execute("COMMIT")


async def measure_single(arguments: Arguments) -> Figures:
    payloads, inbox, token = typed_payloads(arguments["messages"]), SimpleQueue[Any](), current_trio_token()

    def work() -> None:
        connection = open_file(arguments)
        while (item := inbox.get()) is not None:
            task, payload = item
            enqueue(connection, [payload], 1)
            token.run_sync_soon(reschedule, task)

    thread = Thread(target=work)
    thread.start()
    start = now()
    for payload in payloads:
        inbox.put((current_task(), payload))
        await wait_task_rescheduled(lambda _: Abort.FAILED)
    figures = rate(len(payloads), start, now())
    inbox.put(None)
    thread.join()
    return figures


def claim(connection: sqlite3.Connection, batch: int) -> list[tuple[int]]:
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute(CLAIM, (batch,)).fetchall()
    connection.execute("COMMIT")
    return [(row[0],) for row in rows]


def measure_bulk(arguments: Arguments) -> Figures:
    connection, payloads = open_file(arguments), typed_payloads(arguments["messages"])
    start = now()
    enqueue(connection, payloads, arguments["batch"])
    figures = rate(len(payloads), start, now())
    start = now()
    enqueue(connection, payloads, 1000)
    return {**figures, "thousands": rate(len(payloads), start, now())["rate"]}


def measure_noop(arguments: Arguments) -> Figures:
    connection, count = open_file(arguments), arguments["messages"]
    enqueue(connection, [{}] * count, 1000)
    start, done = now(), 0
    while ids := claim(connection, arguments["batch"]):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("DELETE FROM job WHERE id = ?", ids)
        connection.execute("COMMIT")
        done += len(ids)
    assert done == count
    return rate(count, start, now())


def measure_row(arguments: Arguments) -> Figures:
    connection = open_file(arguments)
    before = file_size(path_of(arguments))
    enqueue(connection, typed_payloads(arguments["messages"]), arguments["batch"])
    connection.close()
    return ready_cost(arguments["messages"], before, file_size(path_of(arguments)))


MEASUREMENTS: dict[str, Measurement] = {
    "sqlite-bulk": measure_bulk,
    "sqlite-single": on_trio(measure_single),
    "sqlite-noop": measure_noop,
    "sqlite-row": measure_row,
}
DISTRIBUTIONS = ()
