"""Rows a second of a batch actor and of one that gets a row at a time, with nothing to do and with rows to write."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

from repid import Connection, Repid, Router, Server

from ._shared import Arguments, Figures

CHANNEL = "rows"
TURNS = 3

router = Router(channel=CHANNEL)
tables: list[sqlite3.Connection] = []
"""The last one is where rows are written to."""


@router.actor
async def nothing(number: int) -> None: ...


@router.actor(batch=500)
async def nothing_at_once(rows: list[int]) -> None: ...


@router.actor
async def write(number: int) -> None:
    """One row, in a transaction of its own."""
    with tables[-1] as table:
        table.execute("INSERT INTO row VALUES (?)", (number,))


@router.actor(batch=500)
async def write_at_once(rows: list[int]) -> None:
    """Many of them in one."""
    with tables[-1] as table:
        table.executemany("INSERT INTO row VALUES (?)", [(row,) for row in rows])


async def measure_batches(make: Callable[[], Server], arguments: Arguments) -> Figures:
    """By the processor's time, which leaves out the wait for the disk; in turns, the best of three."""
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        tables.append(sqlite3.connect(Path(folder) / "rows.db", check_same_thread=False))
        tables[-1].execute("PRAGMA journal_mode=WAL")
        tables[-1].execute("CREATE TABLE row (number INTEGER)")
        for _ in range(TURNS):
            for topic, count in (
                ("nothing", arguments["messages"]),
                ("nothing_at_once", arguments["messages"]),
                ("write", arguments["written"]),
                ("write_at_once", arguments["written"]),
            ):
                best[topic] = max(best.get(topic, 0.0), await _drain(make(), topic, count))
        tables.pop().close()
    return {
        "single": best["nothing"],
        "batch": best["nothing_at_once"],
        "ratio": best["nothing_at_once"] / best["nothing"],
        "written": best["write_at_once"] / best["write"],
    }


async def _drain(server: Server, topic: str, count: int) -> float:
    """Rows a second of the processor's time."""
    app = Repid(Connection(server))
    app.include_router(router)
    is_batch = topic.endswith("at_once")
    payloads = [number if is_batch else {"number": number} for number in range(count)]
    async with app.magic():
        await app.send_messages_json(channel=CHANNEL, payloads=payloads, headers={"topic": topic})
        start = process_time()
        report = await app.run_worker(burst=True)
        seconds = process_time() - start
    assert report.succeeded == count, f"{report.succeeded} of {count} rows"
    return count / seconds
