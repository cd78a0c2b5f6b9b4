"""The file of the SQLite broker: opened, migrated, shared, damaged, full, gone. A sentence each."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from repid import Bounds, Connection, Envelope, Job, PrioritiesT, Queue, QueueFull, Repid
from repid.brokers import SQLiteMessageBroker, SQLiteServer
from repid.brokers.sqlite import schema, thread, transactions
from repid.delivery import ACK, Settlement
from repid.errors import BrokerRefused, BrokerUnavailable, ConfigurationError, QueueNotDeclared, UsageError
from repid.ports import Broker, Counts

from .broker_aids import ids, message, now_ready
from .sqlite_aids import Opening, SteppedClock, ack, consuming, idle, messages, serving, start_python

READ_ONLY_USER = 65534
"""nobody"""


async def open_and_close(path: Path) -> None:
    async with SQLiteServer(path).connection():
        pass


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


# Arguments


def test_it_is_a_broker(path: Path) -> None:
    broker: Broker = SQLiteServer(path)
    assert isinstance(broker, SQLiteMessageBroker)


@pytest.mark.parametrize("place", [":memory:", "", "file:x?mode=memory"])
def test_memory_is_refused_with_a_hint(place: str) -> None:
    with pytest.raises(ConfigurationError, match="InMemoryServer"):
        SQLiteServer(place)


@pytest.mark.parametrize("word", ["OFF", "full", 2])
def test_only_safe_modes_are_taken(path: Path, word: str) -> None:
    with pytest.raises(ConfigurationError, match="synchronous must be one of 'NORMAL', 'FULL', 'EXTRA'"):
        SQLiteServer(path, synchronous=word)  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_lease_timeout_must_be_positive(path: Path, timeout: float) -> None:
    with pytest.raises(ConfigurationError, match="lease_timeout must be positive"):
        SQLiteServer(path, lease_timeout=timeout)


@pytest.mark.parametrize("mode", ["NORMAL", "FULL", "EXTRA"])
async def test_every_mode_works(path: Path, mode: str) -> None:
    server = SQLiteServer(path, synchronous=mode)  # type: ignore[arg-type]  # one of them
    async with server.connection(), trio.open_nursery():
        await server.declare(["q"])
        async with consuming(server) as consumer:
            await server.publish([message("1")])
            assert await ack(consumer, await now_ready(consumer)) == [True]


async def test_a_path_is_taken_from_where_the_server_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = SQLiteServer("here.db")
    monkeypatch.chdir("/")
    async with server.connection():
        assert (tmp_path / "here.db").exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [None, 0o660])
async def test_nobody_else_may_read_a_new_file_unless_the_server_says_so(
    path: Path, umask: int, mode: int | None
) -> None:
    server = SQLiteServer(path) if mode is None else SQLiteServer(path, file_mode=mode)
    link = path.with_name("link.db")
    link.symlink_to(path)
    before = os.umask(umask)
    try:
        async with server.connection(), SQLiteServer(link).connection():
            await server.declare(["q"])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    names = ["link.db", "repid.db", "repid.db-shm", "repid.db-wal"]
    assert modes == dict.fromkeys(names, 0o600 if mode is None else mode)


async def test_a_file_behind_a_link_gets_its_permissions_too(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    await open_and_close(link)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_the_permissions_of_an_existing_file_are_left_as_they_are(path: Path) -> None:
    await open_and_close(path)
    path.chmod(0o644)
    async with serving(path):
        assert stat.S_IMODE(path.with_name("repid.db-wal").stat().st_mode) == 0o644
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("mode", [660, 0o060, -1, 0o10600, "600", True])
def test_permissions_that_make_no_sense_are_refused(path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match=r"file_mode must be permissions .* such as 0o600"):
        SQLiteServer(path, file_mode=mode)


# What cannot be opened


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"does not exist: make .*/none first"):
        await open_and_close(tmp_path / "none" / "repid.db")


async def test_a_home_that_is_written_with_a_tilde_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"a ~ is not taken for a home: give SQLiteServer Path\(...\).expanduser"
    ):
        await open_and_close(tmp_path / "~" / "repid.db")


async def test_a_name_that_is_too_long_and_a_pipe_are_no_files_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the path of a file here: File name too long"):
        await open_and_close(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="pipe is a device, pipe or socket"):
        await open_and_close(tmp_path / "pipe")


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is a folder: .*/repid\.db"):
        await open_and_close(tmp_path)


@pytest.mark.parametrize("address", ["sqlite:///jobs.db", "sqlite+aiosqlite:////tmp/jobs.db", "file:///tmp/jobs.db"])
def test_an_address_is_no_path(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"but got the address '.*': give the path in it alone"):
        SQLiteServer(address)


async def test_what_is_no_database_is_left_alone(path: Path) -> None:
    path.write_bytes(b"my thesis " * 1000)
    with pytest.raises(ConfigurationError, match="is not an SQLite database"):
        await open_and_close(path)
    assert path.read_bytes() == b"my thesis " * 1000


async def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    change(path, "CREATE TABLE photos (a)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="the database of another program"):
        await open_and_close(path)
    assert path.read_bytes() == before


async def test_a_file_that_was_made_of_a_dump_is_told_from_that_of_another_program(path: Path) -> None:
    await open_and_close(path)
    with closing(sqlite3.connect(path)) as connection:
        dump = "\n".join(line for line in connection.iterdump() if "sqlite_sequence" not in line)
        [(version,)] = connection.execute("PRAGMA user_version")
    restored = path.with_name("restored.db")
    with closing(sqlite3.connect(restored)) as connection:
        connection.executescript(dump)
    with pytest.raises(ConfigurationError, match=r"no version, as if it was made from a dump") as caught:
        await open_and_close(restored)
    [id_] = re.findall(r"application_id = (\d+)", str(caught.value))
    change(restored, f"PRAGMA application_id = {id_}")
    with pytest.raises(ConfigurationError, match="no version"):
        await open_and_close(restored)
    change(restored, f"PRAGMA user_version = {version}")
    await open_and_close(restored)


async def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    async with serving(path) as server:
        await server.publish(messages("12"))
    change(path, "PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"newer repid \(version 99 .*update repid"):
        await open_and_close(path)
    assert path.read_bytes() == before
    change(path, f"PRAGMA user_version = {len(schema.MIGRATIONS)}")
    async with serving(path) as server:
        assert await server.counts("q") == Counts(ready=2)


async def test_after_a_failed_opening_the_server_can_be_opened(tmp_path: Path) -> None:
    server = SQLiteServer(tmp_path / "folder" / "repid.db")
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            await server.connection().__aenter__()
        assert not server.is_connected
    (tmp_path / "folder").mkdir()
    async with server.connection():
        assert server.is_connected


@pytest.mark.real_time
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_read_only_is_named(what: str) -> None:
    """Root may write anywhere, so somebody else tries."""
    user = READ_ONLY_USER if os.getuid() == 0 else os.getuid()
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to others
    code = """
        import os, sys, trio
        from repid.brokers import SQLiteServer
        async def main():
            try:
                async with SQLiteServer(sys.argv[1]).connection():
                    print("opened")
            except Exception as error:
                print(type(error).__name__, error)
        os.setuid(int(sys.argv[2]))
        trio.run(main)
    """
    try:
        path = folder / "repid.db"
        trio.run(open_and_close, path)
        path.chmod(0o444 if what == "file" else 0o666)
        folder.chmod(0o777 if what == "file" else 0o555)
        said = start_python(code, path, user).communicate(timeout=30)[0]
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)
    assert said.startswith("ConfigurationError")
    assert f"the {what} {path if what == 'file' else folder} is read-only" in said


# Migrations


async def test_an_older_file_is_brought_up_to_date_with_what_is_in_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(path) as server:
        await server.publish(messages("12"))
    newer = "CREATE TABLE extra (a);\nINSERT INTO extra VALUES (1);\n", "ALTER TABLE extra ADD COLUMN b;\n"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *newer))
    for _ in range(2):
        async with serving(path) as server:
            assert await server.counts("q") == Counts(ready=2)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT a, b FROM extra").fetchall() == [(1, None)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    connection.close()


def old_schedule(name: str, queue: str, actor: str, **rule: object) -> tuple[str, bytes]:
    """A row of a schedule as the first version wrote it."""
    envelope: dict[str, object] = {"id": name, "queue": queue, "payload": b"{}", "content_type": "application/json"}
    envelope |= {"headers": {"topic": actor}, "reply_to": None, "options": {"priority": 0}, "parameters": None}
    body: dict[str, object] = {"name": name, "envelope": envelope, "every": None, "cron": None, "timezone": "UTC"}
    return name, msgspec.msgpack.encode(body | {"overlap": "skip", "missed": "one"} | rule)


def make_version(path: Path, version: int) -> None:
    """An empty file as that version made it."""
    connection = sqlite3.connect(path, isolation_level=None)
    with mock_version(version):
        schema.migrate(connection, str(path))
    connection.close()


@contextmanager
def mock_version(version: int) -> Iterator[None]:
    """Let the code believe that it is that version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:version])
        yield


UNDATED = """
INSERT INTO queue VALUES (1, 'q', 0);
INSERT INTO lane (id, queue) VALUES (1, 1);
INSERT INTO boot VALUES (1, 'a former start of the machine');
INSERT INTO message (seq, lane, rank, id, payload) VALUES (1, 1, 5, 'waits', x'31'), (2, 1, 6, 'runs', x'32');
INSERT INTO ready VALUES (1, 5, 1);
INSERT INTO lease (seq, n, lane, until, boot, consumer, cancelling) VALUES (2, 0, 1, 7, 1, 1, 2);
INSERT INTO dead (queue, lane, id, payload, attempt, lost, reason) VALUES (1, 1, 'dead', x'33', 1, 0, 'failed');
"""


async def test_a_file_without_times_is_upgraded_and_its_dead_letters_count_from_then_on(path: Path) -> None:
    make_version(path, 5)
    change(path, *UNDATED.strip().splitlines())
    clock = SteppedClock()
    server = SQLiteServer(path, clock=clock, dead_ttl=100)
    async with server.connection(), server.consume({"q": None}) as consumer:
        [waits] = await server.browse("q", "ready")
        [runs] = await server.browse("q", "leased")
        [dead] = await server.browse("q", "dead")
        assert [waits.enqueued_at, runs.enqueued_at, runs.leased_at, runs.leased_by, dead.enqueued_at] == [None] * 5
        assert dead.died_at is not None
        assert 0 <= dead.seen_at - dead.died_at < 60
        clock.advance(30)
        assert await consumer.rescue() == 1
        assert await server.counts("q") == Counts(ready=1, dead=1)  # what runs was to be cancelled
        clock.advance(100)
        await consumer.rescue()
        assert await server.counts("q") == Counts(ready=1)
        assert [one.envelope.id for one in await consumer.receive(1)] == ["waits"]


async def test_an_older_repid_refuses_the_file_of_a_newer_one_and_says_what_to_do(path: Path) -> None:
    await open_and_close(path)
    with (
        mock_version(5),
        pytest.raises(ConfigurationError, match=r"newer repid \(version 8 of the file, this one knows 5\)"),
    ):
        await open_and_close(path)
    await open_and_close(path)


async def test_a_queue_of_an_older_version_can_be_bounded(path: Path) -> None:
    make_version(path, 7)
    change(path, "INSERT INTO queue (name) VALUES ('q')")
    async with SQLiteServer(path).connection() as server:
        assert (await server.counts("q")).bounds is None
        assert await server.publish([Envelope("1", "q", b"")]) == [None]
        await server.set_bounds({"q": Bounds(max_size=1, when_full="raise")})
        assert [type(each) for each in await server.publish([Envelope("2", "q", b"")])] == [QueueFull]
    async with SQLiteServer(path).connection() as server:
        assert (await server.counts("q")).bounds == Bounds(max_size=1, when_full="raise")


async def test_schedules_of_the_first_version_go_on_under_the_names_they_have_now(path: Path) -> None:
    rows = [
        old_schedule("q:sync", "q", "sync", every=60.0),
        old_schedule("a:b:c", "a:b", "c", every=70.0),
        old_schedule("report", "q", "report", cron="0 0 * * *"),
        old_schedule("an id", "q", "report", every=80.0),
        old_schedule("sync", "q", "sync", every=90.0),  # the name it would have now is taken by the actor's
    ]
    make_version(path, 1)
    connection = sqlite3.connect(path, isolation_level=None)
    sql = "INSERT INTO schedule (name, body, next_at, fired, last_id) VALUES (?, ?, 2e9, 3, 'last')"
    connection.executemany(sql, rows)
    connection.close()
    async with serving(path) as server:
        found = await server.schedules()
        assert [(s.schedule.name, s.schedule.every, s.schedule.envelope.queue) for s in found] == [
            ("a%3Ab:c", 70.0, "a:b"),
            ("an id", 80.0, "q"),
            ("q:report", None, "q"),
            ("q:sync", 60.0, "q"),
            ("sync", 90.0, "q"),
        ]
        assert {(s.next_at, s.fired, s.last_id, s.declaration) for s in found} == {(2e9, 3, "last", None)}
        assert [s.schedule.envelope.id for s in found] == [s.schedule.name for s in found]
        assert found[2].schedule.envelope.options.priority == PrioritiesT.HIGH
        await server.put_schedule(found[2].schedule, 1.0)
        assert await server.tick("q:report", 1.0, 2.0, message("tick")) == "fired"


async def test_an_app_of_today_goes_on_with_the_schedules_of_the_first_version(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(path, 1)
    connection = sqlite3.connect(path, isolation_level=None)
    sql = "INSERT INTO schedule (name, body, next_at) VALUES (?, ?, 2e9)"
    connection.execute(sql, old_schedule("report", "q", "report", every=60.0))
    connection.close()
    app = Repid(Connection(SQLiteServer(path)))
    async with app.magic():
        await Queue("q").declare()
        await Job("report", "q", args={}, priority=PrioritiesT.HIGH, deferred_by=60).enqueue()
        [stored] = await app.schedules.list()
    assert (stored.schedule.name, stored.next_at) == ("q:report", 2e9)


async def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await open_and_close(path)
    before = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*before, "CREATE TABLE extra (a);\nCREATE TABLE queue (a);\n"))
    with pytest.raises(BrokerRefused, match="table queue already exists"):
        await open_and_close(path)
    monkeypatch.setattr(schema, "MIGRATIONS", before)
    async with serving(path) as server:
        assert await server.publish(messages("1")) == [None]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'extra'").fetchone() == (0,)
    connection.close()


@pytest.mark.real_time
def test_processes_that_open_a_new_file_at_once_all_succeed(path: Path) -> None:
    code = """
        import sys, trio
        from repid.brokers import SQLiteServer
        from repid.envelope import Envelope, new_id
        async def main():
            server = SQLiteServer(sys.argv[1])
            print("ready", flush=True)
            input()
            async with server.connection():
                await server.declare(["q"])
                print(await server.publish([Envelope(new_id(), "q", b"")]))
        trio.run(main)
    """
    processes = [start_python(code, path) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=30)[0] for process in processes]
    assert said == ["[None]\n"] * 4

    async def count() -> Counts:
        async with serving(path) as server:
            return await server.counts("q")

    assert trio.run(count) == Counts(ready=4)


# What goes wrong later


async def test_a_full_disk_is_said_and_nothing_is_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(path) as server:
        await server.publish(messages(range(10)))
    with monkeypatch.context() as patched:
        patched.setattr(
            thread, "open_file", Opening(lambda connection: connection.execute("PRAGMA max_page_count = 60"))
        )
        async with serving(path) as server:
            with pytest.raises(BrokerUnavailable, match=rf"no space left for {path}: nothing was changed; make room"):
                await server.publish([message("big", payload=bytes(1_000_000))])
            assert await server.counts("q") == Counts(ready=10)
            assert await server.publish([message("small")]) == [None]
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish([message("big", payload=bytes(1_000_000))])
        assert len(await now_ready(consumer)) == 12


async def test_a_message_that_does_not_fit_harms_none_that_shares_its_transaction(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(connection: sqlite3.Connection) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)

    monkeypatch.setattr(thread, "open_file", Opening(limit))
    outcomes: list[object] = []

    async def publish(id_: str, size: int) -> None:
        try:
            outcomes.append((id_, await server.publish([message(id_, payload=bytes(size))])))
        except BrokerRefused as error:
            outcomes.append((id_, "too big" in str(error)))

    async with serving(path) as server:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(publish, str(number), 20_000 if number == 3 else 10)
        assert sorted(outcomes, key=str) == [(str(n), True if n == 3 else [None]) for n in range(10)]
        assert await server.counts("q") == Counts(ready=9)


async def test_what_was_rolled_back_is_forgotten_in_memory_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that were taken, and queues that were declared, in a transaction that failed."""
    limit = Opening(lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000))
    monkeypatch.setattr(thread, "open_file", limit)
    big = message("big", payload=bytes(20_000))
    async with serving(path) as server, serving(path) as other:
        with pytest.raises(BrokerRefused):
            await server.publish([message("0"), big])
        assert await other.publish(messages(range(10))) == [None] * 10
        assert await server.publish(messages(range(10, 20))) == [None] * 10
        async with consuming(server) as consumer:
            deliveries = await now_ready(consumer)
            assert len({delivery.token for delivery in deliveries}) == 20
            for changes in range(4):  # after any of these the numbers of the directory's versions may be the same
                with pytest.raises(BrokerRefused):
                    await consumer.settle([Settlement(deliveries[0], ACK, (message("out", "new"), big))])
                for change in range(changes):
                    await other.declare([f"other {changes} {change}"])
                [outcome] = await server.publish([message("out", "new")])
                assert isinstance(outcome, QueueNotDeclared)
            assert await ack(consumer, deliveries) == [True] * 20


async def test_a_settlement_is_committed_at_full_and_a_claim_is_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    monkeypatch.setattr(
        thread, "open_file", Opening(lambda connection: connection.set_trace_callback(statements.append))
    )

    async def produce() -> None:
        for number in range(30):
            await server.publish(messages([number]))

    async def consume() -> None:
        for _ in range(10):
            assert all(await ack(consumer, await consumer.receive(3)))

    async with serving(path) as server, consuming(server) as consumer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            nursery.start_soon(consume)
        await server.publish(messages("12"))
        await consumer.extend(await now_ready(consumer))
        await server.publish(messages("3"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consumer.receive, 1)
            await idle()  # it waits for the lock
            nursery.start_soon(server.publish, messages("4"))
            await idle()
            other.execute("ROLLBACK")
        other.close()
    assert modes(statements, "DELETE FROM message") == {"FULL"}
    assert modes(statements, "UPDATE lease SET until") == {"NORMAL"}


def modes(statements: list[str], start: str) -> set[str]:
    """Under which `synchronous` the transactions ran that contain a statement that starts like this."""
    found, mode = set(), "FULL"
    for statement in map(str.strip, statements):
        if statement.startswith("PRAGMA synchronous = "):
            mode = statement.rpartition(" ")[2]
        if statement.startswith(start):
            found.add(mode)
    return found


async def test_a_damaged_file_is_said_to_be_damaged(path: Path) -> None:
    async with serving(path) as server:
        await server.publish([message(str(n), payload=bytes(1000)) for n in range(200)])
    content = bytearray(path.read_bytes())
    for start in range(4096 * 3, len(content) - 4096, 4096):
        content[start : start + 200] = b"\xa5" * 200
    path.write_bytes(content)
    with pytest.raises((BrokerRefused, ConfigurationError), match=r"is damaged .*restore a backup"):
        async with serving(path) as server, consuming(server) as consumer:
            await now_ready(consumer)


async def test_a_write_ahead_log_that_was_removed_is_noticed_and_nothing_of_it_is_lost(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(thread, "CHECK", 0.0)
    wal = path.with_name(f"{path.name}-wal")
    left = tmp_path / "left" / path.name
    left.parent.mkdir()
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages("1"))
        wal.unlink()
        await server.publish(messages("2"))  # after this it is noticed
        await server.publish(messages("3"))
        for file in (path, wal):  # as they are when the process is killed now
            shutil.copy(file, left.parent)
        assert ids(await now_ready(consumer)) == ["1", "2", "3"]
    assert [record.getMessage().partition(" while ")[0] for record in caplog.records] == [f"{path}-wal was removed"]
    async with serving(left) as server:
        assert (await server.counts("q")).ready == 3


async def test_a_file_that_was_removed_is_missed_by_all_who_use_it(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        path.unlink()
        for call in (lambda: server.publish(messages("1")), lambda: server.counts("q"), lambda: consumer.receive(1)):
            with pytest.raises(BrokerUnavailable, match="was removed or replaced while it was open"):
                await call()


async def test_a_file_that_goes_while_it_is_opened_anew_is_missed_and_used_again_when_it_is_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone, opened = path.with_suffix(".gone"), schema.open_file

    def open_and_lose(*arguments: Any) -> sqlite3.Connection:
        connection = opened(*arguments)
        path.rename(gone)
        return connection

    async def publish_on() -> None:
        for number in range(100):  # it is noticed by then, and the file is opened anew
            await server.publish(messages([number]))

    monkeypatch.setattr(thread, "CHECK", 0.0)
    async with serving(path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(thread, "open_file", open_and_lose)
            path.with_name(f"{path.name}-wal").unlink()
            with pytest.raises(BrokerUnavailable, match="was removed or replaced while it was open"):
                await publish_on()
        gone.rename(path)
        with trio.fail_after(10):
            while True:
                with suppress(BrokerUnavailable):
                    await server.publish(messages(["last"]))
                    break
        assert (await server.counts("q")).ready >= 1
    assert "given up" not in caplog.text


async def test_who_waits_is_told_that_the_file_was_replaced(path: Path) -> None:
    told = trio.Event()

    async def wait() -> None:
        with pytest.raises(BrokerUnavailable, match="removed or replaced"):
            await consumer.receive(1)
        told.set()

    async with serving(path) as server, consuming(server) as consumer, trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.05)
        path.replace(path.with_suffix(".old"))
        await open_and_close(path)
        with trio.fail_after(10):
            await told.wait()


async def test_a_file_that_stays_locked_is_unavailable_for_a_bounded_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "PATIENCE", 0.05)
    async with serving(path) as server:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerUnavailable, match="locked by another process for too long"):
            await server.publish(messages("1"))
        assert await server.counts("q") == Counts()
        other.execute("ROLLBACK")
        other.close()
        assert await server.publish(messages("1")) == [None]


async def test_who_waits_for_a_lock_can_be_cancelled_at_once(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages("0"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: server.publish(messages("1")),
            lambda: consumer.receive(1),
            lambda: server.flush("q"),
        ]
        for call in calls:
            before = trio.current_time()
            with trio.move_on_after(0.02) as scope:
                await call()
            assert scope.cancelled_caught
            assert trio.current_time() - before < 1
        other.execute("ROLLBACK")
        other.close()
        assert await server.counts("q") == Counts(ready=1)


@contextmanager
def locking(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program that keeps the write lock of the file for a block."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.close()


async def test_what_only_looks_is_answered_while_a_change_waits_for_a_lock(path: Path) -> None:
    async with serving(path) as server, trio.open_nursery() as nursery:
        with locking(path):
            nursery.start_soon(server.publish, messages("1"))
            await idle()
            with trio.fail_after(2):
                assert await server.counts("q") == Counts()
                assert (await server.watch("1", "1")).state == "gone"
    async with serving(path) as server:
        assert await server.counts("q") == Counts(ready=1)


async def test_leaving_while_the_file_is_locked_waits_only_shortly(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "CLOSING_TIME", 0.05)
    refused: list[BaseException] = []

    async def publish(server: SQLiteServer) -> None:
        with pytest.raises(BrokerUnavailable, match="locked by another process") as info:
            await server.publish(messages("1"))
        refused.append(info.value)

    await open_and_close(path)
    async with trio.open_nursery() as nursery:
        async with serving(path) as server, consuming(server) as consumer:
            with trio.CancelScope() as receiving:
                receiving.cancel()
                await consumer.receive(1)
            nursery.start_soon(publish, server)
            lock = locking(path)
            lock.__enter__()
            await idle()
            before = trio.current_time()
        assert trio.current_time() - before < 1
    lock.__exit__(None, None, None)
    assert len(refused) == 1
    assert not [running for running in threading.enumerate() if running.name.startswith("repid sqlite")]


async def test_a_consumer_closes_at_once_while_the_file_is_locked_and_is_struck_off_afterwards(path: Path) -> None:
    async with serving(path) as one, serving(path) as two, consuming(two, frozenset("b")) as other:
        await one.publish([message("1", topic="a")])
        async with one.consume({"q": frozenset("a")}) as consumer:
            lock = locking(path)
            lock.__enter__()
            before = trio.current_time()
        assert trio.current_time() - before < 1
        with pytest.raises(UsageError, match="closed"):
            await consumer.receive(1)
        lock.__exit__(None, None, None)
        with trio.fail_after(5):
            assert ids(await other.receive(1)) == ["1"]  # nobody takes its topic any more, so whoever is there gets it


async def test_opening_a_file_that_stays_locked_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_OPENING_TIME", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with trio.fail_after(5), pytest.raises(BrokerUnavailable, match="locked by another process"):
        await open_and_close(path)
    other.close()


async def test_cancelling_the_opening_of_a_locked_file_waits_only_shortly(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "CLOSING_TIME", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    before = trio.current_time()
    with trio.move_on_after(0.1) as scope:
        await open_and_close(path)
    assert scope.cancelled_caught
    assert trio.current_time() - before < 2
    other.close()


async def test_after_a_thread_that_could_not_start_the_server_can_be_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that has reached its limit of processes."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith("repid sqlite"):
            raise RuntimeError("can't start new thread")
        start(self)

    server = SQLiteServer(path)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BrokerUnavailable, match=r"was not opened, because the thread .* try again"):
            async with server.connection():
                pass
    assert not server.is_connected
    with trio.fail_after(5):
        async with server.connection():
            await server.declare(["q"])


async def test_a_connection_can_be_left_when_no_thread_can_be_started(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async with serving(path):
        monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    assert not [running for running in threading.enumerate() if running.name.startswith("repid sqlite")]


@pytest.mark.real_time
async def test_what_was_published_survives_a_killed_process(path: Path) -> None:
    code = """
        import os, signal, sys, trio
        from repid.brokers import SQLiteServer
        from repid.envelope import Envelope, new_ids
        async def main():
            server = SQLiteServer(sys.argv[1])
            async with server.connection():
                await server.declare(["q"])
                assert await server.publish([Envelope(id_, "q", b"x") for id_ in new_ids(500)]) == [None] * 500
                os.kill(os.getpid(), signal.SIGKILL)
        trio.run(main)
    """
    process = start_python(code, path)
    await trio.to_thread.run_sync(process.communicate)
    assert process.returncode == -9
    async with serving(path) as server:
        assert await server.counts("q") == Counts(ready=500)


# Size


async def test_a_message_costs_less_than_400_bytes_beyond_its_payload(path: Path) -> None:
    async with serving(path) as server:
        for start in range(0, 20_000, 1000):
            await server.publish(
                [message(f"{n:032x}", topic="actor", payload=bytes(100)) for n in range(start, start + 1000)]
            )
    assert path.stat().st_size / 20_000 - 100 < 200  # promised are 400, measured 100


async def test_the_file_does_not_grow_with_what_passes_through(path: Path) -> None:
    async def pass_through(count: int) -> int:
        for _ in range(count):
            await server.publish(messages(range(200)))
            assert all(await ack(consumer, await now_ready(consumer, 200)))
        wal = path.with_name("repid.db-wal").stat().st_size
        return path.stat().st_size + wal

    async with serving(path) as server, consuming(server) as consumer:
        after_some = await pass_through(20)
        after_more = await pass_through(80)
        assert after_more < max(after_some, 12_000_000)  # the WAL is moved into the file at 8 MB
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("through_a_link", [False, True])
async def test_a_wal_that_grew_while_somebody_read_is_moved_into_the_file(
    path: Path, through_a_link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LARGEST_WAL", 500_000)
    monkeypatch.setattr(thread, "CHECK", 0.0)
    name = path.with_name("link.db") if through_a_link else path
    if through_a_link:
        name.symlink_to(path)
    wal = path.with_name("repid.db-wal")
    async with serving(name) as server:
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM message").fetchall()
        await server.publish([message(f"{n:032x}", payload=bytes(100_000)) for n in range(20)])
        assert wal.stat().st_size > 2_000_000
        reader.close()
        for n in range(20, 22):  # the first one's transaction is followed by the move
            await server.publish([message(f"{n:032x}")])
        assert wal.stat().st_size < 500_000


def test_a_python_with_an_old_sqlite_is_told_which_it_needs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "OLDEST_SQLITE", (99, 1, 2))
    with pytest.raises(ConfigurationError, match=r"this Python has SQLite 3\..*needs 99\.1\.2 or newer"):
        schema.check_place(str(path))
