"""The backend of Django's tasks, by what Django's protocol demands of one, and a worker that runs them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import django
import pytest
import trio
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.db.backends.signals import connection_created
from django.test import override_settings
from django.utils.connection import ConnectionProxy
from engines.postgres import Postgres
from psycopg.conninfo import conninfo_to_dict
from shop_project import tasks

import repid
from repid import Connection, InMemoryServer, PostgresServer, Queue, RedisServer, Repid, Router, SQLiteServer
from repid.contrib.django import RepidBackend
from repid.contrib.django.protocol import (
    BaseTaskBackend,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from repid.contrib.django.serving import make_server
from repid.contrib.django.worker import find_backend
from repid.errors import ConfigurationError, UsageError

SUCCESSFUL, FAILED, READY, RUNNING = (
    TaskResultStatus.SUCCESSFUL,
    TaskResultStatus.FAILED,
    TaskResultStatus.READY,
    TaskResultStatus.RUNNING,
)


@contextmanager
def tasks_with(**options: Any) -> Iterator[RepidBackend]:
    """The default backend with these options."""
    backend = {"BACKEND": "repid.contrib.django.RepidBackend", "QUEUES": ["default", "mail"], "OPTIONS": options}
    with override_settings(TASKS={"default": backend}):
        yield find_backend("default")


@pytest.fixture(autouse=True)
def backend(tmp_path: Path) -> Iterator[RepidBackend]:
    with tasks_with(server=tmp_path / "jobs.db") as found:
        yield found
    assert "repid client" not in [thread.name for thread in threading.enumerate()]  # it closes with its settings


@contextmanager
def database(postgres: Postgres) -> Iterator[str]:
    """A PostgreSQL database among those of the project; its alias."""
    given = conninfo_to_dict(postgres.url)
    connections.databases["orders"] = connections.databases["default"] | {
        "ENGINE": "django.db.backends.postgresql",
        **{key: given.get(name, "") for key, name in PARTS.items()},
    }
    try:
        yield "orders"
    finally:
        connections["orders"].close()
        del connections["orders"], connections.databases["orders"]


PARTS = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


def work(*options: str) -> None:
    """Run a worker until nothing is ready."""
    call_command("repid", "worker", "--burst", *options)


def run(task: Any, *args: Any, **kwargs: Any) -> TaskResult[..., Any]:
    """Enqueue a call, run it, and look what became of it."""
    result: TaskResult[..., Any] = task.enqueue(*args, **kwargs)
    work()
    result.refresh()
    return result


@contextmanager
def heard(*signals: Any) -> Iterator[list[tuple[str, TaskResultStatus]]]:
    """What signals tell in the block: the task's name and its status."""
    told: list[tuple[str, TaskResultStatus]] = []

    def hear(task_result: TaskResult[..., Any], **_: Any) -> None:
        told.append((task_result.task.name, task_result.status))

    for signal in signals:
        signal.connect(hear)
    try:
        yield told
    finally:
        for signal in signals:
            signal.disconnect(hear)


def test_a_task_that_was_enqueued_is_ready_and_tells_its_call() -> None:
    before = datetime.now(UTC)
    result = tasks.add.enqueue(1, b=4)
    assert (result.status, result.args, result.kwargs, result.backend) == (READY, [1], {"b": 4}, "default")
    assert (result.started_at, result.finished_at, result.attempts, result.errors) == (None, None, 0, [])
    assert not result.is_finished
    assert result.enqueued_at is not None
    assert before <= result.enqueued_at <= datetime.now(UTC)
    assert 0 < len(result.id) <= 64
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value
    found = tasks.add.get_result(result.id)
    assert (found.status, found.args, found.kwargs, found.enqueued_at) == (READY, [1], {"b": 4}, result.enqueued_at)


def test_a_task_that_was_run_is_successful_and_has_its_value() -> None:
    result = run(tasks.add, 1, b=4)
    assert (result.status, result.return_value, result.errors, result.attempts) == (SUCCESSFUL, 5, [], 1)
    assert result.is_finished
    assert result.enqueued_at is not None
    assert result.started_at is not None
    assert result.finished_at is not None
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.last_attempted_at == result.started_at
    assert str(os.getpid()) in result.worker_ids[0]


def test_a_task_that_raised_has_failed_with_the_class_and_traceback_of_its_error() -> None:
    result = run(tasks.fail)
    assert (result.status, result.attempts, result.is_finished) == (FAILED, 1, True)
    [error] = result.errors
    assert error.exception_class_path == "builtins.LookupError"
    assert error.exception_class is LookupError
    assert "in fail\n" in error.traceback
    assert error.traceback.endswith("LookupError: no such order\n")
    with pytest.raises(ValueError, match="failed"):
        _ = result.return_value


def test_async_tasks_run_on_the_loop_and_fail_there() -> None:
    assert run(tasks.double, 21).return_value == 42
    [error] = run(tasks.fail_on_the_loop).errors
    assert error.exception_class is KeyError


def test_async_code_enqueues_and_asks_by_the_async_calls() -> None:
    async def enqueue() -> TaskResult[..., Any]:
        result = await tasks.add.aenqueue(2, b=3)
        assert (await tasks.add.aget_result(result.id)).status == READY
        return result

    result = asyncio.run(enqueue())
    work()
    asyncio.run(result.arefresh())
    assert result.return_value == 5


def test_async_code_that_enqueues_by_the_blocking_call_is_told_so() -> None:
    async def enqueue() -> None:
        tasks.add.enqueue(1)

    with pytest.raises(UsageError, match="would stop the asyncio loop"):
        asyncio.run(enqueue())


def test_arguments_and_values_are_those_that_json_can_hold() -> None:
    anything: Any = tasks.add
    assert anything.enqueue((1, b"two")).args == [[1, "two"]]
    for unfit in (object(), {1, 2}, datetime.now(UTC)):
        with pytest.raises(TypeError, match="Unsupported type"):
            anything.enqueue(unfit)
    [error] = run(tasks.give_what_is_no_json).errors
    assert error.exception_class is TypeError


def test_nothing_is_known_of_an_id_that_was_never_enqueued() -> None:
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result("never")


def test_a_task_takes_only_results_of_its_own() -> None:
    result = tasks.add.enqueue(1)
    with pytest.raises(Exception, match="does not match") as caught:
        tasks.double.get_result(result.id)
    assert type(caught.value).__name__ == "TaskResultMismatch"


def test_a_task_that_is_to_run_later_waits_until_then() -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    waiting = tasks.add.using(run_after=tomorrow).enqueue(1)
    assert waiting.task.run_after == tomorrow
    later = datetime.now(UTC) + timedelta(seconds=0.5)
    result = tasks.add.using(run_after=later).enqueue(1)
    while datetime.now(UTC) < later:
        threading.Event().wait(0.1)
    work()
    result.refresh()
    assert result.status == SUCCESSFUL
    assert result.started_at is not None
    assert result.started_at >= later
    found = tasks.add.get_result(waiting.id)
    assert (found.status, found.task.run_after) == (READY, tomorrow)


def test_a_time_that_has_passed_means_now() -> None:
    assert run(tasks.add.using(run_after=datetime.now(UTC) - timedelta(days=1)), 1).return_value == 2


def test_without_time_zones_all_times_are_local_ones() -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        result = run(tasks.add.using(run_after=datetime.now() - timedelta(seconds=1)), 1)  # noqa: DTZ005
    assert result.started_at is not None
    assert result.started_at.tzinfo is None
    assert abs(result.started_at - datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=9)) < timedelta(minutes=5)


def test_tasks_of_a_higher_priority_run_first() -> None:
    for priority in (-10, 0, 10):
        tasks.add.using(priority=priority).enqueue(priority)
    with heard(task_started) as started:
        order: list[int] = []

        def note(task_result: TaskResult[..., Any], **_: Any) -> None:
            order.append(task_result.task.priority)

        task_started.connect(note)
        work("--tasks-limit", "1")
    assert order == [10, 0, -10]
    assert len(started) == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"priority": 101}, "priority must be"),
        ({"run_after": datetime(2030, 1, 1)}, "must be an aware datetime"),  # noqa: DTZ001  on purpose
        ({"queue_name": "nobody's"}, "is not valid for backend"),
    ],
)
def test_what_the_protocol_forbids_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Exception, match=complaint) as caught:
        tasks.add.using(**change)
    assert type(caught.value).__name__ in {"InvalidTask", "InvalidTaskError"}


def test_a_task_that_takes_the_context_finds_its_result_there() -> None:
    result = run(tasks.describe, "hello")
    assert result.return_value == {"greeting": "hello", "attempt": 1, "status": "RUNNING", "id": result.id}


def test_a_running_task_is_seen_running(backend: RepidBackend) -> None:
    seen: list[TaskResult[..., Any]] = []

    def look(task_result: TaskResult[..., Any], **_: Any) -> None:
        seen.append(backend.get_result(task_result.id))

    task_started.connect(look)
    result = run(tasks.add, 1)
    [found] = seen
    assert (found.status, found.attempts, found.finished_at) == (RUNNING, 1, None)
    assert found.worker_ids == result.worker_ids
    assert found.started_at is not None


def test_signals_tell_what_happens_to_a_task() -> None:
    with heard(task_enqueued, task_started, task_finished) as told:
        run(tasks.add, 1)
        run(tasks.double, 1)
        run(tasks.fail)
    steps = (READY, RUNNING, SUCCESSFUL)
    assert told == [
        *[("add", step) for step in steps],
        *[("double", step) for step in steps],
        *[("fail", step) for step in (READY, RUNNING, FAILED)],
    ]


def test_a_receiver_that_raises_changes_nothing() -> None:
    def bite(**_: Any) -> None:
        raise RuntimeError("a receiver's own")

    for signal in (task_enqueued, task_started, task_finished):
        signal.connect(bite)
    try:
        assert run(tasks.add, 1).return_value == 2
        assert run(tasks.double, 1).return_value == 2
    finally:
        for signal in (task_enqueued, task_started, task_finished):
            signal.disconnect(bite)


@pytest.mark.parametrize("task", [tasks.fail_until, tasks.fail_until_on_the_loop])
def test_a_task_that_is_retried_tells_the_error_of_each_attempt(tmp_path: Path, task: Any) -> None:
    with (
        tasks_with(server=tmp_path / "jobs.db", retries=2, retry_policy=lambda retry_number: 0),
        heard(task_finished) as told,
    ):
        result, failed = run(task, 3), run(task, 9)
    assert (result.status, result.return_value, result.attempts, len(set(result.worker_ids))) == (SUCCESSFUL, 3, 3, 1)
    assert [error.traceback.splitlines()[-1] for error in result.errors] == [
        "ValueError: attempt 1",
        "ValueError: attempt 2",
    ]
    assert result.started_at is not None
    assert result.last_attempted_at is not None
    assert result.started_at < result.last_attempted_at
    assert (failed.status, failed.attempts, len(failed.errors)) == (FAILED, 3, 3)
    assert [status for _, status in told] == [SUCCESSFUL, FAILED]


def test_a_task_that_waits_for_its_retry_is_ready_and_has_an_error(tmp_path: Path) -> None:
    with tasks_with(server=tmp_path / "jobs.db", retries=1, retry_policy=lambda retry_number: 3600):
        result = run(tasks.fail)
        assert (result.status, result.attempts, [error.exception_class for error in result.errors]) == (
            READY,
            1,
            [LookupError],
        )


def test_a_task_that_is_stopped_at_its_timeout_has_failed_and_signals_say_so(tmp_path: Path) -> None:
    with tasks_with(server=tmp_path / "jobs.db", timeout=0.1), heard(task_finished) as told:
        result = run(tasks.sleep_for_ever)
        assert (result.status, result.attempts) == (FAILED, 1)
        [error] = result.errors
        assert error.exception_class is TimeoutError
        assert "ran longer than its timeout of 0.1 s" in error.traceback
    assert told == [("sleep_for_ever", FAILED)]


def test_what_a_dead_letter_told_is_kept_when_it_is_removed(backend: RepidBackend) -> None:
    result = run(tasks.fail)
    call_command("repid", "delete", "mail", "--all")
    result.refresh()
    assert (result.status, [error.exception_class for error in result.errors]) == (FAILED, [LookupError])


def test_a_task_is_shown_by_its_id_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tasks.fail)
    call_command("repid", "show", result.id)
    shown = capsys.readouterr().out
    assert shown.startswith(f"id: {result.id}\nstate: dead\nqueue: mail\n")
    assert "LookupError" in shown


def test_a_dead_task_that_is_requeued_is_ready_again() -> None:
    result = run(tasks.fail)
    call_command("repid", "requeue", "mail")
    result.refresh()
    assert (result.status, result.attempts) == (READY, 0)
    work()
    result.refresh()
    assert (result.status, result.attempts) == (FAILED, 1)


def test_tasks_enqueue_others() -> None:
    for task in (tasks.follow_up, tasks.afollow_up):
        result = run(task, 4)
        assert tasks.add.get_result(result.return_value).return_value == 8


def test_what_is_no_task_is_never_called(backend: RepidBackend) -> None:
    payload = {
        "task": "django_shop.tasks.not_a_task",
        "args": [],
        "kwargs": {},
        "enqueued_at": datetime.now(UTC),
    }
    with backend.app.sync() as client:
        client.send_message_json(channel="default", payload=payload, headers={"topic": "django.task"})
    work()
    with backend.app.sync() as client:
        [dead] = client.run(lambda: backend.app.server().browse("default", "dead"))
    assert dead.failure is not None
    assert "is not a task" in dead.failure.text


@pytest.mark.parametrize("task", [tasks.query, tasks.aquery])
def test_the_connections_of_runs_are_closed_when_they_end(task: Any) -> None:
    opened: list[Any] = []

    def note(connection: Any, **_: Any) -> None:
        opened.append(connection)

    connection_created.connect(note)
    assert run(task).return_value == 2
    connection_created.disconnect(note)
    [wrapper] = opened
    assert wrapper.connection is None


def test_what_async_tasks_do_in_threads_runs_at_the_same_time() -> None:
    results = [tasks.meet.enqueue(), tasks.meet.enqueue()]
    work()
    assert [task_backends["default"].get_result(result.id).status for result in results] == [SUCCESSFUL, SUCCESSFUL]


def test_all_threads_share_what_carries_the_tasks(backend: RepidBackend) -> None:
    apps = [backend.app]
    thread = threading.Thread(target=lambda: apps.append(find_backend("default").app))
    thread.start()
    thread.join()
    assert apps[0] is apps[1]


def test_what_is_enqueued_in_a_transaction_of_django_is_sent_if_that_is_committed(
    postgres: Postgres, schema: str
) -> None:
    server = PostgresServer(postgres.url, schema=schema)
    with database(postgres) as alias, tasks_with(server=server, database=alias) as backend:
        with transaction.atomic(using=alias):
            kept = tasks.add.enqueue(1, b=1)
            with pytest.raises(TaskResultDoesNotExist):
                backend.get_result(kept.id)
        with suppress(ZeroDivisionError), transaction.atomic(using=alias):
            dropped = tasks.add.enqueue(2)
            _ = 1 / 0
        with transaction.atomic(using=alias):
            with suppress(ZeroDivisionError), transaction.atomic(using=alias):  # a savepoint
                undone = tasks.add.enqueue(3)
                _ = 1 / 0
            later = tasks.add.enqueue(3, b=1)
        at_once = tasks.add.enqueue(4, b=1)
        work()
        assert [backend.get_result(each.id).return_value for each in (kept, later, at_once)] == [2, 4, 5]
        for each in (dropped, undone):
            with pytest.raises(TaskResultDoesNotExist):
                backend.get_result(each.id)
        assert connections[alias].get_autocommit()


def test_jobs_of_an_app_are_enqueued_over_djangos_own_connection(postgres: Postgres, schema: str) -> None:
    app = Repid(Connection(PostgresServer(postgres.url, schema=schema)))
    router = Router(queue="orders")

    @router.actor
    def confirm(order: int) -> None: ...

    app.include_router(router)
    with database(postgres) as alias, app.sync() as client:
        connection: Any = ConnectionProxy(connections, alias)  # as django.db.connection is: it finds that of the thread
        counts = Queue("orders", app=app).counts
        with transaction.atomic(using=alias):
            client.using(connection=connection).enqueue(confirm, 1)
            payload = {"order": 2}
            client.send_message_json(
                channel="orders", payload=payload, headers={"topic": "confirm"}, connection=connection
            )
            job = app.job(confirm, 3)
            client.run(partial(job.enqueue, connection=connection.connection))
            assert client.run(counts).ready == 0
        assert client.run(counts).ready == 3
        with suppress(ZeroDivisionError), transaction.atomic(using=alias):
            client.using(connection=connection).enqueue(confirm, 4)
            _ = 1 / 0
        assert client.run(counts).ready == 3
        with pytest.raises(ConfigurationError, match="must be an open connection"):
            client.run(partial(job.enqueue, connection=connection))  # it would be that of repid's thread


def test_without_a_server_tasks_wait_in_djangos_database(postgres: Postgres) -> None:
    with database(postgres) as alias:
        connections[alias].settings_dict["OPTIONS"] = {"connect_timeout": 7, "prepare_threshold": 5}
        server = make_server({"database": alias})
        assert isinstance(server, PostgresServer)
        assert server.schema == "repid"
        driver: Any = server._driver
        found = conninfo_to_dict(driver._conninfo)
    given = conninfo_to_dict(postgres.url)
    assert (found["dbname"], found["host"], found["connect_timeout"]) == (given["dbname"], given["host"], "7")
    assert "prepare_threshold" not in found


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "must say where tasks wait"),
        ({"path": "x"}, "has no option 'path'"),
        ({"server": 3}, "must be a path, an address or a Server"),
        ({"server": "x", "retries": -1}, "retries"),
        ({"database": "other"}, "DATABASES has no such alias"),
        ({"database": "default"}, "is sqlite"),
    ],
)
def test_settings_that_are_wrong_are_found_by_a_check_and_by_the_first_call(
    options: dict[str, Any], complaint: str
) -> None:
    with tasks_with(**options) as backend:
        [error] = backend.check()
        assert error.id == "repid.E001"
        assert complaint in error.msg
        with pytest.raises(ImproperlyConfigured, match=complaint):
            tasks.add.enqueue(1)


def test_settings_that_are_right_pass_the_checks(backend: RepidBackend) -> None:
    assert backend.check() == []
    call_command("check")


def test_the_server_may_be_given_as_an_address_a_path_or_a_server() -> None:
    memory = InMemoryServer()
    assert make_server({"server": memory}) is memory
    assert isinstance(make_server({"server": "jobs.db"}), SQLiteServer)
    assert isinstance(make_server({"server": "postgresql://localhost/shop"}), PostgresServer)
    assert isinstance(make_server({"server": "redis://localhost"}), RedisServer)
    with pytest.raises(ConfigurationError, match="RedisServer"):
        make_server({"server": "redis://localhost/not-a-number"})


def test_the_command_names_what_is_wrong() -> None:
    with pytest.raises(CommandError, match="nobody"):
        call_command("repid", "--backend", "nobody", "queues")
    dummy = f"{BaseTaskBackend.__module__.removesuffix('base')}dummy.DummyBackend"
    with override_settings(TASKS={"default": {"BACKEND": dummy}}):
        with pytest.raises(CommandError, match="is no RepidBackend, but DummyBackend"):
            call_command("repid", "queues")
    with pytest.raises(SystemExit) as caught:
        call_command("repid", "worker", "--no-such-option")
    assert caught.value.code == 2


def test_the_command_names_no_app_where_none_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("repid", "version")
    assert capsys.readouterr().out == f"{repid.__version__}\n"
    call_command("repid", "queues", "--json")
    assert json.loads(capsys.readouterr().out)["mail"]["ready"] == 0


@pytest.mark.real_time
def test_the_command_moves_between_the_servers_that_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (str(tmp_path / name) for name in ("old.db", "new.db"))

    async def declare() -> None:
        server = SQLiteServer(old)
        async with server.connection():
            await server.declare(["letters"])

    trio.run(declare)
    call_command("repid", "move", old, new)
    assert "letters" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["django", "django_tasks"])
def test_a_project_without_django_or_its_tasks_is_told_what_to_install(missing: str) -> None:
    if missing == "django_tasks" and django.VERSION >= (6, 0):
        pytest.skip("Django 6 has tasks of its own")
    script = f"import sys; sys.modules[{missing!r}] = None; import repid.contrib.django"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[-1].startswith("repid.MissingExtra: repid.contrib.django")
    assert "pip install 'repid-trio[django]'" in done.stderr


@pytest.mark.real_time
def test_several_processes_run_the_tasks_of_a_project(tmp_path: Path) -> None:
    environment = os.environ | {"SHOP_FOLDER": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    with tasks_with(server=tmp_path / "jobs.db"):
        results = [tasks.process_id.enqueue() for _ in range(4)]
        command = [sys.executable, "-m", "django", "repid", "worker", "--processes", "2", "--burst"]
        done = subprocess.run(
            command, env=environment, cwd="/", timeout=60, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        for result in results:
            result.refresh()
        assert all(result.return_value != os.getpid() for result in results)
        command = [sys.executable, "-m", "repid", "queues", "repid.contrib.django.worker:default", "--json"]
        done = subprocess.run(
            command, env=environment, cwd="/", timeout=60, capture_output=True, text=True, check=False
        )
        assert '"default": {"ready": 0' in done.stdout, done.stderr
