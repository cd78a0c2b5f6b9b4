"""What a worker says of its work: log records, hooks of dead letters, messages that nobody takes or that do not fit."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import trio
from aids import UnreliableServer, send

from repid import (
    CallRecord,
    ConfigurationError,
    Connection,
    DeadMessage,
    Depends,
    InMemoryServer,
    Message,
    Repid,
    Router,
    SQLiteServer,
    SyncMessage,
    log_context,
)
from repid.brokers.postgres import PostgresServer
from repid.brokers.redis import RedisServer
from repid.logs import in_seconds
from repid.testing import TestClient


class Records(logging.Handler):
    """The records of repid, and which message the context spoke of when each was handled."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[logging.LogRecord, dict[str, object]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append((record, dict(log_context())))

    def of(self, text: str) -> list[tuple[Any, dict[str, object]]]:
        return [(record, context) for record, context in self.all if text in record.getMessage()]


@pytest.fixture
def records() -> Iterator[Records]:
    records, logger = Records(), logging.getLogger("repid")
    level = logger.level
    logger.addHandler(records)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(records)
    logger.setLevel(level)


@pytest.fixture
def runs(router: Router) -> Router:
    @router.actor
    async def succeed() -> None:
        await trio.sleep(2)

    @router.actor(retries=1)
    async def fail() -> None:
        raise ValueError("no")

    @router.actor
    async def reject(message: Message) -> None:
        if message.attempt == 1:
            await message.nack()

    @router.actor
    async def plain() -> None: ...

    return router


async def test_each_run_is_logged_at_info_when_asked(app: Repid, runs: Router, records: Records) -> None:
    for actor in ("succeed", "plain", "reject"):
        await send(app, actor)
    await app.run_worker(burst=True, log_runs=True)
    found = {record.actor: record for record, _ in records.of("ended after")}
    assert {name: record.fate for name, record in found.items()} == {
        "succeed": "succeeded",
        "plain": "succeeded",
        "reject": "nacked",
    }
    record = found["succeed"]
    assert (record.levelno, record.queue, record.attempt) == (logging.INFO, "default", 1)
    assert record.duration == pytest.approx(2)
    assert record.getMessage().startswith("actor 'succeed' ended after 2 s: message ")
    assert record.message_id in record.getMessage()


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0, "0"),
        (0.00009, "0.0001"),
        (0.01234, "0.0123"),
        (2, "2"),
        (59.96, "60"),
        (99.99, "100"),
        (3600, "3600"),
        (1e6, "1000000"),
    ],
)
def test_durations_are_logged_without_powers_of_ten(duration: float, text: str) -> None:
    assert in_seconds(duration) == text


async def test_a_worker_that_is_stopped_says_what_it_waits_for(app: Repid, runs: Router, records: Records) -> None:
    for _ in range(5):
        await send(app, "succeed")
    async with trio.open_nursery() as nursery:
        worker = await nursery.start(partial(app.run_worker, graceful_shutdown_time=20))
        await trio.sleep(1)
        worker.stop()
        worker.stop()
    [(record, _)] = records.of("stopping")
    assert record.getMessage().startswith("stopping: 5 run(s) have 20 s to end: actor 'succeed' (message ")
    assert record.getMessage().endswith("'), ...")


@pytest.mark.parametrize("end", ["at once", "without runs", "cut short"])
async def test_a_worker_that_waits_for_nothing_does_not_say_so(
    app: Repid, runs: Router, records: Records, end: str
) -> None:
    async with trio.open_nursery() as nursery:
        if end != "without runs":
            await send(app, "succeed")
        worker = await nursery.start(app.run_worker)
        if end != "at once":
            await trio.sleep(1)
        worker.cut_short() if end == "cut short" else worker.stop()
    assert not records.of("stopping")


async def test_each_run_is_logged_at_debug_otherwise(app: Repid, runs: Router, records: Records) -> None:
    await send(app, "plain")
    await app.run_worker(burst=True)
    assert not records.of("ended after")
    logging.getLogger("repid").setLevel(logging.DEBUG)
    await send(app, "plain")
    await app.run_worker(burst=True)
    [(record, _)] = records.of("ended after")
    assert record.levelno == logging.DEBUG


async def test_records_about_a_message_say_which(app: Repid, runs: Router, records: Records) -> None:
    envelope = await send(app, "fail")
    await send(app, "nobody")
    await app.run_worker(burst=True)
    [(failed, context)] = records.of("failed on message")
    expected = {"message_id": envelope.id, "actor": "fail", "queue": "default", "attempt": 1}
    assert context == expected
    assert {name: getattr(failed, name) for name in expected} == expected
    [(unrouted, _)] = records.of("which no actor here takes")
    assert unrouted.actor == "nobody"
    assert log_context() == {}


async def test_a_message_without_a_topic_is_told_as_such_and_how_to_give_it_one(
    app: Repid, runs: Router, records: Records
) -> None:
    await app.send_message_json(channel="default")
    await app.run_worker(burst=True)
    [(record, _)] = records.of("no actor here takes")
    assert 'has no topic, and no actor here takes that (headers={"topic": ...} names the actor' in record.getMessage()


async def test_runs_that_are_logged_know_their_message_in_their_own_records(
    app: Repid, router: Router, records: Records
) -> None:
    seen: list[dict[str, object]] = []

    def dependency() -> None:
        seen.append(dict(log_context()))

    @router.actor
    async def here(_: Annotated[None, Depends(dependency)]) -> None:
        await trio.sleep(1)
        seen.append(dict(log_context()))

    @router.actor
    def in_a_thread(message: SyncMessage) -> None:
        seen.append(dict(log_context()))

    envelope = await send(app, "here")
    other = await send(app, "in_a_thread")
    await app.run_worker(burst=True)
    assert seen == [{}] * 3
    seen.clear()
    envelope = await send(app, "here")
    await app.run_worker(burst=True, log_runs=True)
    assert seen == [{"message_id": envelope.id, "actor": "here", "queue": "default", "attempt": 1}] * 2
    seen.clear()
    other = await send(app, "in_a_thread")
    await app.run_worker(burst=True, log_runs=True)
    assert [each["message_id"] for each in seen] == [other.id]


async def test_the_start_says_what_is_read_and_where(app: Repid, runs: Router, records: Records) -> None:
    other = Router(channel="mail")
    app.include_router(other)
    other.actor(name="welcome")(lambda: None)
    await app.run_worker(burst=True)
    [(record, _)] = records.of("the worker reads")
    text = "the worker reads 'default' (succeed, fail, reject, plain), 'mail' (welcome) on UnreliableServer"
    assert record.getMessage() == text


async def test_the_start_says_where_a_server_is_that_is_not_in_the_process(tmp_path: Path, records: Records) -> None:
    app, router = Repid(Connection(SQLiteServer(tmp_path / "jobs.db"))), Router()
    router.actor(name="job")(lambda: None)
    app.include_router(router)
    async with app.magic():
        await app.run_worker(burst=True)
    [(record, _)] = records.of("the worker reads")
    assert record.getMessage() == f"the worker reads 'default' (job) on SQLiteServer at {tmp_path / 'jobs.db'}"


@pytest.mark.parametrize(
    ("server", "place"),
    [
        (RedisServer("redis://me:secret@host:7000/3"), "redis://host:7000/3, prefix 'repid'"),
        (PostgresServer("postgresql://me:secret@host:5433/jobs"), "host:5433, database 'jobs', schema 'repid'"),
        (PostgresServer("service=work", schema="own"), "service 'work', schema 'own'"),
        (PostgresServer(""), "the server that PGHOST and its like name, schema 'repid'"),
    ],
    ids=["redis", "address", "service", "environment"],
)
def test_a_server_says_where_it_is_and_no_password(server: RedisServer | PostgresServer, place: str) -> None:
    assert server.place == place
    assert repr(server) == f"<{server.name} at {place}, closed>"


async def test_hooks_are_told_of_dead_letters(app: Repid, runs: Router, server: UnreliableServer) -> None:
    told: list[tuple[str | None, str, str | None]] = []

    @app.on_dead_letter()
    async def alert(dead: DeadMessage) -> None:
        await trio.sleep(1)
        assert (await server.counts("default")).dead
        told.append((dead.actor, dead.reason, None if dead.failure is None else dead.failure.text))

    await send(app, "fail")
    await send(app, "reject")
    await app.run_worker(burst=True)
    assert told == [("reject", "nacked", None)]
    await trio.sleep(60)
    await app.run_worker(burst=True)
    assert told == [("reject", "nacked", None), ("fail", "failed", "no")]


def test_a_hook_that_is_a_plain_function_runs_in_a_thread() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    app.include_router(router)
    told: list[str] = []

    @app.on_dead_letter
    def alert(dead: DeadMessage) -> None:
        assert threading.current_thread() is not threading.main_thread()
        told.append(dead.reason)

    @router.actor
    async def reject(message: Message) -> None:
        await message.nack()

    async def main() -> None:
        async with app.magic():
            await send(app, "reject")
            await app.run_worker(burst=True)

    trio.run(main)  # not in virtual time, in which a thread takes for ever
    assert told == ["nacked"]


async def test_a_hook_that_fails_or_hangs_is_logged_and_harms_nobody(
    app: Repid, runs: Router, records: Records
) -> None:
    told: list[str] = []

    @app.on_dead_letter
    async def fails(dead: DeadMessage) -> None:
        raise OSError("no mail today")

    @app.on_dead_letter
    async def hangs(dead: DeadMessage) -> None:
        await trio.sleep_forever()

    @app.on_dead_letter
    async def works(dead: DeadMessage) -> None:
        told.append(dead.envelope.id)

    envelope = await send(app, "reject")
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(lambda task_status: app.run_worker(task_status=task_status))
        await trio.sleep(40)
        assert told == [envelope.id]
        assert len(records.of("of dead letters failed on message")) == 1
        assert len(records.of("was cancelled after 30 s")) == 1
        await send(app, "reject")
        await trio.sleep(1)
        started = trio.current_time()
        handle.stop()
    assert trio.current_time() - started == pytest.approx(5)
    assert records.of("have not ended within 5 s")


async def test_a_worker_that_is_cancelled_lets_its_hooks_end(app: Repid, runs: Router) -> None:
    told: list[str] = []

    @app.on_dead_letter
    async def alert(dead: DeadMessage) -> None:
        await trio.sleep(3)
        told.append(dead.reason)

    await send(app, "reject")
    with trio.move_on_after(1):
        await app.run_worker()
    assert told == ["nacked"]


def test_under_asyncio_hooks_run_on_the_loop() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    app.include_router(router)
    told: list[str] = []

    @app.on_dead_letter
    async def alert(dead: DeadMessage) -> None:
        await asyncio.sleep(0.001)
        told.append(dead.reason)

    @router.actor
    async def reject(message: Message) -> None:
        await message.nack()

    async def main() -> None:
        async with app.magic():
            await send(app, "reject")
            await app.run_worker(burst=True)

    asyncio.run(main())
    assert told == ["nacked"]


def test_what_is_no_hook_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a hook of dead letters"):
        Repid().on_dead_letter(lambda: None)  # type: ignore[type-var]


async def test_a_payload_that_does_not_fit_waits_for_another_version_where_the_actor_says_so(
    autojump_clock: trio.testing.MockClock, records: Records
) -> None:
    def app_of(version: int) -> Repid:
        app, router = Repid(), Router(on_misfit="release")
        app.include_router(router)
        if version == 1:

            @router.actor(name="work")
            async def old(a: int) -> int:
                return a
        else:

            @router.actor(name="work")
            async def new(b: int) -> int:
                return b

        return app

    old, new = app_of(1), app_of(2)
    async with TestClient(old) as client:
        await client.send_message_json(channel="default", payload={"b": 1}, headers={"topic": "work"})
        [run] = await client.drain()
        assert (run.fate, run.attempt) == ("released", 1)
        assert 0 < run.delay < 1
        runs = await client.advance(minutes=10)
        assert {run.fate for run in runs} == {"released"}
        assert all(run.delay <= 37.5 for run in runs)
        assert len(records.of("it is released for another version of it")) == 1
        server = client.server
        with new.servers.replaced({"default": server}):
            assert (await new.run_worker(burst=True)).succeeded == 0  # it waits just now
            await trio.sleep(60)
            assert (await new.run_worker(burst=True)).succeeded == 1
        await client.send_message_json(channel="default", payload={"b": 1}, headers={"topic": "work"})
        last = (await client.advance(hours=2))[-1]
        assert (last.fate, last.reason) == ("dead", "payload")


async def test_sending_where_nobody_reads_is_told_once(app: Repid, runs: Router, records: Records) -> None:
    for _ in range(2):
        await app.send_message_json(channel="defualt")
    await app.send_message_json(channel="default", headers={"topic": "plain"})
    late = Router(channel="late")
    late.actor(name="work")(lambda: None)
    app.include_router(late)
    await app.send_message_json(channel="late")  # it did not exist either, but is read
    [(record, _)] = records.of("no actor of this app reads it")
    assert record.levelno == logging.WARNING
    assert "did you mean 'default'?" in record.getMessage()


async def test_all_queues_are_listed_with_ages_and_readers(app: Repid, runs: Router, server: UnreliableServer) -> None:
    await send(app, "plain")
    await trio.sleep(5)
    await send(app, "plain")
    await server.declare(["other"])
    async with server.consume({"default": None}), server.consume({"default": frozenset({"plain"})}):
        [default, other] = await app.list_queues()
    assert (default.readers, other.readers) == ((None, frozenset({"plain"})), ())
    assert (default.name, default.counts.ready, default.age) == ("default", 2, 5)
    assert default.actors == ("succeed", "fail", "reject", "plain")
    assert (other.name, other.counts.ready, other.age, other.actors) == ("other", 0, None, ())


def test_an_app_without_actors_is_not_run() -> None:
    with pytest.raises(ConfigurationError, match="has no actors to run"):
        Repid(Connection(InMemoryServer())).run(burst=True)


async def test_a_worker_reports_nothing_while_there_is_no_progress(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def count(message: Message) -> None:
        await message.progress(1, 2)

    calls: list[CallRecord] = []
    server.add_instrument(calls.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        await trio.sleep(10)
        await send(app, "count")
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert {call.count for call in calls if call.name == "report"} == {1}


async def test_a_worker_tells_what_it_has_done_when_it_has_ended(app: Repid, router: Router, records: Records) -> None:
    @router.actor
    async def work() -> None: ...

    await app.enqueue_many([app.job(work), app.job(work)])
    await app.run_worker(burst=True)
    await app.run_worker(burst=True)
    ends = [record.getMessage() for record, _ in records.of("has ended")]
    assert ends == ["the worker has ended: 2 processed, 2 succeeded", "the worker has ended: nothing was processed"]
