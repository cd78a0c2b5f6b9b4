"""The message of an actor that runs in a process: its verbs, its outbox and its progress are the worker's. Real time."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import aids_processes
import pytest
import trio
from aids import UnreliableServer
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

import repid
from repid import Actor, CallNext, Connection, Counts, InMemoryServer, Message, Queue, Repid, Report, Router
from repid.inject.process_message import LENGTH, VerbCall
from repid.runtime.process_verbs import REQUEST_TIME, ProcessVerbs
from repid.testing.direct import DirectMessage

pytestmark = pytest.mark.real_time


@pytest.fixture
async def app(server: UnreliableServer) -> AsyncGenerator[Repid, None]:
    """As everywhere, but on the real clock."""
    app = Repid()
    app.servers.register_server("default", server)
    async with app.magic():
        await server.declare(["default", "told"])
        yield app


async def told(server: UnreliableServer) -> list[bytes]:
    return [each.envelope.payload for each in await server.browse("told", "ready")]


def in_process(router: Router, function: Callable[..., Any], **options: Any) -> Any:
    return router.actor(**{"run_in_process": True, "store_result": True, **options})(function)


@pytest.mark.parametrize(
    ("verb", "expected", "counts"),
    [
        ("ack", Report(processed=1, succeeded=1), Counts()),
        ("nack", Report(processed=1, failed=1, dead=1), Counts(dead=1)),
        ("reject", Report(processed=1, released=1), Counts(ready=1)),
        ("retry", Report(processed=1, retried=1), Counts(scheduled=1)),
        ("snooze", Report(processed=1, released=1), Counts(scheduled=1)),
    ],
)
async def test_every_verb_works_from_a_process(
    app: Repid, router: Router, server: UnreliableServer, verb: str, expected: Report, counts: Counts
) -> None:
    await app.enqueue(in_process(router, aids_processes.say, retries=3), verb)
    assert await app.run_worker(messages_limit=1) == expected
    assert await server.counts("default") == counts


async def test_progress_sends_and_the_outbox_work_from_a_process(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    handle = await app.enqueue(in_process(router, aids_processes.tell, retries=1))
    statuses: list[Any] = []

    async def watch() -> None:
        statuses.extend([status async for status in handle.watch()])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await app.run_worker(messages_limit=1)
    assert (await handle.wait()).value == [2, "tell", 1, False, False]
    assert await told(server) == [b'"at once"', b'"with"', b'"the acknowledgement"']


async def test_the_outbox_of_a_process_that_fails_is_dropped(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    await app.enqueue(in_process(router, aids_processes.fail_after_telling))
    assert (await app.run_worker(messages_limit=1)).dead == 1
    assert await told(server) == [b'"at once"']


async def test_other_actors_are_called_from_a_process(app: Repid, router: Router, server: UnreliableServer) -> None:
    calling = in_process(router, aids_processes.call_others)
    in_process(router, aids_processes.check_other_process)
    handle = await app.enqueue(calling)
    await app.run_worker(messages_limit=1)
    id_ = (await handle.wait()).value
    assert id_ in [each.envelope.id for each in await server.browse("default", "ready")]
    assert await server.counts("default") == Counts(ready=3, scheduled=1)


@pytest.mark.parametrize("run_in_process", [True, False])
async def test_arguments_may_have_any_names_in_calls_from_a_thread_and_a_process(
    app: Repid, router: Router, server: UnreliableServer, run_in_process: bool
) -> None:
    calling: Any = router.actor(run_in_process=run_in_process)(aids_processes.call_by_names)
    router.actor(aids_processes.take_names)
    await app.enqueue(calling)
    assert (await app.run_worker(messages_limit=1)).succeeded == 1
    payload = b'{"self":1,"verb":2,"function":3,"options":4}'
    assert [each.envelope.payload for each in await server.browse("default", "ready")] == [payload] * 3


async def test_what_a_verb_raises_is_raised_in_the_process(app: Repid, router: Router) -> None:
    handle = await app.enqueue(in_process(router, aids_processes.send_badly))
    await app.run_worker(messages_limit=1)
    assert "'not a name' is not a valid channel name" in (await handle.wait()).value


async def test_whatever_is_raised_in_the_place_of_a_process_the_worker_goes_on(app: Repid, router: Router) -> None:
    bait = {
        "__str__ raises": "UsageError",
        "__reduce__ raises": "UsageError",
        "SystemExit": "SystemExit",
        "a forged Cancelled": "Cancelled",
    }
    handle = await app.enqueue(in_process(router, aids_processes.send_bait), names=list(bait))
    assert await app.run_worker(messages_limit=1) == Report(processed=1, succeeded=1)
    assert (await handle.wait()).value == list(bait.values())


async def test_threads_of_a_process_may_say_something_too(app: Repid, router: Router) -> None:
    handle = await app.enqueue(in_process(router, aids_processes.say_in_threads))
    await app.run_worker(messages_limit=1)
    assert (await handle.wait()).value == 20


async def test_a_verdict_stands_when_its_process_is_killed(
    app: Repid, router: Router, server: UnreliableServer, tmp_path: Path
) -> None:
    hanging = in_process(router, aids_processes.ack_and_hang, timeout=4)
    await app.enqueue(in_process(router, aids_processes.check_other_process), 0)  # starts the process
    await app.using(delay=0.1).enqueue(hanging, file=str(tmp_path / "began"))
    assert await app.run_worker(messages_limit=2, processes_limit=1) == Report(processed=2, succeeded=2)
    assert await told(server) == [b'"said"']


async def test_each_message_of_a_batch_has_its_verbs_in_a_process(app: Repid, router: Router) -> None:
    acking = router.actor(batch=10, run_in_process=True)(aids_processes.ack_every_other)
    await app.enqueue_many(acking, range(4))
    assert await app.run_worker(messages_limit=4) == Report(processed=4, succeeded=2, failed=2, dead=2)


async def test_a_run_that_has_ended_is_not_heard_any_more(app: Repid, router: Router) -> None:
    keeping = in_process(router, aids_processes.keep)
    handles = [await app.enqueue(keeping), await app.enqueue(keeping)]
    await app.run_worker(messages_limit=2, processes_limit=1)
    first, second = [(await handle.wait()).value for handle in handles]
    assert first == "kept"
    assert "cannot be reached any more" in second


async def test_what_a_process_says_may_come_in_pieces() -> None:
    verbs = ProcessVerbs("nowhere")
    ours, theirs = memory_stream_pair()
    request = pickle.dumps(VerbCall("sing", to_outbox=False, options={}, arguments=(), keywords={}))
    async with trio.open_nursery() as nursery:
        with verbs.lent(DirectMessage().for_threads) as stand_in:
            nursery.start_soon(verbs.answer, cast("trio.SocketStream", ours))
            said = stand_in._way.key + LENGTH.pack(len(request)) + request
            for start in range(0, len(said), 5):
                await theirs.send_all(said[start : start + 5])
                await wait_all_tasks_blocked()
            answer = await theirs.receive_some()
    assert pickle.loads(answer[LENGTH.size :])[0]
    assert "a message has no verb 'sing'" in str(pickle.loads(answer[LENGTH.size :])[1])


async def test_a_process_that_stops_in_the_middle_of_what_it_says_is_not_waited_for(autojump_clock: MockClock) -> None:
    verbs = ProcessVerbs("nowhere")
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        with verbs.lent(DirectMessage().for_threads) as stand_in:
            nursery.start_soon(verbs.answer, cast("trio.SocketStream", ours))
            await theirs.send_all(stand_in._way.key + LENGTH.pack(100) + b"half")
            assert await theirs.receive_some() == b""  # the connection was closed
            assert trio.current_time() == pytest.approx(REQUEST_TIME)


async def test_who_has_no_key_is_not_listened_to(
    app: Repid, router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tempfile.mkdtemp()  # a short path, in which no other run of these tests leaves anything
    monkeypatch.setattr(tempfile, "tempdir", place)
    hanging = in_process(router, aids_processes.ack_and_hang, timeout=6)
    await app.enqueue(hanging, file=str(tmp_path / "began"))
    reports: list[Report] = []

    async def work() -> None:
        reports.append(await app.run_worker(messages_limit=1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        while not (tmp_path / "began").exists():
            await trio.sleep(0.01)
        [file] = Path(place).glob("repid-*/verbs")
        assert file.parent.stat().st_mode & 0o077 == 0
        async with await trio.open_unix_socket(str(file)) as stream:
            await stream.send_all(bytes(16) + b"cos\nsystem\n(S'false'\ntR.")
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
    assert not file.exists()
    assert reports == [Report(processed=1, succeeded=1)]
    shutil.rmtree(place)


def test_processes_are_heard_under_asyncio_and_through_middlewares() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    seen: list[str] = []

    async def around(call_next: CallNext, message: Message, actor: Actor) -> Any:
        value = await call_next(message, actor)
        seen.append(f"{actor.name} {message.action}")
        return value

    saying = in_process(router, aids_processes.say, middlewares=[around])
    app.include_router(router)

    async def main() -> None:
        async with app.magic():
            await app.enqueue(saying, "nack")
            assert (await app.run_worker(messages_limit=1)).dead == 1

    asyncio.run(main())
    assert seen == ["say nacked"]


async def test_a_worker_without_such_actors_listens_to_nobody(
    app: Repid, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    bind = socket.socket.bind

    def note(self: socket.socket, address: Any) -> None:
        opened.append(address)
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", note)
    checking = in_process(router, aids_processes.check_other_process)
    await app.enqueue(checking, 0)
    await app.run_worker(messages_limit=1)
    assert opened == []


async def fail_at_once() -> None:
    raise ValueError("no")


async def fail_later() -> None:
    await trio.sleep(0.001)
    raise ValueError("no")


def fail_in_thread() -> None:
    raise ValueError("no")


@pytest.mark.parametrize("actor", [fail_at_once, fail_later, fail_in_thread, aids_processes.fail])
async def test_a_traceback_begins_with_the_actor_and_not_with_what_called_it(
    actor: Callable[[], Any], app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(store_result=True, run_in_process=actor is aids_processes.fail)(actor)
    handle = await app.enqueue(actor)
    await app.run_worker(burst=True)
    result = await handle.wait()
    assert result.failure is not None
    assert result.failure.traceback.splitlines()[1].endswith(f"in {actor.__name__}")
    assert f"Traceback (most recent call last):\n  {result.failure.traceback.splitlines()[1].strip()}" in caplog.text


async def take_the_first() -> int:
    return next(iter(()))


def take_the_first_in_thread() -> int:
    return next(iter(()))


@pytest.mark.parametrize("actor", [take_the_first, take_the_first_in_thread])
async def test_a_stop_iteration_that_an_actor_raises_is_shown_without_the_lines_of_repid(
    actor: Callable[[], Any], app: Repid, router: Router
) -> None:
    router.actor(store_result=True)(actor)
    handle = await app.enqueue(actor)
    await app.run_worker(burst=True)
    result = await handle.wait()
    assert result.failure is not None
    assert result.failure.traceback.endswith(
        "StopIteration: \n\nThe above exception was the direct cause of the following exception:\n\n"
        "RuntimeError: coroutine raised StopIteration\n"
    )


async def fail_in_its_clean_up(message: Message) -> None:
    try:
        await message.ack()
        await trio.sleep(60)
    finally:
        raise ValueError("no")


async def fail_after_its_verdict(message: Message) -> None:
    await message.ack()
    await trio.sleep(0.001)
    raise ValueError("no")


@pytest.mark.parametrize("actor", [fail_in_its_clean_up, fail_after_its_verdict])
async def test_a_failure_that_changes_nothing_is_logged_without_the_lines_of_repid(
    actor: Callable[..., Any], app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(timeout=0.05)(actor)
    await app.enqueue(actor)
    await app.run_worker(messages_limit=1)
    [shown] = [record.exc_text for record in caplog.records if record.exc_text]
    assert "ValueError: no" in shown
    assert f"in {actor.__name__}" in shown
    assert str(Path(repid.__file__).parent) not in shown


async def test_processes_that_fill_the_queue_which_their_worker_reads_do_not_wait_for_themselves(
    app: Repid, router: Router
) -> None:
    actor = in_process(router, aids_processes.fill_its_own_queue)
    await Queue("default", max_size=1).declare()
    await app.enqueue(actor)
    waiting: set[int] = set()
    async with trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        with trio.fail_after(30):
            while not worker.report.failed:
                waiting.add(worker.statistics().waiting_to_send)
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    dead, *_ = await Queue("default").get_messages("dead")
    assert dead.failure is not None
    assert dead.failure.type == "QueueFull"
    assert "nothing can make room" in dead.failure.text
    assert max(waiting) > 0
