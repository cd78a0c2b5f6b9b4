"""What the SQLite broker remembers of the file between two transactions, and when it looks again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from repid.brokers.sqlite import thread
from repid.delivery import NewResult
from repid.envelope import Envelope
from repid.errors import DuplicateId, QueueNotDeclared

from .broker_aids import ids, message, now_ready
from .sqlite_aids import Opening, SteppedClock, ack, consuming, serving


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first words of what connections execute from now on."""
    noted: list[str] = []

    def note(statement: str) -> None:
        noted.append(" ".join(statement.split()[:3]))

    monkeypatch.setattr(thread, "open_file", Opening(lambda connection: connection.set_trace_callback(note)))
    return noted


async def test_a_send_after_another_one_takes_five_statements(path: Path, statements: list[str]) -> None:
    async with serving(path) as server:
        for number in range(3):
            statements.clear()
            await server.publish([message(str(number))])
    assert statements == [
        "BEGIN IMMEDIATE",
        "PRAGMA data_version",
        "INSERT INTO message",
        "INSERT INTO ready",
        "COMMIT",
    ]


async def test_what_another_process_declares_is_known_to_the_next_send(path: Path) -> None:
    async with serving(path, "q") as server, serving(path, "q") as other:
        [refused] = await server.publish([Envelope("1", "new", b"")])
        assert isinstance(refused, QueueNotDeclared)
        await other.declare(["new"])
        assert await server.publish([Envelope("1", "new", b"")]) == [None]
        await other.delete("new")
        [refused] = await server.publish([Envelope("2", "new", b"")])
        assert isinstance(refused, QueueNotDeclared)


async def test_what_another_process_schedules_is_made_ready_in_time(path: Path) -> None:
    clock = SteppedClock()
    async with serving(path, clock=clock) as server, serving(path, clock=clock) as other, consuming(server) as consumer:
        await server.publish([message("now")])
        await other.publish([message("later", delay=60.0)])
        assert ids(await now_ready(consumer)) == ["now"]
        clock.advance(61)
        assert ids(await now_ready(consumer)) == ["later"]


async def test_a_lone_message_with_an_id_that_is_alive_is_refused(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        assert await server.publish([message("1")]) == [None]
        [refused] = await server.publish([message("1")])
        assert isinstance(refused, DuplicateId)
        await ack(consumer, await now_ready(consumer))
        assert await server.publish([message("1")]) == [None]


async def test_a_result_stored_meanwhile_by_whomever_is_removed_by_a_send_with_its_id(path: Path) -> None:
    async with serving(path) as server, serving(path) as other:
        for number, storing in enumerate([other, server, other]):
            await server.publish([message(f"another {number}")])
            await storing.store_results([NewResult(id=f"{number}", state="success")])
            await server.publish([message(f"{number}")])
            assert await server.fetch_results([f"{number}"]) == [None]


def copy(source: Path, target: Path) -> None:
    """As the commands .backup and .restore of SQLite do it."""
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)


async def test_a_copy_that_is_restored_while_the_file_is_open_is_what_counts(path: Path, tmp_path: Path) -> None:
    """Messages for a queue that is not there any more would be stored for the next one that gets its number."""
    saved = tmp_path / "saved.db"
    async with serving(path, "q") as server:
        await server.publish([message("1")])
        copy(path, saved)
        await server.declare(["first", "second"])
        await server.publish([Envelope("2", "first", b""), Envelope("3", "second", b"")])
        copy(saved, path)
        [refused] = await server.publish([Envelope("4", "second", b"")])
        assert isinstance(refused, QueueNotDeclared)
        await server.declare(["second"])
        assert await server.publish([Envelope("5", "second", b"")]) == [None]
        assert [found.envelope.id for found in await server.browse("second", "ready")] == ["5"]
        assert [found.envelope.id for found in await server.browse("q", "ready")] == ["1"]
