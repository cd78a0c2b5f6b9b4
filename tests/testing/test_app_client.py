"""`TestClient`: the real app on the memory server, as tests of an app use it."""

# No `from __future__ import annotations`: what the actors here are annotated with is local.

import asyncio
import copy
import pickle
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Annotated, Any

import pytest
import trio
from trio.testing import MockClock

from repid import (
    ConfigurationError,
    Connection,
    Depends,
    InMemoryServer,
    Job,
    Message,
    PayloadError,
    Queue,
    Repid,
    Router,
    SyncMessage,
    UsageError,
)
from repid.testing import RunFailed, TestClient


class BrokenError(Exception):
    """What actors here raise."""


async def database() -> str:
    return "the real one"


router = Router(channel="work")


@router.actor
async def add(a: int, b: int = 2) -> int:
    return a + b


@router.actor
async def fail(word: str) -> None:
    raise BrokenError(word)


@router.actor(retries=2, retry_policy=lambda retry_number: 60.0 * retry_number)
async def stubborn(message: Message) -> int:
    if message.attempt < 3:
        raise BrokenError(f"attempt {message.attempt}")
    return message.attempt


@router.actor
async def fan_out(count: int, message: Message) -> None:
    await message.send_message_json(channel="work", payload={"a": 0}, headers={"topic": "add"})
    for number in range(1, count):
        await message.outbox.send_message_json(channel="work", payload={"a": number}, headers={"topic": "add"})


@router.actor
def fan_out_in_a_thread(message: SyncMessage) -> None:
    message.send_message_json(channel="work", payload={"a": 7}, headers={"topic": "add"})


@router.actor
async def turn_away(message: Message) -> None:
    await (message.snooze(60) if message.headers.get("later") else message.ack())


@router.actor(timeout=5)
async def hang() -> None:
    await trio.sleep_forever()


@router.actor
async def ask(where: Annotated[str, Depends(database)]) -> str:
    return where


def make_app() -> Repid:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    return app


async def send(client: TestClient, actor: str, **payload: object) -> None:
    await client.send_message_json(channel="work", payload=payload, headers={"topic": actor})


@pytest.fixture
async def client(autojump_clock: MockClock) -> AsyncIterator[TestClient]:
    async with TestClient(make_app()) as client:
        yield client


async def test_the_next_message_is_run_and_its_run_is_told(client: TestClient) -> None:
    await send(client, "add", a=1)
    await send(client, "add", a=2)
    run = await client.process_next()
    assert run is not None
    assert (run.actor, run.fate, run.value, run.attempt, run.is_success) == ("add", "acked", 3, 1, True)
    assert len(client.runs) == 1
    assert [each.value for each in await client.drain()] == [4]
    assert await client.process_next() is None


async def test_a_failure_is_the_fate_of_its_message_and_raised_on_request_only(client: TestClient) -> None:
    await send(client, "fail", word="no")
    run = await client.process_next()
    assert run is not None
    assert (run.fate, run.reason, run.is_success) == ("dead", "failed", False)
    assert isinstance(run.error, BrokenError)
    assert run.failure is not None
    assert run.failure.text == "no"
    await send(client, "fail", word="no")
    with pytest.raises(BrokenError, match="no") as raised:
        await client.process_next(raise_errors=True)
    assert raised.traceback[-1].name == "fail"  # it shows where


async def test_several_errors_are_raised_as_a_group(client: TestClient) -> None:
    await send(client, "fail", word="one")
    await send(client, "fail", word="two")
    with pytest.RaisesGroup(BrokenError, BrokenError):
        await client.drain(raise_errors=True)


async def test_a_timeout_and_a_payload_that_does_not_fit_are_failures_too(client: TestClient) -> None:
    started = trio.current_time()
    await send(client, "hang")
    with pytest.raises(RunFailed, match="longer than its timeout"):
        await client.process_next(raise_errors=True)
    assert trio.current_time() - started == pytest.approx(5)
    await send(client, "add", a="one")
    run = await client.process_next()
    assert run is not None
    assert (run.actor, run.fate, run.reason) == (None, "dead", "payload")
    with pytest.raises(RunFailed, match=PayloadError.__name__):
        run.raise_error()


async def test_what_a_run_sends_is_told_with_it_and_run_in_turn(client: TestClient) -> None:
    await send(client, "fan_out", count=3)
    first, *others = await client.drain()
    assert [each.payload for each in first.sent] == [b'{"a":0}', b'{"a":1}', b'{"a":2}']
    assert sorted(each.value for each in others) == [2, 3, 4]
    await send(client, "fan_out_in_a_thread")
    first, *others = await client.drain()
    assert [each.payload for each in first.sent] == [b'{"a":7}']
    assert len(client.sent) == 6


async def test_retries_wait_until_time_passes(client: TestClient) -> None:
    await send(client, "stubborn")
    [run] = await client.drain()
    assert (run.fate, run.delay) == ("retried", 60)
    assert await client.advance(59) == []
    [run] = await client.advance(seconds=1)
    assert (run.fate, run.delay, run.attempt) == ("retried", 120, 2)
    [run] = await client.advance(timedelta(minutes=2))
    assert (run.fate, run.value) == ("acked", 3)


async def test_what_an_actor_gives_back_is_a_run_too(client: TestClient) -> None:
    await client.send_message_json(channel="work", headers={"topic": "turn_away", "later": "yes"})
    [run] = await client.drain()
    assert (run.actor, run.fate, run.delay) == ("turn_away", "released", 60)


async def test_schedules_tick_while_time_passes(autojump_clock: MockClock) -> None:
    times: list[float] = []
    app, router = Repid(), Router()
    app.include_router(router)

    @router.actor(every=timedelta(hours=1))
    async def tick() -> None:
        times.append(trio.current_time())

    async with TestClient(app) as client:
        start = trio.current_time()
        assert len(await client.advance(hours=3)) == 3
        assert [round(moment - start) for moment in times] == [3600, 7200, 10800]
        assert len(await client.advance(days=1)) == 24


async def test_virtual_time_stands_still_while_a_sync_actor_works_in_its_thread(autojump_clock: MockClock) -> None:
    app, router = Repid(), Router()
    app.include_router(router)

    @router.actor(timeout=5)
    def look() -> str:
        for _ in range(10):
            time.sleep(0.005)
            trio.from_thread.check_cancelled()
        return "seen"

    @router.actor(every=60)
    def tick() -> None:
        time.sleep(0.005)

    async with TestClient(app) as client:
        start = trio.current_time()
        for _ in range(2):
            await app.enqueue(look)
        runs = await client.drain()
        assert [(run.actor, run.fate, run.value) for run in runs] == [("look", "acked", "seen")] * 2
        assert trio.current_time() == start
        assert len(await client.advance(hours=1)) == 60
        assert autojump_clock.autojump_threshold == 0


async def test_a_sync_actor_that_waits_for_one_that_sleeps_in_virtual_time_ends(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repid.testing.recording.THREAD_PATIENCE", 0.05)
    app, router = Repid(), Router(store_result=True)
    app.include_router(router)

    @router.actor
    async def sleep() -> str:
        await trio.sleep(300)
        return "awake"

    @router.actor
    def wait() -> str:
        with app.sync() as client:
            return client.call(sleep)

    async with TestClient(app) as client:
        await app.enqueue(wait)
        assert [(run.actor, run.value) for run in await client.drain()] == [("wait", "awake"), ("sleep", "awake")]


def test_without_a_virtual_clock_time_passes_on_the_servers_alone() -> None:
    async def main() -> None:
        async with TestClient(make_app()) as client:
            await send(client, "stubborn")
            assert [run.fate for run in await client.advance(minutes=10)] == ["retried", "retried", "acked"]
            now = await client.server.now()
            await client.advance(hours=1)
            assert await client.server.now() - now == pytest.approx(3600, abs=30)

    started = time.monotonic()
    trio.run(main)
    assert time.monotonic() - started < 30


def test_under_asyncio_actors_are_tasks_of_the_loop() -> None:
    app, own = make_app(), Router(channel="work")
    app.include_router(own)

    @own.actor
    async def loops(message: Message) -> bool:
        await asyncio.sleep(0)
        await message.send_message_json(channel="work", payload={"a": 1}, headers={"topic": "add"})
        return asyncio.current_task() is not None

    @own.actor(every=timedelta(hours=1))
    async def tick() -> None: ...

    async def main() -> None:
        async with TestClient(app) as client:
            await send(client, "loops")
            first, second = await client.drain()
            assert (first.value, second.value) == (True, 3)
            assert [each.topic for each in first.sent] == ["add"]
            assert len(await client.advance(hours=2)) == 2
            await send(client, "fail", word="no")
            with pytest.raises(BrokenError):
                await client.drain(raise_errors=True)

    asyncio.run(main())


async def test_what_was_sent_is_found_by_the_function_and_its_arguments(client: TestClient) -> None:
    await send(client, "add", a=1)
    await send(client, "add", a=3, b=4)
    assert client.assert_enqueued(add, a=1).payload == b'{"a":1}'
    assert client.assert_enqueued("add", b=4).payload == b'{"a":3,"b":4}'
    assert len(client.enqueued(add)) == 2
    assert client.assert_enqueued(add, a=1, b=2).payload == b'{"a":1}'  # 2 is its default
    assert client.assert_enqueued(add, 3, 4) == client.assert_enqueued("add", 3) == client.assert_enqueued(add, 3, b=4)
    client.assert_not_enqueued(add, 4)
    with pytest.raises(AssertionError, match=r"nothing was sent to 'add' with \(a=4, b=1\)"):
        client.assert_enqueued(add, 4, b=1)
    with pytest.raises(PayloadError, match="3 positional arguments were given, but it takes 2"):
        client.assert_enqueued(add, 1, 2, 3)
    client.assert_not_enqueued(add, a=9)
    with pytest.raises(AssertionError, match=r"nothing was sent to 'add' with \(a=9\); sent was: add\(.*1"):
        client.assert_enqueued(add, a=9)
    with pytest.raises(AssertionError, match="1 message"):
        client.assert_not_enqueued(add, b=4)
    with pytest.raises(ConfigurationError, match="did you mean 'add'"):
        client.enqueued("ad")


async def test_an_argument_that_no_message_could_have_is_refused() -> None:
    app, router = Repid(), Router()

    @router.actor
    async def welcome(address: str) -> None: ...

    @router.actor
    async def keep(**everything: int) -> None: ...

    app.include_router(router)
    async with TestClient(app) as client:
        await app.enqueue(welcome, "ada@example.org")
        with pytest.raises(
            ConfigurationError, match=r"actor 'welcome' has no parameter 'adress' .did you mean 'address'"
        ):
            client.assert_not_enqueued(welcome, adress="ada@example.org")
        with pytest.raises(ConfigurationError, match=r"has no parameter 'to'; there are: .'address'"):
            client.assert_enqueued("welcome", to="ada@example.org")
        client.assert_not_enqueued(keep, anything=1)


async def test_jobs_queues_and_results_work_as_in_production(client: TestClient) -> None:
    handle = await Job("add", queue="work", args={"a": 1}, store_result=True).enqueue()
    assert (await Queue("work").counts()).ready == 1
    await client.drain()
    assert (await handle.wait()).value == 3


async def test_the_servers_of_the_app_are_left_alone(client: TestClient) -> None:
    app = client.app
    await send(client, "add", a=1)
    assert app.server() is client.server
    real = InMemoryServer()
    other = Repid(Connection(real), result_store=real)
    other.include_router(router)
    async with TestClient(other) as inner:
        await Job("add", queue="work", args={"a": 1}, app=other, store_result=True).enqueue()
        await inner.drain()
    assert other.server() is real
    assert other.result_store is real
    async with real.connection():
        assert await real.queues() == []


async def test_a_dependency_is_replaced_for_the_client_or_for_a_block(autojump_clock: MockClock) -> None:
    def fake() -> str:
        return "a fake"

    app = make_app()
    async with TestClient(app, overrides={database: fake}) as client:
        await send(client, "ask")
        await send(client, "ask")
        run = await client.process_next()
        assert run is not None
        assert run.value == "a fake"
        with client.override({database: lambda: "another one"}):
            [run] = await client.drain()
        assert run.value == "another one"
    async with TestClient(app) as client:
        await send(client, "ask")
        assert [run.value for run in await client.drain()] == ["the real one"]


async def test_a_drain_that_has_no_end_is_given_up(autojump_clock: MockClock) -> None:
    app, router = Repid(), Router()
    app.include_router(router)

    @router.actor
    async def again(message: Message) -> None:
        await message.outbox.send_message_json(channel="default", headers={"topic": "again"})

    async with TestClient(app) as client:
        await client.send_message_json(channel="default", headers={"topic": "again"})
        with pytest.raises(AssertionError, match=r"after 20 runs there are still messages ready: again"):
            await client.drain(most=20)


async def look_around() -> None: ...


async def test_what_was_sent_is_known_since_the_client_was_opened_and_not_asked_for_before() -> None:
    """A sync test has to open the fixture `repid_client` itself: `assert_not_enqueued` must not hold in a closed one."""
    app, router = Repid(), Router()
    router.actor(look_around)
    app.include_router(router)
    client = TestClient(app)
    looks: list[Callable[[], object]] = [
        lambda: client.assert_not_enqueued(look_around),
        lambda: client.assert_enqueued(look_around),
        lambda: client.enqueued(look_around),
        lambda: client.sent,
        lambda: client.runs,
    ]
    for look in looks:
        with pytest.raises(UsageError, match="not open"):
            look()
    assert repr(client).endswith("0 runs>")
    async with client:
        await app.enqueue(look_around)
        await client.drain()
    assert (len(client.sent), len(client.runs)) == (1, 1)
    client.assert_enqueued(look_around)


async def test_a_client_that_is_not_open_says_so() -> None:
    client = TestClient(make_app())
    with pytest.raises(UsageError, match="not open"):
        await client.process_next()
    with pytest.raises(UsageError, match="not open"):
        await client.send_message_json(channel="work")
    with pytest.raises(UsageError, match="not open"):
        await client.send_message_json(channel="work", connection=object())
    async with client:
        with pytest.raises(UsageError, match="open already"):
            await client.__aenter__()
    with pytest.raises(UsageError, match="not open"):
        await client.drain()


async def test_the_client_enqueues_and_calls_as_the_app_does(client: TestClient) -> None:
    handle = await client.enqueue(add, 1, b=3)
    later = await client.using(delay=60).enqueue(add, 5)
    await client.enqueue_many(add, [2, 3])
    assert [run.value for run in await client.drain()] == [4, 4, 5]
    assert handle.id == client.runs[0].message_id
    assert await client.call(add, 4) == 6
    async with client.map(add, [1, 2]) as results:
        assert [each async for each in results] == [3, 4]
    assert [run.message_id for run in await client.advance(minutes=1)] == [later.id]
    with pytest.raises(UsageError, match="not open"):
        await TestClient(make_app()).enqueue(add, 1)


async def test_a_run_that_failed_survives_being_copied_and_pickled(client: TestClient) -> None:
    await send(client, "add", a="x")
    await send(client, "fail", word="x")
    for run in await client.drain():
        again = pickle.loads(pickle.dumps(run))
        assert (repr(again), again.failure) == (repr(run), run.failure)
        if run.error is None:
            with pytest.raises(RunFailed) as caught:
                run.raise_error()
            for error in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
                assert (type(error), str(error)) == (RunFailed, str(caught.value))
                assert error.run.envelope == run.envelope


def to_its_double(number: int) -> int:
    return 2 * number


async def test_virtual_time_stands_still_while_a_worker_closes_its_processes(autojump_clock: MockClock) -> None:
    app, router = Repid(), Router()
    router.actor(run_in_process=True)(to_its_double)
    ticks: list[float] = []

    @router.actor(every=10)
    async def tick() -> None:
        ticks.append(trio.current_time())

    app.include_router(router)
    async with TestClient(app) as client:
        await client.enqueue(to_its_double, 3)
        assert [run.value for run in await client.drain()] == [6]
        assert trio.current_time() == 0
        await client.advance(31)
        assert ticks == [10, 20, 30]
        assert trio.current_time() == 31


@pytest.mark.parametrize(
    "span", [{"hours": float("nan")}, {"days": float("inf")}, {"minutes": "1"}, {"seconds": -1}, {"days": 1e12}]
)
async def test_a_time_to_advance_that_is_none_is_refused(client: TestClient, span: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"(the|a) time to advance"):
        await client.advance(**span)
