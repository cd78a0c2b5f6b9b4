"""All that waits goes from one server to another, also where the move is cut off and made again."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from engines.postgres import Postgres
from engines.redis import Redis
from trio.testing import MockClock
from typer.testing import CliRunner

from repid import ConfigurationError, Envelope, InMemoryServer, PrioritiesT, Server, SQLiteServer, UsageError
from repid.brokers.postgres import PostgresServer
from repid.brokers.redis import RedisServer
from repid.cli import cli
from repid.delivery import DeadLetter, Failure, Settlement
from repid.delivery.bounds import Bounds, WhenFull
from repid.envelope import Options
from repid.moving import BATCH, Move
from repid.ports import CallRecord, Category, Schedule, StoredSchedule

NEWSLETTER = StoredSchedule(
    schedule=Schedule(name="newsletter", envelope=Envelope("newsletter", "mail", b"all"), every=3600.0),
    next_at=4e9,
    fired=7,
)
FAILURE = Failure("SMTPError", "nobody there", "Traceback …")


def letter(id_: str, queue: str = "mail", **options: Any) -> Envelope:
    headers = {"topic": "send", "x-tenant": "shop"}
    return Envelope(id_, queue, b"body of " + id_.encode(), "text/plain", headers, options=Options(**options))


async def fill(server: Server) -> None:
    """Waiting, scheduled and dead messages in "mail", one message in "slow", which is paused, and a schedule."""
    await server.declare(["mail", "slow", "empty"])
    await server.publish([letter("dead")])
    async with server.consume({"mail": None}) as consumer:
        for delivery in await consumer.receive(1):
            await consumer.settle([Settlement(delivery, DeadLetter("failed", FAILURE))])
    await server.publish([letter(f"ready {n}") for n in range(4)])
    await server.publish([letter("first", priority=PrioritiesT.HIGH, retries=3), letter("brief", ttl=1000.0)])
    await server.publish([letter("later", delay=500.0, ttl=1000.0), letter("slow one", "slow")])
    await server.pause("slow")
    assert await server.replace_schedule(None, NEWSLETTER)


async def what_is_in(server: Server) -> dict[str, Any]:
    """All that a move must bring over, but for the times that pass meanwhile."""
    categories: tuple[Category, ...] = ("ready", "scheduled", "leased", "dead")
    found: dict[str, Any] = {"schedules": await server.schedules()}
    for queue in await server.queues():
        found[queue] = (await server.counts(queue)).paused
        for category in categories:
            found[f"{queue} {category}"] = [
                (
                    one.envelope.id,
                    one.envelope.payload,
                    one.envelope.content_type,
                    one.envelope.headers,
                    one.envelope.options.priority,
                    one.envelope.options.retries,
                    one.reason,
                    one.failure,
                    one.died_at,
                    None if category == "ready" else one.enqueued_at and category == "dead" and one.enqueued_at,
                )
                for one in await server.browse(queue, category)
            ]
    return found


async def check_moved(before: dict[str, Any], old: Server, new: Server) -> None:
    """The new server has what the old one had, which has nothing any more."""
    assert await what_is_in(new) == before
    for queue in await old.queues():
        counts = await old.counts(queue)
        assert (counts.ready, counts.scheduled, counts.leased, counts.dead) == (0, 0, 0, 0)
    assert await old.schedules() == []


@contextmanager
def sqlite(tmp_path: Path, _: Any, __: Any) -> Iterator[Server]:
    yield SQLiteServer(tmp_path / "repid.db")


@contextmanager
def in_postgres(_: Path, postgres: Postgres, __: Any) -> Iterator[Server]:
    with postgres.schema() as schema:
        yield PostgresServer(postgres.url, schema=schema)


@contextmanager
def in_redis(_: Path, __: Any, redis: Redis) -> Iterator[Server]:
    with redis.prefix() as prefix:
        yield RedisServer(redis.url, prefix=prefix)


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("make_old", "make_new"),
    [(sqlite, in_postgres), (sqlite, in_redis), (in_postgres, in_redis), (in_redis, sqlite), (in_redis, in_postgres)],
)
async def test_everything_moves_from_any_server_to_any_other(
    make_old: Any, make_new: Any, tmp_path: Path, postgres: Postgres, redis: Redis
) -> None:
    with make_old(tmp_path, postgres, redis) as old, make_new(tmp_path, postgres, redis) as new:
        async with old.connection(), new.connection():
            await fill(old)
            before = await what_is_in(old)
            account = await Move(old, new).run()
            await check_moved(before, old, new)
            assert account.left_behind == []
            assert [(one.name, one.ready, one.scheduled, one.dead, one.is_paused) for one in account.queues] == [
                ("empty", 0, 0, 0, False),
                ("mail", 6, 1, 1, False),
                ("slow", 1, 0, 0, True),
            ]
            assert account.schedules == ["newsletter"]


@asynccontextmanager
async def two_files(tmp_path: Path, number: int = 0) -> AsyncGenerator[tuple[Server, Server], None]:
    names = [tmp_path / f"{name}{number}.db" for name in ("old", "new")]
    old, new = (SQLiteServer(name, synchronous="NORMAL") for name in names)
    async with old.connection(), new.connection():
        yield old, new


async def cut_off_after(calls: int, old: Server, new: Server, name: str | None = None) -> bool:
    """Move until so many calls (of this name) were made of both servers together; whether that was before its end."""
    scope, left = trio.CancelScope(), calls

    def count(call: CallRecord) -> None:
        nonlocal left
        left -= name is None or call.name == name
        if left == 0:
            scope.cancel()

    for server in (old, new):
        server.add_instrument(count)
    with scope:
        await Move(old, new).run()
    return scope.cancelled_caught


@pytest.mark.real_time
async def test_a_move_that_is_cut_off_anywhere_and_made_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    calls, was_cut = 0, True
    while was_cut:
        calls += 1
        async with two_files(tmp_path, calls) as (old, new):
            await fill(old)
            before = await what_is_in(old)
            was_cut = await cut_off_after(calls, old, new)
            account = await Move(old, new).run()
            await check_moved(before, old, new)
            assert account.left_behind == []
    assert calls > 30


@pytest.mark.real_time
async def test_no_worker_can_take_what_has_moved_before_the_move_has_ended(tmp_path: Path) -> None:
    async with two_files(tmp_path) as (old, new):
        await fill(old)
        assert await cut_off_after(2, old, new, "publish")
        assert (await new.counts("mail")).ready > 0
        async with new.consume({"mail": None}) as consumer:
            assert await consumer.receive(10, max_wait=0) == []


@pytest.mark.real_time
async def test_many_messages_move_in_their_order(tmp_path: Path) -> None:
    ids = [f"{n:05}" for n in range(2 * BATCH + 7)]
    async with two_files(tmp_path) as (old, new):
        await old.declare(["mail"])
        await old.publish([letter(id_) for id_ in ids])
        await Move(old, new).run(["mail"])
        assert [one.envelope.id for one in await new.browse("mail", "ready", limit=1000)] == ids


@pytest.mark.real_time
async def test_what_is_left_of_a_ttl_and_of_a_delay_moves_along(tmp_path: Path) -> None:
    async with two_files(tmp_path) as (old, new):
        await fill(old)
        await trio.sleep(0.05)
        await Move(old, new).run()
        [brief] = [one for one in await new.browse("mail", "ready") if one.envelope.id == "brief"]
        [later] = await new.browse("mail", "scheduled")
        assert 990 < (brief.envelope.options.ttl or 0) < 1000 - 0.05
        assert later.due_in is not None
        assert 490 < later.due_in < 500 - 0.05
        assert later.envelope.options.ttl == pytest.approx(1000, abs=1)


async def test_bounds_move_along_and_keep_nothing_out() -> None:
    old, new, bounds = InMemoryServer(), InMemoryServer(), Bounds(max_size=3, when_full="raise")
    async with old.connection(), new.connection():
        await old.declare(["mail"])
        await old.publish([letter(str(n)) for n in range(6)])
        await old.set_bounds({"mail": bounds})
        await Move(old, new).run()
        counts = await new.counts("mail")
        assert (counts.ready, counts.bounds) == (6, bounds)


@pytest.mark.parametrize("when_full", ["wait", "raise", "drop_oldest"])
async def test_what_moves_into_a_bounded_queue_comes_in_although_it_is_full(
    when_full: WhenFull, autojump_clock: MockClock
) -> None:
    old, new, bounds = InMemoryServer(), InMemoryServer(), Bounds(max_size=3, when_full=when_full)
    async with old.connection(), new.connection():
        await old.declare(["mail"])
        await new.set_bounds({"mail": bounds})
        await new.publish([letter(f"new {n}") for n in range(3)])
        for total in (6, 9):
            await old.publish([letter(f"{total} {n}") for n in range(3)])
            with trio.fail_after(60):
                await Move(old, new).run()
            counts = await new.counts("mail")
            assert (counts.ready, counts.bounds, counts.paused) == (total, bounds, False)


async def test_a_move_that_is_cut_off_anywhere_and_made_again_keeps_the_bounds_of_the_new_server() -> None:
    calls, was_cut = 0, True
    while was_cut:
        calls += 1
        old, new, bounds = InMemoryServer(), InMemoryServer(), Bounds(max_size=1)
        async with old.connection(), new.connection():
            await old.declare(["mail"])
            await old.publish([letter("1"), letter("2")])
            await new.set_bounds({"mail": bounds})
            was_cut = await cut_off_after(calls, old, new)
            await Move(old, new).run()
            counts = await new.counts("mail")
            assert (counts.ready, counts.bounds, counts.paused) == (2, bounds, False)
    assert calls > 20


@pytest.mark.real_time
async def test_a_queue_whose_messages_are_run_stays_where_it_is(tmp_path: Path) -> None:
    async with two_files(tmp_path) as (old, new):
        await fill(old)
        async with old.consume({"mail": None}) as consumer:
            [delivery] = await consumer.receive(1)
            account = await Move(old, new).run(["mail"])
            assert [(one.leased, one.total) for one in account.queues] == [(1, 0)]
            assert "queue 'mail': 1 message(s) are being run: stop its workers" in account.left_behind[0]
            assert not (await old.counts("mail")).paused
            assert (await consumer.extend([delivery])) == [True]


@pytest.mark.real_time
async def test_leases_of_workers_that_died_are_taken_back_first(tmp_path: Path) -> None:
    old, new = SQLiteServer(tmp_path / "old.db", lease_timeout=0.05), SQLiteServer(tmp_path / "new.db")
    async with old.connection(), new.connection():
        await fill(old)
        async with old.consume({"mail": None}) as consumer:
            assert len(await consumer.receive(2)) == 2
        await trio.sleep(0.1)
        [moved] = (await Move(old, new).run(["mail"])).queues
        assert (moved.leased, moved.ready) == (0, 6)


@pytest.mark.real_time
async def test_another_schedule_of_the_same_name_stays_on_both(tmp_path: Path) -> None:
    async with two_files(tmp_path) as (old, new):
        await fill(old)
        other = StoredSchedule(schedule=NEWSLETTER.schedule, next_at=5e9)
        await new.replace_schedule(None, other)
        account = await Move(old, new).run()
        assert account.kept == ["newsletter"]
        assert "schedule 'newsletter'" in account.left_behind[0]
        assert (await old.schedules(), await new.schedules()) == ([NEWSLETTER], [other])


@pytest.mark.real_time
async def test_nothing_moves_where_one_of_the_queues_does_not_exist(tmp_path: Path) -> None:
    async with two_files(tmp_path) as (old, new):
        await fill(old)
        before = await what_is_in(old)
        with pytest.raises(UsageError, match=r"no queue 'mial' to move on the old server \(did you mean 'mail'\?\)"):
            await Move(old, new).run(["slow", "mial"])
        assert await what_is_in(old) == before
        assert await new.queues() == []


async def test_a_server_is_not_moved_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "repid.db"
    old, same = SQLiteServer(path), SQLiteServer(path)
    async with old.connection(), same.connection():
        await fill(old)
        with pytest.raises(UsageError, match="both servers keep the same messages"):
            await Move(old, same).run()
        assert (await old.counts("mail")).ready == 6


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return lambda *arguments: CliRunner().invoke(cli, ["move", *arguments])


@pytest.mark.real_time
def test_the_command_moves_and_gives_an_account(tmp_path: Path, shell: Callable[..., Any]) -> None:
    async def fill_file() -> None:
        async with SQLiteServer(tmp_path / "old.db").connection() as server:
            await fill(server)

    async def ready() -> int:
        async with SQLiteServer(tmp_path / "new.db").connection() as server:
            return (await server.counts("mail")).ready

    trio.run(fill_file)
    (tmp_path / "moved_shop.py").write_text("from repid import SQLiteServer\nnew = SQLiteServer('new.db')\n")
    result = shell("old.db", "moved_shop:new")
    assert result.exit_code == 0, result.output
    assert "mail" in result.stdout
    places = f"from SQLiteServer at {tmp_path / 'old.db'}\nto SQLiteServer at {tmp_path / 'new.db'}\n"
    assert result.stdout.endswith(f"1 schedule(s) moved\n{places}")
    assert trio.run(ready) == 6


def test_the_command_warns_where_there_was_nothing_to_move(tmp_path: Path, shell: Callable[..., Any]) -> None:
    async def make() -> None:
        async with SQLiteServer(tmp_path / "empty.db").connection():
            pass

    trio.run(make)
    result = shell("empty.db", "new.db")
    assert result.exit_code == 0, result.output
    assert f"nothing has moved: there is no queue on SQLiteServer at {tmp_path / 'empty.db'}." in result.stderr
    assert "is given as MODULE:NAME" in result.stderr


@pytest.mark.parametrize("source", ["none.db", "wrong_from:server", "empty.db"])
def test_a_file_that_repid_has_never_used_is_neither_made_nor_changed_by_moving_from_it(
    source: str, tmp_path: Path, shell: Callable[..., Any]
) -> None:
    (tmp_path / "wrong_from.py").write_text("from repid import SQLiteServer\nserver = SQLiteServer('none.db')\n")
    (tmp_path / "empty.db").touch()
    error = shell(source, "new.db").exception
    assert isinstance(error, ConfigurationError)
    assert "nothing can be moved from FROM: " in str(error)
    assert ("is empty" if source == "empty.db" else "there is no file") in str(error)
    assert not (tmp_path / "none.db").exists()
    assert not (tmp_path / "new.db").exists()
    assert (tmp_path / "empty.db").stat().st_size == 0


@pytest.mark.real_time
def test_moving_from_a_database_without_the_schema_makes_no_schema(
    shell: Callable[..., Any], tmp_path: Path, postgres: Postgres
) -> None:
    with postgres.schema() as schema:
        name = f"without_{schema}"  # a module is imported once
        (tmp_path / f"{name}.py").write_text(
            "from repid.brokers.postgres import PostgresServer\n"
            f"server = PostgresServer({postgres.url!r}, schema={schema!r})\n"
        )
        error = shell(f"{name}:server", "new.db").exception
        assert isinstance(error, ConfigurationError)
        assert f"nothing can be moved from FROM: the schema {schema!r} does not exist" in str(error)
        assert postgres.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema) == []
    assert not (tmp_path / "new.db").exists()


@pytest.mark.real_time
async def test_moving_from_a_server_that_has_nothing_leaves_nothing_there(tmp_path: Path, redis: Redis) -> None:
    with redis.prefix() as prefix:
        old, new = RedisServer(redis.url, prefix=prefix), SQLiteServer(tmp_path / "new.db")
        async with old.connection(), new.connection():
            await Move(old, new).run()
        assert redis.execute("KEYS", f"*{prefix}*") == []


def test_the_command_says_what_is_wrong_with_its_arguments(tmp_path: Path, shell: Callable[..., Any]) -> None:
    assert "no address of a server" in str(shell("amqp://host", "new.db").exception)
    (tmp_path / "moved_nothing.py").write_text("new = 1\n")
    assert "is no server and no app, but 1" in str(shell("moved_nothing:new", "new.db").exception)
    assert not (tmp_path / "new.db").exists()
