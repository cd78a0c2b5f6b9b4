"""What was declared can be read, with its default; assigning it is refused, since it would be ignored."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from repid import ConfigurationError, InMemoryServer, Job, PrioritiesT, Queue, Repid, Router, Worker
from repid.actors.options import RouterOptions
from repid.job import JobOptions
from repid.ports import name_of
from repid.worker import WorkerOptions

NOON = datetime(2040, 1, 1, 12, tzinfo=UTC)


def fields(thing: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names}


def test_a_job_without_options_tells_the_defaults() -> None:
    job = Job("greet")
    assert (job.name, job.queue, job.args, job.id_) == ("greet", Queue(), None, None)
    assert fields(job, *(set(JobOptions.__annotations__) - {"id_"})) == {
        "priority": PrioritiesT.MEDIUM,
        "retries": 0,
        "timeout": 600.0,
        "ttl": None,
        "delay": None,
        "deferred_until": None,
        "store_result": False,
        "result_id": None,
        "result_ttl": 86400.0,
        "headers": {"topic": "greet"},
        "reply_to": None,
        "server_name": None,
        "every": None,
        "deferred_by": None,
        "cron": None,
        "timezone": None,
        "overlap": None,
        "missed": None,
    }


def test_a_job_tells_the_options_that_it_was_given() -> None:
    given: JobOptions = {
        "priority": PrioritiesT.HIGH,
        "retries": 3,
        "timeout": timedelta(minutes=1),
        "ttl": 5,
        "delay": 0,
        "store_result": True,
        "result_id": "r",
        "result_ttl": 7.5,
        "headers": {"tenant": "a"},
        "reply_to": "answers",
        "server_name": "disk",
    }
    told = {**given, "timeout": 60.0, "headers": {"tenant": "a", "topic": "greet"}}
    assert fields(Job("greet", args={"a": 1}, **given), *given) == told
    assert Job("greet", deferred_until=NOON).deferred_until == NOON


def test_every_and_deferred_by_are_two_words_for_one_option() -> None:
    for job in (Job("tick", every=timedelta(minutes=1)), Job("tick", deferred_by=60)):
        assert fields(job, "every", "deferred_by", "is_recurring") == {
            "every": 60.0,
            "deferred_by": 60.0,
            "is_recurring": True,
        }
    with pytest.raises(ConfigurationError, match="every and deferred_by"):
        Job("tick", every=1, deferred_by=1)


def test_a_worker_tells_its_options() -> None:
    assert fields(Worker(), *WorkerOptions.__annotations__) == {
        "graceful_shutdown_time": 25.0,
        "messages_limit": math.inf,
        "tasks_limit": 1000,
        "threads_limit": None,
        "processes_limit": None,
        "claim_bytes": 64 * 1024 * 1024,
        "handle_signals": (signal.SIGINT, signal.SIGTERM),
        "auto_declare": True,
        "burst": False,
        "log_runs": False,
    }
    worker = Worker(graceful_shutdown_time=timedelta(minutes=1), messages_limit=3, handle_signals=[], burst=True)
    assert (worker.graceful_shutdown_time, worker.messages_limit, worker.handle_signals, worker.burst) == (
        60,
        3,
        (),
        True,
    )


def test_a_worker_reads_signals_that_are_given_one_by_one_only_once() -> None:
    def one_by_one() -> Iterator[signal.Signals]:
        yield signal.SIGTERM

    worker = Worker(handle_signals=one_by_one())
    assert worker.handle_signals == worker.handle_signals == (signal.SIGTERM,)


@pytest.mark.parametrize("kind", [Router, Worker])
def test_a_router_tells_the_options_of_its_actors(kind: type[Router]) -> None:
    router = kind()
    names = set(RouterOptions.__annotations__) - {"retry_policy", "routing_strategy"}
    assert fields(router, *names) == {
        "channel": "default",
        "queue": "default",
        "timeout": 600.0,
        "retries": 0,
        "concurrency": None,
        "confirmation_mode": "auto",
        "on_error": None,
        "run_in_process": False,
        "middlewares": (),
        "store_result": False,
        "result_ttl": 86400.0,
        "backend": "host",
        "strict": False,
        "on_misfit": "dead_letter",
        "max_size": None,
        "max_bytes": None,
        "when_full": "wait",
    }
    assert router.retry_policy(1) == 1.0
    assert Router(queue="mail", timeout=timedelta(seconds=3)).queue == "mail"
    assert Router(queue="mail", timeout=timedelta(seconds=3)).timeout == 3.0


@pytest.mark.parametrize(
    ("thing", "names"),
    [
        (Job("greet"), ["name", "queue", "args", "app", *JobOptions.__annotations__]),
        (Queue(), ["name", "app", "server_name"]),
        (Router(), RouterOptions.__annotations__),
        (Worker(), [*WorkerOptions.__annotations__, *RouterOptions.__annotations__, "app"]),
    ],
)
def test_assigning_a_field_is_refused_and_so_is_a_misspelt_one(thing: Any, names: list[str]) -> None:
    for name in names:
        before = getattr(thing, name)
        with pytest.raises(AttributeError, match=rf"^{name} of a {type(thing).__name__} cannot be assigned"):
            setattr(thing, name, "other")
        assert getattr(thing, name) is before or getattr(thing, name) == before
    with pytest.raises(AttributeError):
        thing.prioritty = 1


def test_the_middlewares_of_an_app_are_read_and_not_assigned() -> None:
    app: Any = Repid()
    for name in ("middlewares", "producer_middlewares"):
        assert getattr(app, name) == ()
        with pytest.raises(AttributeError, match=name):
            setattr(app, name, [print])
    app.of_the_program = 1  # an app may carry what belongs to the program around it


async def test_a_queue_and_a_job_go_to_the_server_that_they_name() -> None:
    app = Repid()
    first, second = InMemoryServer(), InMemoryServer()
    app.servers.register_server("first", first)
    app.servers.register_server("second", second)
    async with app.magic():
        await Queue("mail", server_name="second").declare()
        await Job("greet", queue="mail", server_name="second").enqueue()
        handle = await Job("greet", queue=Queue("mail", server_name="second"), id_="7").enqueue()
        assert await Queue("mail", server_name="second").size() == 2
        assert await first.queues() == []
        assert await handle.cancel()
        assert (await second.counts("mail")).ready == 1
    assert Queue("mail", server_name="second") != Queue("mail")
    with pytest.raises(ConfigurationError, match="give one of them"):
        Job("greet", queue=Queue(server_name="first"), server_name="second")


async def test_a_job_carries_headers_and_a_channel_for_replies() -> None:
    app = Repid()
    app.servers.register_server("default", InMemoryServer())
    async with app.magic():
        await Queue().declare()
        await Job("greet", headers={"tenant": "a"}, reply_to="answers").enqueue()
        [message] = await Queue().get_messages()
    assert message.envelope.headers == {"tenant": "a", "topic": "greet"}
    assert message.envelope.reply_to == "answers"
    with pytest.raises(ConfigurationError, match="another actor"):
        Job("greet", headers={"topic": "part"})


async def test_a_message_may_say_retries_timeout_and_whether_its_result_is_kept() -> None:
    app = Repid()
    app.servers.register_server("default", InMemoryServer())
    async with app.magic():
        sent = await app.send_message_json(channel="c", retries=3, timeout=timedelta(minutes=1), store_result=True)
    assert (sent.options.retries, sent.options.timeout, sent.options.store_result) == (3, 60.0, True)


async def test_what_is_declared_and_run_shows_what_it_is(app: Repid) -> None:
    router = Router(queue="mail", retries=3)
    assert repr(router) == "Router(channel='mail', retries=3)"
    worker = Worker(burst=True)
    assert repr(worker) == "Worker(burst=True)"
    assert repr(Repid().servers) == "<Servers: none>"
    assert repr(app.servers) == f"<Servers: default={name_of(app.server())}>"
    assert repr(app.schedules) == f"<Schedules of {app!r}>"
    job = await Job("greet").enqueue()
    assert repr(job.watch()) == f"<Watch of {job!r}>"
    router.actor(name="greet")(trio.sleep_forever)
    app.include_router(router)
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(app.run_worker)
        assert repr(handle) == "<Handle of a worker, running>"
        handle.stop()
        assert repr(handle) == "<Handle of a worker, stopping>"
        await handle.wait()
        assert repr(handle) == "<Handle of a worker, ended>"
