"""The job API: jobs, queues and workers, and the app they find."""

from __future__ import annotations

import threading
from contextvars import Context
from functools import partial
from typing import Any

import pytest
import trio
from aids import UnreliableServer, send

from repid import (
    ConfigurationError,
    Connection,
    Counts,
    DuplicateId,
    Handle,
    InMemoryServer,
    Job,
    JobHandle,
    Message,
    NoCurrentApp,
    NotConnected,
    PrioritiesT,
    Queue,
    QueueNotDeclared,
    Repid,
    Report,
    Router,
    Worker,
)
from repid.application import find_app

# Jobs


async def test_a_job_is_a_call_of_its_actor(app: Repid) -> None:
    worker = Worker(burst=True)
    seen: list[tuple[int, str, dict[str, str]]] = []

    @worker.actor
    async def job(message: Message, x: int, y: str = "y") -> None:
        seen.append((x, y, dict(message.headers)))

    handle = await Job("job", args={"x": 5}).enqueue()
    assert isinstance(handle, JobHandle)
    assert (handle.queue, len(handle.id)) == ("default", 32)
    assert await worker.run() == Report(processed=1, succeeded=1)
    assert seen == [(5, "y", {"topic": "job"})]


async def test_a_job_without_an_id_has_a_fresh_one_each_time(app: Repid, server: UnreliableServer) -> None:
    job = Job("job")
    handles = [await job.enqueue() for _ in range(3)]
    assert (job.is_unique, job.id_) == (False, None)
    assert len({handle.id for handle in handles}) == 3
    assert await server.counts("default") == Counts(ready=3)


async def test_a_unique_job_is_refused_while_one_is_alive(app: Repid, server: UnreliableServer) -> None:
    job = Job("job", id_="only")
    assert (job.is_unique, job.id_) == (True, "only")
    assert (await job.enqueue()).id == "only"
    with pytest.raises(DuplicateId):
        await job.enqueue()
    with pytest.raises(DuplicateId):
        await Job("another", id_="only").enqueue()
    assert await server.counts("default") == Counts(ready=1)


@pytest.mark.parametrize("place", ["ready", "scheduled", "leased", "dead", "done"])
async def test_an_id_is_taken_in_every_place_but_among_the_dead_and_the_done(app: Repid, place: str) -> None:
    worker = Worker(burst=True)
    refused: list[str] = []

    async def is_refused() -> bool:
        try:
            await Job("job", id_="only").enqueue()
        except DuplicateId:
            return True
        return False

    @worker.actor
    async def job() -> None:
        if place == "leased":
            refused.append(str(await is_refused()))
        if place == "dead":
            raise ValueError

    await Job("job", id_="only", delay=100 if place == "scheduled" else None).enqueue()
    if place in {"leased", "dead", "done"}:
        await worker.run()
    else:
        refused.append(str(await is_refused()))
    if place in {"dead", "done"}:
        refused.append(str(await is_refused()))
    assert refused == [str(place not in {"dead", "done"})]


async def test_an_undeclared_queue_is_a_key_error_that_names_it(app: Repid) -> None:
    with pytest.raises(KeyError, match="nowhere") as raised:
        await Job("job", "nowhere").enqueue()
    assert isinstance(raised.value, QueueNotDeclared)
    assert raised.value.queue == "nowhere"
    assert str(raised.value).startswith("queue 'nowhere' is not declared")


async def test_an_undeclared_queue_that_is_misspelt_names_the_one_that_was_meant(app: Repid, router: Router) -> None:
    @router.actor(queue="mail")
    async def job() -> None: ...

    with pytest.raises(QueueNotDeclared) as raised:
        await Job("job", "mial").enqueue()
    assert raised.value.__notes__ == ["the app has actors that read other queues (did you mean 'mail'?)"]


async def test_a_job_of_a_queue_object_goes_there(app: Repid) -> None:
    queue = Queue("mine")
    await queue.declare()
    await queue.declare()
    assert (await Job("job", queue).enqueue()).queue == "mine"
    assert await queue.size() == 1


@pytest.mark.parametrize("via", ["magic", "worker"])
async def test_the_queues_of_actors_are_declared(server: UnreliableServer, autojump_clock: Any, via: str) -> None:
    app = Repid()
    app.servers.register_server("default", server)
    router = Router(queue="routed")

    @router.actor
    async def job() -> None: ...

    if via == "magic":
        app.include_router(router)
    async with app.magic():
        if via == "worker":
            await Worker([router], burst=True).run()
        await Job("job", "routed").enqueue()
        assert await Queue("routed").counts() == Counts(ready=1)


async def test_a_worker_may_be_told_not_to_declare(app: Repid, router: Router) -> None:
    @router.actor(queue="undeclared")
    async def job() -> None: ...

    with pytest.raises(QueueNotDeclared, match="undeclared"):
        await Worker([router], auto_declare=False, burst=True).run()


async def test_priorities_of_jobs_are_one_rank(app: Repid) -> None:
    worker = Worker(burst=True, tasks_limit=1)
    order: list[int] = []

    @worker.actor
    async def job(i: int) -> None:
        order.append(i)

    ranks = [PrioritiesT.LOW, PrioritiesT.MEDIUM, PrioritiesT.HIGH, None, PrioritiesT.HIGH]
    for i, priority in enumerate(ranks):
        await Job("job", args={"i": i}, priority=priority).enqueue()
    await worker.run()
    assert order == [2, 4, 1, 3, 0]


async def test_a_delayed_job_becomes_due_on_the_broker_s_time(app: Repid) -> None:
    worker = Worker()
    ran: list[float] = []

    @worker.actor
    async def job() -> None:
        ran.append(trio.current_time() - zero)

    zero = trio.current_time()
    await Job("job", delay=30).enqueue()
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep(31)
        worker.stop()
    assert ran == [pytest.approx(30)]


# Queues


async def failing_worker(count: int) -> None:
    worker = Worker(burst=True)

    @worker.actor
    async def fails() -> None:
        raise ValueError("for the record")

    for i in range(count):
        await Job("fails", id_=f"job {i}").enqueue()
    await worker.run()


async def test_counts_size_and_messages_show_where_everything_is(app: Repid) -> None:
    queue = Queue()
    await failing_worker(2)
    await Job("x", delay=10, id_="later").enqueue()
    await Job("x", id_="now").enqueue()
    assert (await queue.counts(), await queue.size()) == (Counts(ready=1, scheduled=1, dead=2), 2)
    assert [m.envelope.id for m in await queue.get_messages()] == ["now"]
    [scheduled] = await queue.get_messages("scheduled")
    assert scheduled.envelope.id == "later"
    assert scheduled.due_in == pytest.approx(10)
    dead = await queue.get_messages("dead")
    assert [(m.envelope.id, m.reason, m.attempt) for m in dead] == [("job 0", "failed", 1), ("job 1", "failed", 1)]
    assert dead[0].failure is not None
    assert dead[0].failure.text == "for the record"
    assert len(await queue.get_messages("dead", limit=1)) == 1


async def test_flush_removes_what_waits(app: Repid) -> None:
    queue = Queue()
    await failing_worker(1)
    await Job("x", delay=10).enqueue()
    await Job("x").enqueue()
    assert await queue.flush() == 2
    assert await queue.counts() == Counts(dead=1)


async def test_delete_removes_the_queue(app: Repid) -> None:
    queue = Queue()
    await Job("x").enqueue()
    await queue.delete()
    with pytest.raises(KeyError, match="default"):
        await queue.counts()
    with pytest.raises(KeyError, match="default"):
        await Job("x").enqueue()


async def test_requeue_makes_the_dead_new_again(app: Repid) -> None:
    queue = Queue()
    await failing_worker(3)
    dead = await queue.get_messages("dead")
    assert await queue.requeue(dead[:1]) == 1
    assert await queue.counts() == Counts(ready=1, dead=2)
    assert await queue.requeue() == 2
    ready = await queue.get_messages()
    assert [(m.envelope.id, m.attempt, m.lost) for m in ready] == [("job 0", 1, 0), ("job 1", 1, 0), ("job 2", 1, 0)]


async def test_requeueing_onto_a_live_id_is_refused_and_harms_no_other(app: Repid) -> None:
    queue = Queue()
    await failing_worker(2)
    await Job("fails", id_="job 0").enqueue()
    with pytest.raises(ExceptionGroup, match="1 of 2 messages were refused; the others are ready again") as raised:
        await queue.requeue()
    assert raised.group_contains(DuplicateId, match="job 0")
    assert await queue.counts() == Counts(ready=2, dead=1)


async def test_only_dead_messages_can_be_requeued(app: Repid) -> None:
    await Job("x", id_="alive").enqueue()
    with pytest.raises(ConfigurationError, match="'alive' is ready"):
        await Queue().requeue(await Queue().get_messages())


def test_queues_of_one_name_are_equal() -> None:
    assert (Queue("a") == Queue("a"), Queue("a") == Queue("b"), Queue("a") == "a") == (True, False, False)
    assert (len({Queue("a"), Queue("a")}), repr(Queue("a"))) == (1, "Queue('a')")


# The app that is found


async def test_outside_of_magic_there_is_no_current_app() -> None:
    for what, call in (
        ("job 'job'", Job("job").enqueue),
        ("queue 'q'", Queue("q").size),
        ("the worker", Worker().run),
    ):
        with pytest.raises(NoCurrentApp, match=f"{what} has no app: use it inside"):
            await call()


async def test_magic_makes_the_app_current_for_its_block_only(autojump_clock: Any) -> None:
    outer, inner = Repid(), Repid()
    for app in (outer, inner):
        app.servers.register_server("default", InMemoryServer())
    async with outer.magic() as found:
        assert found is outer
        await Queue("outer").declare()
        async with inner.magic():
            with pytest.raises(QueueNotDeclared):
                await Queue("outer").size()
        assert await Queue("outer").size() == 0
    with pytest.raises(NoCurrentApp):
        await Queue("outer").size()


async def test_magic_is_the_caller_s_own_context(app: Repid) -> None:
    """Tasks started inside see it. Others find the only app that is open in their run, and of several none."""
    seen: list[Counts] = []

    async def child() -> None:
        seen.append(await Queue().counts())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
    assert seen == [Counts()]
    assert Context().run(find_app, None, "nobody") is app
    async with Repid(Connection(InMemoryServer()), title="other").magic():
        expected = "several are open: <Repid 'repid', servers: default=.*Server>, <Repid 'other', servers: default="
        with pytest.raises(NoCurrentApp, match=expected):
            Context().run(find_app, None, "nobody")
    assert Context().run(find_app, None, "nobody") is app


async def test_an_app_that_is_open_in_another_trio_run_is_not_found(app: Repid) -> None:
    refusals: list[str] = []

    async def elsewhere() -> None:
        try:
            find_app(None, "nobody")
        except NoCurrentApp as error:
            refusals.append(str(error))

    thread = threading.Thread(target=trio.run, args=[elsewhere])
    thread.start()
    thread.join()
    assert refusals == ["nobody has no app: use it inside `async with app.magic():`, or give it app="]


async def test_a_thread_without_a_loop_finds_the_only_app_that_is_open(app: Repid) -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(find_app(None, "nobody")))
    thread.start()
    thread.join()
    assert found == [app]


async def test_app_may_be_named_instead(server: UnreliableServer, autojump_clock: Any) -> None:
    app = Repid()
    app.servers.register_server("default", server)
    ran: list[str] = []
    worker = Worker(app=app, burst=True)

    @worker.actor
    async def job() -> None:
        ran.append("job")

    async with server.connection():
        await Queue(app=app).declare()
        await Job("job", app=app).enqueue()
        await worker.run()
    assert ran == ["job"]


async def test_a_job_belongs_to_the_app_of_its_queue(app: Repid) -> None:
    other = Repid(Connection(InMemoryServer()))
    queue = Queue("mine", app=other)
    await Queue("mine").declare()
    async with other.servers.default.connection():
        await queue.declare()
        await Job("job", queue).enqueue()
        assert (await queue.size(), await Queue("mine").size()) == (1, 0)
        await Job("job", queue, app=app).enqueue()
        assert (await queue.size(), await Queue("mine").size()) == (1, 1)


async def test_an_actor_may_enqueue_jobs_of_the_current_app(app: Repid) -> None:
    worker = Worker(burst=True)
    ran: list[int] = []

    @worker.actor
    async def count_down(n: int) -> None:
        ran.append(n)
        if n:
            await Job("count_down", args={"n": n - 1}).enqueue()

    await Job("count_down", args={"n": 5}).enqueue()
    await worker.run()
    assert ran == [5, 4, 3, 2, 1, 0]


async def test_outside_of_a_connection_the_server_says_what_to_do(autojump_clock: Any) -> None:
    app = Repid()
    app.servers.register_server("default", InMemoryServer())
    with pytest.raises(NotConnected, match="connection"):
        await app.send_message(channel="x", payload=b"")
    with pytest.raises(NotConnected, match="connection"):
        await Job("x", app=app).enqueue()


# Workers


async def test_a_worker_is_a_router_and_takes_others(app: Repid, server: UnreliableServer) -> None:
    router = Router(queue="other")
    ran: list[str] = []

    @router.actor
    async def first() -> None:
        ran.append("first")

    worker = Worker([router], burst=True)

    @worker.actor
    async def second() -> None:
        ran.append("second")

    await server.declare(["other"])
    await Job("first", "other").enqueue()
    await Job("second").enqueue()
    assert await worker.run() == Report(processed=2, succeeded=2)
    assert sorted(ran) == ["first", "second"]


async def test_in_a_worker_the_first_actor_of_a_name_is_the_one_that_runs(app: Repid) -> None:
    ran: list[int] = []
    routers = []
    for number in (1, 2):
        router = Router()

        @router.actor(name="job")
        async def job(number: int = number) -> None:
            ran.append(number)

        routers.append(router)
    await Job("job").enqueue()
    await Worker(routers, burst=True).run()
    assert ran == [1]


async def test_an_app_may_be_closed_in_another_task_than_it_was_opened_in_as_fixtures_do() -> None:
    app = Repid(Connection(InMemoryServer()))
    block = app.magic()

    async def open_it(task_status: trio.TaskStatus[None]) -> None:
        await block.__aenter__()
        task_status.started()

    async with trio.open_nursery() as nursery:
        await nursery.start(open_it)
    assert app.servers.default.is_connected
    await block.__aexit__(None, None, None)
    assert not app.servers.default.is_connected


async def test_a_worker_without_actors_returns_at_once(app: Repid, server: UnreliableServer) -> None:
    await Job("job").enqueue()
    assert await Worker().run() == Report()
    assert server.calls["receive"] == 0


async def test_a_worker_of_an_app_has_its_middlewares(server: UnreliableServer, autojump_clock: Any) -> None:
    seen: list[str] = []

    async def around(call_next: Any, message: Message, actor: Any) -> Any:
        seen.append(actor.name)
        return await call_next(message, actor)

    app = Repid(middlewares=[around])
    app.servers.register_server("default", server)
    worker = Worker(burst=True)

    @worker.actor
    async def job() -> None: ...

    async with app.magic():
        await Queue().declare()
        await Job("job").enqueue()
        await worker.run()
    assert seen == ["job"]


async def test_a_report_counts_everything_once(app: Repid, server: UnreliableServer) -> None:
    worker = Worker(burst=True)

    @worker.actor
    async def succeeds() -> None: ...

    @worker.actor
    async def fails() -> None:
        raise ValueError

    @worker.actor(retries=1, retry_policy=lambda _: 100)
    async def retries() -> None:
        raise ValueError

    @worker.actor
    async def snoozes(message: Message) -> None:
        await message.snooze(100)

    @worker.actor(confirmation_mode="always_ack")
    async def acknowledged() -> None:
        raise ValueError

    for name in ("succeeds", "fails", "retries", "snoozes", "acknowledged", "unknown"):
        await Job(name).enqueue()
    report = await worker.run()
    assert report == Report(processed=5, succeeded=1, failed=2, retried=1, released=2, dead=1)
    assert await server.counts("default") == Counts(scheduled=3, dead=1)


async def test_several_workers_share_one_app(app: Repid, router: Router, server: UnreliableServer) -> None:
    by_worker: dict[int, int] = {}

    @router.actor
    async def job() -> None:
        await trio.sleep(1)

    for _ in range(30):
        await send(app, "job")

    async def work(number: int) -> None:
        by_worker[number] = (await Worker([router], burst=True, tasks_limit=5).run()).succeeded

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(work, number)
    assert (sum(by_worker.values()), trio.current_time() - started) == (30, 2)
    assert all(by_worker.values())


async def test_nursery_start_gives_the_handle_of_a_worker(app: Repid) -> None:
    worker = Worker()

    @worker.actor
    async def job() -> None: ...

    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(worker.run)
        handle.stop()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            handle = await nursery.start(partial(app.run_worker))
            handle.stop()


async def test_stop_ends_every_run_of_a_worker(app: Repid) -> None:
    worker = Worker()

    @worker.actor
    async def job() -> None: ...

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await nursery.start(worker.run)
            worker.stop()


async def test_a_worker_without_actors_beside_those_of_its_app_is_an_error(app: Repid) -> None:
    assert await Worker(app=app).run() == Report()
    router = Router()
    app.include_router(router)

    @router.actor
    async def work() -> None: ...

    with pytest.raises(ConfigurationError, match=r"those of its app are run by app\.run_worker\(\)"):
        await Worker(app=app).run()
