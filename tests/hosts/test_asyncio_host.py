"""The documented programs under asyncio and uvloop: connecting, sending, jobs, results, workers, ends of all kinds."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.lowlevel
from aids import read_rest, send

from repid import (
    Actor,
    CallNext,
    Connection,
    Envelope,
    Handle,
    InMemoryServer,
    Job,
    Message,
    NoCurrentApp,
    NotConnected,
    Outcomes,
    Publish,
    Queue,
    QueueNotDeclared,
    Repid,
    Router,
    SQLiteServer,
    Worker,
)
from repid.hosts import Turns

from .hosting import nothing_is_left

ROOT = Path(__file__).parents[2]
NAME: ContextVar[str] = ContextVar("NAME", default="nobody")


def make(**options: Any) -> tuple[Repid, Router]:
    app = Repid(Connection(InMemoryServer()), **options)
    router = Router()
    app.include_router(router)
    return app, router


async def counts(app: Repid) -> tuple[int, int, int, int]:
    c = await Queue(app=app).counts()
    return c.ready, c.scheduled, c.leased, c.dead


def test_actors_are_tasks_of_the_host_loop(run: Any) -> None:
    async def main() -> None:
        app, router = make()
        seen: list[Any] = []
        loop = asyncio.get_running_loop()

        @router.actor
        async def look(message: Message) -> None:
            for _ in range(2):
                assert asyncio.get_running_loop() is loop
                seen.append(asyncio.current_task())
                async with asyncio.timeout(5):
                    await asyncio.sleep(0.001)
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(0.001))

        async with app.magic():
            await send(app, "look")
            assert (await app.run_worker(messages_limit=1)).succeeded == 1
        assert isinstance(seen[0], asyncio.Task)
        assert seen[0] is seen[1]
        assert seen[0] is not asyncio.current_task()
        assert nothing_is_left()

    run(main())


@pytest.mark.parametrize("late", [False, True])
def test_an_actor_that_blocks_the_loop_is_named_whichever_step_does_it(
    run: Any, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        app, router = make()

        @router.actor
        async def blocks() -> None:
            if late:
                await asyncio.sleep(0.001)
            time.sleep(1.05)  # noqa: ASYNC251  that is what it is about
            await asyncio.sleep(0.001)

        app.include_router(router)
        async with app.magic():
            await send(app, "blocks")
            await app.run_worker(messages_limit=1)

    caplog.set_level("WARNING", logger="repid")
    run(main())
    named = [record.getMessage() for record in caplog.records if "blocked the event loop" in record.getMessage()]
    assert len(named) == 1
    assert named[0].startswith("actor 'blocks' (message '")
    assert "blocked the event loop for 1." in named[0]


@pytest.mark.parametrize(
    ("order", "text"),
    [(SystemExit(3), "sys.exit(3) was called"), (KeyboardInterrupt(), "KeyboardInterrupt was raised")],
)
def test_an_order_to_exit_in_a_task_that_an_actor_started_is_the_failure_of_its_job_alone(
    run: Any, order: BaseException, text: str
) -> None:
    async def main() -> None:
        app, router = make()
        loop = asyncio.get_running_loop()
        found = loop.get_task_factory()

        async def child() -> None:
            await asyncio.sleep(0)
            raise order

        @router.actor
        async def leaves() -> None:
            await asyncio.create_task(child())

        @router.actor
        async def innocent() -> None:
            await asyncio.sleep(0.01)

        app.include_router(router)
        async with app.magic():
            for actor in ("innocent", "leaves"):
                await send(app, actor)
            report = await app.run_worker(messages_limit=2)
            assert (report.succeeded, report.failed) == (1, 1)
            [dead] = await Queue().get_messages("dead")
            assert dead.failure is not None
            assert f"{text} in a task that an actor had started" in dead.failure.text
        await asyncio.sleep(0.01)
        assert loop.get_task_factory() is found

    run(main())


def test_the_tasks_of_a_program_that_only_sends_are_made_as_before(run: Any) -> None:
    async def main() -> None:
        app, _ = make()
        loop = asyncio.get_running_loop()
        found = loop.get_task_factory()
        async with app.magic():
            await send(app, "nobody")
            assert loop.get_task_factory() is found

    run(main())


def test_trio_actors_may_be_asked_for(run: Any) -> None:
    async def main() -> None:
        app = Repid(Connection(InMemoryServer()))
        router = Router(backend="trio")

        @router.actor
        async def native(message: Message) -> None:
            await trio.sleep(0.001)
            await message.send_message_json(channel="default", headers={"topic": "hosted"})

        @router.actor(backend="host")
        async def hosted() -> None:
            await asyncio.sleep(0.001)

        app.include_router(router)
        async with app.magic():
            await send(app, "native")
            assert (await app.run_worker(messages_limit=2)).succeeded == 2

    run(main())


def test_the_job_api_works(run: Any) -> None:
    worker = Worker(burst=True)

    @worker.actor(store_result=True)
    async def divide(a: int, b: int, message: Message) -> float:
        await message.progress(1, 2, "half done")
        await asyncio.sleep(0.001)
        return a / b

    async def main() -> None:
        app = Repid(Connection(InMemoryServer()))
        with pytest.raises(NoCurrentApp):
            await Queue().declare()
        async with app.magic():
            with pytest.raises(QueueNotDeclared):
                await Job("divide").enqueue()
            await Queue().declare()
            good = await Job("divide", args={"a": 84, "b": 2}).enqueue()
            bad = await Job("divide", args={"a": 1, "b": 0}).enqueue()
            gone = await Job("divide", args={"a": 1, "b": 1}).enqueue()
            assert await gone.cancel()
            assert await good.result is None
            assert await Queue().size() == 2
            assert (await worker.run()).processed == 2
            assert (await good.wait()).value == 42
            assert [status.state async for status in good.watch()] == ["success"]
            failure = (await bad.wait()).failure
            assert failure is not None
            assert failure.type == "ZeroDivisionError"
            assert [m.envelope.id for m in await Queue().get_messages("dead")] == [bad.id]
            assert await Queue().requeue() == 1
            await Job("divide", id_="tick", deferred_by=60).enqueue()
            assert [s.schedule.name for s in await app.schedules.list()] == ["tick"]
            await app.schedules.remove("tick")
        with pytest.raises(NotConnected):
            await send(app, "divide")
        with pytest.raises(NoCurrentApp):
            await Queue().declare()
        assert nothing_is_left()

    run(main())


def test_magic_may_be_left_in_another_task_than_it_was_entered_in_as_fixtures_and_generators_do(run: Any) -> None:
    async def main() -> None:
        app, _ = make()

        async def sending() -> AsyncGenerator[str, None]:
            async with app.magic():
                await Queue().declare()
                while True:
                    yield (await Job("any").enqueue()).id

        magic = app.magic()
        await asyncio.create_task(magic.__aenter__())
        await send(app, "any")
        await asyncio.create_task(magic.__aexit__(None, None, None))
        generator = sending()
        assert await asyncio.create_task(generator.__anext__())
        await asyncio.create_task(generator.aclose())
        assert not app.servers.default.is_connected
        assert nothing_is_left()

    run(main())


def test_a_watch_sees_a_worker_that_runs_beside_it(run: Any) -> None:
    async def main() -> None:
        app, router = make()

        @router.actor(store_result=True)
        async def slow() -> str:
            await asyncio.sleep(0.05)
            return "done"

        async with app.magic():
            worker = asyncio.create_task(app.run_worker(messages_limit=1))
            handle = await Job("slow").enqueue()
            states = [status.state async for status in handle.watch()]
            assert states[-2:] == ["running", "success"]
            assert (await worker).succeeded == 1

    run(main())


def test_durable_jobs_work(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        app = Repid(Connection(SQLiteServer(tmp_path / "jobs.db")))
        worker = Worker(app=app, burst=True)

        @worker.actor(store_result=True)
        async def double(number: int) -> int:
            await asyncio.sleep(0)
            return 2 * number

        async with app.servers.default.connection():
            await Queue(app=app).declare()
            handles = await asyncio.gather(*(Job("double", args={"number": i}, app=app).enqueue() for i in range(50)))
            assert (await worker.run()).succeeded == 50
            assert [(await handle.wait()).value for handle in handles] == list(range(0, 100, 2))
        assert nothing_is_left()

    run(main())


@pytest.mark.parametrize("verb", ["ack", "nack", "reject", "retry", "reply_json"])
def test_the_verbs_of_a_message_work_in_an_asyncio_actor(run: Any, verb: str) -> None:
    async def main() -> None:
        app, router = make()

        @router.actor(retries=1)
        async def act(message: Message) -> None:
            if message.attempt == 1:
                await asyncio.sleep(0)
                await message.send_message_json(channel="other")
                if verb in {"ack", "reply_json"}:
                    await message.outbox.send_message_json(channel="other")
                await getattr(message, verb)(
                    *[0] * (verb == "retry"), **{"channel": "other"} if "reply" in verb else {}
                )
                assert message.is_acted_on

        async with app.magic():
            await send(app, "act")
            report = await app.run_worker(messages_limit=1)
            assert report.processed == 1
            expected = {"ack": 2, "reply_json": 3}.get(verb, 1)
            assert await Queue("other", app=app).size() == expected

    run(main())


def test_middlewares_run_on_the_host_loop_whatever_they_go_around(run: Any) -> None:
    async def main() -> None:
        log: list[str] = []

        async def around(call_next: CallNext, message: Message, actor: Actor) -> Any:
            assert asyncio.current_task() is not None
            await asyncio.sleep(0.001)
            log.append(actor.name)
            result = await call_next(message, actor)
            await asyncio.sleep(0.001)
            return result

        async def around_sending(call_next: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
            assert asyncio.current_task() is not None
            await asyncio.sleep(0.001)
            log.append("send")
            return await call_next(envelopes)

        app = Repid(Connection(InMemoryServer()), middlewares=[around], producer_middlewares=[around_sending])
        router = Router()

        @router.actor
        async def on_host(message: Message) -> None:
            await asyncio.sleep(0)
            await message.send_message_json(channel="default", headers={"topic": "native"})

        @router.actor(backend="trio")
        async def native(message: Message) -> None:
            await trio.lowlevel.checkpoint()
            await message.outbox.send_message_json(channel="default", headers={"topic": "threaded"})

        @router.actor
        def threaded(message: Message) -> None:
            time.sleep(0.001)

        app.include_router(router)
        async with app.magic():
            await send(app, "on_host")
            assert (await app.run_worker(messages_limit=3)).succeeded == 3
            await Job("on_host").enqueue()
        assert log == ["send", "on_host", "send", "native", "send", "threaded", "send"]

    run(main())


def test_what_a_caller_has_set_is_seen_by_producer_middlewares_and_by_the_broker(run: Any) -> None:
    seen: list[tuple[str, str]] = []

    class Looking(InMemoryServer):
        async def publish(self, envelopes: Sequence[Envelope]) -> list[Any]:
            seen.append(("broker", NAME.get()))
            return await super().publish(envelopes)

    async def look(call_next: Publish, envelopes: Sequence[Envelope]) -> Outcomes:
        seen.append(("middleware", NAME.get()))
        return await call_next(envelopes)

    async def main() -> None:
        app = Repid(Connection(Looking()), producer_middlewares=[look])
        worker = Worker(app=app, messages_limit=1)

        @worker.actor
        async def answer(message: Message) -> None:
            NAME.set("the actor")
            await message.send_message_json(channel="default", headers={"topic": "nobody"})

        async with app.magic():
            await Queue().declare()
            NAME.set("the caller")
            await send(app, "answer")
            await worker.run()
        assert NAME.get() == "the caller"

    run(main())
    assert seen == [(who, name) for name in ("the caller", "the actor") for who in ("middleware", "broker")]


def test_every_run_has_a_context_of_its_own(run: Any) -> None:
    async def main() -> None:
        app, router = make()
        seen: list[Any] = []

        @router.actor
        async def look() -> None:
            seen.append(NAME.get())
            NAME.set("set by an actor")
            await asyncio.sleep(0)
            assert NAME.get() == "set by an actor"

        NAME.set("Ada")
        async with app.magic():
            for _ in range(3):
                await send(app, "look")
            await app.run_worker(messages_limit=3)
        assert seen == ["Ada"] * 3

    run(main())


class Named(partial[Any]):
    """A function that sets something when it is called, before its coroutine begins, as a wrapper may."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        NAME.set(f"{NAME.get()}, named")
        return super().__call__(*arguments, **keywords)


def test_what_the_call_of_an_actor_sets_is_seen_by_its_own_run_alone(run: Any) -> None:
    async def main() -> None:
        app, router = make()
        seen: list[Any] = []

        async def look() -> None:
            seen.append(NAME.get())

        router.actor(name="look")(Named(look))
        NAME.set("Ada")
        async with app.magic():
            for _ in range(3):
                await send(app, "look")
            await app.run_worker(messages_limit=3)
        assert seen == ["Ada, named"] * 3

    run(main())


def test_every_run_has_a_task_of_its_own_also_one_that_waits_for_nothing(run: Any) -> None:
    async def main() -> None:
        app, router = make()
        tasks: list[asyncio.Task[Any]] = []
        seen: list[Any] = []

        @router.actor
        async def keeps(number: int) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            if number == 1:
                task.set_name("looked at")
                task.add_done_callback(lambda _: seen.append("done"))
            if number == 2:
                task.cancel()  # of which it hears where it waits next, so nowhere
            if number == 3:
                async with asyncio.timeout(60):
                    token = NAME.set("three")
                    await asyncio.sleep(0)
                    NAME.reset(token)
                assert asyncio.current_task() is task
            if number == 4:
                asyncio.get_running_loop().call_later(0.01, task.cancel)
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.sleep(60)

        async with app.magic():
            for number in range(5):
                await send(app, "keeps", number=number)
            report = await app.run_worker(messages_limit=5, tasks_limit=1)
            assert report.succeeded == 5
            await asyncio.sleep(0)
        assert len(set(tasks)) == 5
        assert all(isinstance(task, asyncio.Task) for task in tasks)
        assert tasks[1].get_name() == "looked at"
        assert await asyncio.gather(*tasks) == [None] * 5
        assert seen == ["done"]

    run(main())


def test_of_many_calls_that_never_wait_one_pauses_for_all(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Turns.__module__], "TURN", 60.0)

    async def main() -> None:
        turns = Turns()
        assert await asyncio.gather(*[turns.take() for _ in range(3)]) == [True, False, False]

    run(main())


def test_a_timeout_cancels_the_task_and_waits_for_its_end_before_it_is_settled(run: Any) -> None:
    async def main() -> None:
        app, router = make()
        log: list[str] = []

        @router.actor(timeout=0.05, retries=1, retry_policy=lambda _: 0.0)
        async def hang(message: Message) -> None:
            log.append(f"start {message.attempt}")
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(0.05)
                log.append(f"end {message.attempt}")
                raise

        async with app.magic():
            await send(app, "hang")
            report = await app.run_worker(messages_limit=2)
            assert (report.retried, report.processed) == (1, 2)
            dead = await Queue().get_messages("dead")
        assert log == ["start 1", "end 1", "start 2", "end 2"]
        assert "timeout" in str(dead[0].failure)

    run(main())


def test_what_actors_raise_decides_as_under_trio(run: Any) -> None:
    async def main() -> None:
        app, router = make()

        @router.actor
        async def at_once() -> None:
            raise ValueError("at once")

        @router.actor
        async def later() -> None:
            await asyncio.sleep(0)
            raise ValueError("later")

        @router.actor
        async def cancels_itself() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        @router.actor
        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(later())

        async with app.magic():
            for name in ("at_once", "later", "cancels_itself", "group"):
                await send(app, name)
            assert (await app.run_worker(messages_limit=4)).failed == 4
            dead = {m.envelope.topic: m.failure and m.failure.type for m in await Queue().get_messages("dead")}
        assert dead == {
            "at_once": "ValueError",
            "later": "ValueError",
            "cancels_itself": "CancelledError",
            "group": "ExceptionGroup",
        }

    run(main())


@pytest.mark.parametrize("cause", ["stop", "timeout"])
@pytest.mark.parametrize("order", [ConnectionError, SystemExit])
@pytest.mark.parametrize("surrounded", [True, False])
def test_who_cancelled_a_task_decides_and_not_what_its_clean_up_raised(
    run: Any, cause: str, order: type[BaseException], surrounded: bool
) -> None:
    app, router = make()

    async def around(call_next: Any, message: Message, actor: Any) -> Any:
        return await call_next(message, actor)

    @router.actor(timeout=0.05 if cause == "timeout" else 100, middlewares=[around] if surrounded else [])
    async def job() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            raise order("rollback failed")

    async def main() -> None:
        async with app.magic():
            await send(app, "job")
            if cause == "timeout":
                await app.run_worker(burst=True)
                [dead] = await Queue().get_messages("dead")
                assert dead.failure is not None
                assert dead.failure.type == "TimeoutError"
                assert "rollback failed" in dead.failure.traceback
                return
            worker = asyncio.create_task(app.run_worker())
            await asyncio.sleep(0.05)
            worker.cancel()
            with pytest.raises(asyncio.CancelledError):
                await worker
            assert await counts(app) == (1, 0, 0, 0)
            [ready] = await Queue().get_messages("ready")
            assert ready.attempt == 1

    run(main())


@pytest.mark.parametrize("surrounded", [True, False])
def test_what_a_thread_returns_late_counts_under_asyncio_too(run: Any, surrounded: bool) -> None:
    app, router = make()

    async def around(call_next: Any, message: Message, actor: Any) -> Any:
        return await call_next(message, actor)

    @router.actor(timeout=0.05, store_result=True, middlewares=[around] if surrounded else [])
    def job() -> str:
        time.sleep(0.2)
        return "sent the mail"

    async def main() -> None:
        async with app.magic():
            handle = await Job("job").enqueue()
            await app.run_worker(burst=True)
            result = await handle.result
            assert result is not None
            assert result.payload == b'"sent the mail"'

    run(main())


@pytest.mark.parametrize("order", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("place", ["at once", "after a wait", "in a middleware", "in a thread"])
def test_an_order_to_exit_is_the_failure_of_its_job_alone(run: Any, place: str, order: type[BaseException]) -> None:
    app, router = make()

    async def around(call_next: Any, message: Message, actor: Any) -> Any:
        if place == "in a middleware":
            raise order(3)
        return await call_next(message, actor)

    @router.actor(middlewares=[around] if place == "in a middleware" else [], name="leave")
    async def leave() -> None:
        if place != "at once":
            await asyncio.sleep(0)
        raise order(3)

    @router.actor(name="leave_thread")
    def in_a_thread() -> None:
        raise order(3)

    async def main() -> None:
        async with app.magic():
            await send(app, "leave_thread" if place == "in a thread" else "leave")
            await app.run_worker(burst=True)
            assert await counts(app) == (0, 0, 0, 1)

    run(main())


def test_cancelling_the_embedding_task_skips_the_grace_and_releases(run: Any) -> None:
    async def main() -> None:
        app, router = make()
        log: list[str] = []
        started = asyncio.Event()

        @router.actor
        async def hang() -> None:
            started.set()
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                log.append("ended")

        async with app.magic():
            await send(app, "hang")
            worker = asyncio.create_task(app.run_worker())
            await started.wait()
            worker.cancel()
            with pytest.raises(asyncio.CancelledError):
                await worker
            assert log == ["ended"]
            assert await counts(app) == (1, 0, 0, 0)
        assert nothing_is_left()

    run(main())


def test_a_failing_sibling_in_a_task_group_ends_the_worker(run: Any) -> None:
    async def main() -> None:
        app, router = make()

        started = asyncio.Event()

        @router.actor
        async def hang() -> None:
            started.set()
            await asyncio.sleep(3600)

        async def fail() -> None:
            await started.wait()
            raise ValueError

        async with app.magic():
            await send(app, "hang")
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    group.create_task(app.run_worker())
                    group.create_task(fail())
            assert caught.group_contains(ValueError)
            assert await counts(app) == (1, 0, 0, 0)

    run(main())


def test_the_end_of_the_loop_releases_what_an_embedded_worker_runs(run: Any) -> None:
    app, router = make()
    started: list[bool] = []

    @router.actor
    async def hang() -> None:
        started.append(True)
        await asyncio.sleep(3600)

    async def main() -> None:
        async def work() -> None:
            async with app.magic():
                await send(app, "hang")
                await app.run_worker()

        kept.append(asyncio.create_task(work()))
        async with app.magic():
            while not started:
                await asyncio.sleep(0.005)

    kept: list[Any] = []
    run(main())

    async def look() -> None:
        async with app.magic():
            assert await counts(app) == (1, 0, 0, 0)
            assert (await Queue(app=app).get_messages())[0].attempt == 1

    run(look())


def test_stop_gives_the_actors_their_grace_and_its_end_cancels_them(run: Any) -> None:
    async def main() -> None:
        app = Repid(Connection(InMemoryServer()))
        worker = Worker(app=app, graceful_shutdown_time=0.2)
        log: list[str] = []

        @worker.actor
        async def work(seconds: float) -> None:
            log.append("started")
            try:
                await asyncio.sleep(seconds)
                log.append("finished")
            except asyncio.CancelledError:
                log.append("cancelled")
                raise

        async with app.magic():
            running = asyncio.create_task(worker.run())
            await Queue().declare()
            await send(app, "work", seconds=0.1)
            await send(app, "work", seconds=100)
            while len(log) < 2:
                await asyncio.sleep(0.005)
            worker.stop()
            report = await running
            assert (report.succeeded, report.released) == (1, 1)
        assert log == ["started", "started", "finished", "cancelled"]

    run(main())


def test_threads_left_behind_are_told_apart_also_under_middlewares(run: Any) -> None:
    import threading

    async def main() -> None:
        async def around(call_next: CallNext, message: Message, actor: Actor) -> Any:
            return await call_next(message, actor)

        app = Repid(Connection(InMemoryServer()), middlewares=[around])
        worker = Worker(app=app, graceful_shutdown_time=0.05)
        started, release = threading.Event(), threading.Event()

        @worker.actor
        def stubborn() -> None:
            started.set()
            release.wait(10)

        async with app.magic():
            running = asyncio.create_task(worker.run())
            await Queue().declare()
            await send(app, "stubborn")
            await asyncio.to_thread(started.wait)
            worker.stop()
            report = await running
            release.set()
            assert (report.abandoned, report.released) == (1, 0)

    run(main())


def test_two_workers_and_many_senders_share_the_guest(run: Any) -> None:
    async def main() -> None:
        app, router = make()
        done: list[int] = []

        @router.actor
        async def count(number: int) -> None:
            await asyncio.sleep(0.001)
            done.append(number)

        async with app.magic(), asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(app.run_worker(messages_limit=100))
            for number in range(200):
                group.create_task(send(app, "count", number=number))
        assert sorted(done) == list(range(200))

    run(main())


PROGRAM = """
import asyncio, signal, sys, time
from repid import InMemoryServer, Repid, Router, Connection
app = Repid(Connection(InMemoryServer()))
router = Router()

@router.actor
async def work(seconds: float) -> None:
    print("started", flush=True)
    try:
        await asyncio.sleep(seconds)
        print("finished", flush=True)
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise

app.include_router(router)

async def tell() -> None:
    from repid.runtime import signals
    while not signals._received:
        await asyncio.sleep(0.005)
    print("stopping", flush=True)

kept = []

async def main() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with app.magic():
        await app.send_message_json(channel="default", payload={"seconds": float(sys.argv[1])}, headers={"topic": "work"})
        if float(sys.argv[1]) == 100:
            kept.append(asyncio.create_task(tell()))
        report = await app.run_worker(graceful_shutdown_time=30)
        print(report.succeeded, report.released, flush=True)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

if sys.argv[2] == "uvloop":
    import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals on Windows")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_drains_and_a_second_one_cuts_short(loop: str, number: signal.Signals, twice: bool) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, "100" if twice else "0.5", loop],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        if twice:
            assert process.stdout.readline() == "stopping\n"  # or two that come at once would count as one
            process.send_signal(number)
        out, err = read_rest(process)
    assert (out.split(), err, process.returncode) == (
        ["cancelled", "0", "1"] if twice else ["finished", "1", "0"],
        "",
        0,
    )


INTERRUPTED = """
import asyncio, logging, sys
import trio
logging.getLogger("asyncio").setLevel(logging.ERROR)  # in debug mode it tells of slow steps, which a busy machine has
from repid import Connection, InMemoryServer, Queue, Repid, Router
from repid.hosts import hosted

place, loop = sys.argv[1:]

class Slow(InMemoryServer):
    @hosted
    async def publish(self, envelopes):
        outcomes = await super().publish(envelopes)
        if place == "sending":
            print("started", flush=True)
            await trio.sleep(3600)
        return outcomes

app = Repid(Connection(Slow()))
router = Router()
app.include_router(router)

@router.actor
async def work() -> None:
    print("started", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        print("cleaning", flush=True)
        await asyncio.sleep(0.1)

async def run_worker() -> None:
    async with app.magic():
        await app.run_worker(handle_signals=[])

def beat() -> None:  # asyncio alone does not notice a signal in the moment in which it begins to wait, before it wakes again
    asyncio.get_running_loop().call_later(0.1, beat)

async def main() -> None:
    beat()
    async with app.magic(), asyncio.TaskGroup() as group:
        if place == "embedded":
            group.create_task(app.run_worker(handle_signals=[]))
        if place == "forgotten":
            kept.append(asyncio.create_task(run_worker()))
        await app.send_message_json(channel="default", headers={"topic": "work"})
        await (run_worker() if place == "working" else asyncio.sleep(3600))

async def look() -> None:
    async with app.magic():
        counts = await Queue().counts()
        print(counts.ready, counts.leased, flush=True)

kept = []
if loop == "uvloop":
    import uvloop
    new_loop = uvloop.new_event_loop
else:
    new_loop = asyncio.new_event_loop
try:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
asyncio.run(look())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals on Windows")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("place", ["sending", "working", "embedded", "forgotten"])
def test_ctrl_c_without_handlers_of_ours_ends_everything_and_releases(loop: str, place: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", INTERRUPTED, place, loop],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        if place != "sending":
            assert process.stdout.readline() == "cleaning\n"
        out, err = read_rest(process)
    assert (out.splitlines(), err, process.returncode) == (["interrupted", "1 0"], "", 0)


COUNTERPARTS = {"sleep": "asyncio.sleep", "sleep_forever": "asyncio.Event().wait"}
"""A program that takes nothing but `trio.run` from trio works unchanged; one that calls these calls asyncio's instead."""


def documented() -> list[object]:
    """The programs of README and docs, and the examples, whose own calls of trio have a counterpart of the same shape."""
    programs: dict[str, str] = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        programs |= {f"{page.stem}-{i}": code for i, code in enumerate(blocks)}
    programs |= {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")}
    return [
        pytest.param(code, id=name)
        for name, code in sorted(programs.items())
        if name != "crawler.py"  # needs a site to crawl
        and "trio.run(main)" in code
        and set(re.findall(r"trio\.(\w+)", code)) <= {"run", *COUNTERPARTS}
    ]


@pytest.mark.parametrize("program", documented())
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_documented_program_works_under_asyncio_with_nothing_changed_but_its_own_calls_of_trio(
    program: str, loop: str, tmp_path: Path
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    ported = program.replace("trio.run(main)", f"{loop}.run(main())")
    for own, counterpart in COUNTERPARTS.items():
        ported = re.sub(rf"trio\.{own}\b", counterpart, ported)
    ported = re.sub(r"^import trio$", f"import asyncio, {loop}", ported, flags=re.MULTILINE)
    path = tmp_path / "program.py"

    def output(code: str, *options: str) -> tuple[int, list[str], list[str]]:
        """The exit code, what is logged without ids and the lines of tracebacks, and what is printed."""
        path.write_text(code, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, *options, str(path)],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        logged = re.sub(r"'[0-9a-f]{32}'", "ID", done.stderr).splitlines()
        return done.returncode, [line for line in logged if line[:1].strip()], sorted(done.stdout.splitlines())

    assert output(ported, "-W", "error") == output(program)


def test_a_task_group_of_anyio_starts_a_worker_and_its_handle_can_be_waited_for(run: Any) -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()

    @router.actor(store_result=True)
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0.001)
        return a + b

    app.include_router(router)
    worker = Worker(routers=[router], app=app)

    async def main() -> None:
        async with app.magic(), anyio.create_task_group() as group:
            for start in (app.run_worker, worker.run):
                handle: Handle = await group.start(start)
                assert await app.call(add, 1, 2) == 3
                (handle if start == app.run_worker else worker).drain()
                report = await handle.wait()
                assert report.succeeded == 1
            with anyio.CancelScope() as scope:
                handle = await group.start(app.run_worker)
                with anyio.fail_after(5), anyio.move_on_after(0.01):
                    await handle.wait()
                scope.cancel()
            handle.stop()
        assert await handle.wait() == handle.report

    run(main())
