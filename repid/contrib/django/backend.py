"""`RepidBackend`: what `TASKS` in the settings names."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, ParamSpec, TypeVar

import msgspec
from django.core.checks import CheckMessage, Error
from django.core.signals import setting_changed
from django.dispatch import receiver

from ...app import Repid
from ...blocking import Client
from ...envelope import PrioritiesT, new_id
from ...errors import ConfigurationError, UsageError
from ...process import inherits
from ...servers import Connection
from .protocol import (
    BaseTaskBackend,
    InvalidTaskBackend,
    Task,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_enqueued,
)
from .records import Call, find_record, from_django, in_django, now
from .running import ASYNC, SYNC, add_actors
from .serving import connection_within, make_server

P = ParamSpec("P")
R = TypeVar("R")


class RepidBackend(BaseTaskBackend):
    """Enqueues tasks on a server of repid; `python manage.py repid worker` runs them.

    `OPTIONS`: `server`, where tasks wait: the path of an SQLite file, the address of a PostgreSQL or Redis server, or a
    server such as `SQLiteServer(path, lease_timeout=30)`. `database`: the alias of a PostgreSQL database in
    `DATABASES`; what is enqueued in its transactions is sent if they are committed. Without `server`, tasks wait in
    that database, too. `timeout`, `retries`, `retry_policy` and `result_ttl`: as for actors.

    Tasks of a priority above 0 go first, those below 0 last, as repid's HIGH and LOW. Results are kept for a day
    (`result_ttl`), those of tasks that failed as long as their dead letters.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._database: str | None = self.options.get("database")

    @property
    def app(self) -> Repid:
        """The app that carries the tasks, one for the process: for routers of your own, or hooks of dead letters."""
        return _carriers.find(self).app

    def close(self) -> None:
        """Close the connections of this process that enqueue tasks; the next call opens them anew."""
        _carriers.find(self).client.close()

    def check(self, **_: Any) -> list[CheckMessage]:
        """What is wrong with the settings."""
        try:
            self.make_app()
        except ConfigurationError as error:
            return [Error(f"TASKS[{self.alias!r}]: {error}", id="repid.E001")]
        return []

    def enqueue(self, task: Task[P, R], args: Any, kwargs: Any) -> TaskResult[P, R]:
        """Enqueue a call of the task; with the option `database`, within the transaction of this thread."""
        self.validate_task(task)
        enqueued_at = now()
        result: TaskResult[P, R] = TaskResult(
            task=task,
            id=new_id(),
            status=TaskResultStatus.READY,
            enqueued_at=in_django(enqueued_at),
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        run_after = None if task.run_after is None else from_django(task.run_after)
        call = Call(
            task=task.module_path,
            args=result.args,
            kwargs=result.kwargs,
            enqueued_at=enqueued_at,
            priority=task.priority,
            run_after=run_after,
        )
        _carriers.find(self).client.send_message_json(
            channel=task.queue_name,
            payload=call,
            headers={"topic": ASYNC if iscoroutinefunction(task.func) else SYNC},
            message_id=result.id,
            priority=_priority_of(task.priority),
            delay=None if run_after is None else max(0.0, (run_after - enqueued_at).total_seconds()),
            connection=connection_within(self._database),
        )
        task_enqueued.send_robust(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> TaskResult[..., Any]:
        """How a task stands, or what became of it, in any process. Raises `TaskResultDoesNotExist` if nothing is
        known.
        """
        carrier = _carriers.find(self)
        found = carrier.client.run(partial(find_record, carrier.app.server(), result_id))
        if found is None:
            raise TaskResultDoesNotExist(result_id)
        record, status = found
        return record.seen(result_id, self.alias, status)

    def make_app(self) -> Repid:
        """A new app with the settings of this backend. Raises `ConfigurationError` for what is wrong with them."""
        if not self.queues:
            raise ConfigurationError("QUEUES must name the queues that workers read, and is empty")
        app = Repid(Connection(make_server(self.options)), title=f"Django tasks of {self.alias!r}")
        add_actors(app, self.alias, type(self), self.queues, self.options)
        return app


def _priority_of(priority: int) -> PrioritiesT:
    if priority == 0:
        return PrioritiesT.MEDIUM
    return PrioritiesT.HIGH if priority > 0 else PrioritiesT.LOW


class _Carrier(msgspec.Struct, frozen=True):
    """What carries the tasks of one backend, for all threads: Django makes a backend for each of them."""

    app: Repid
    client: Client


class _Carriers:
    """The carriers by the alias of their backends, made when they are first used and forgotten when settings change."""

    def __init__(self) -> None:
        self._of: dict[str, _Carrier] = {}
        self._lock = threading.Lock()
        inherits(self, _Carriers.start_anew)

    def find(self, backend: RepidBackend) -> _Carrier:
        """That of a backend. Raises `InvalidTaskBackend` where the settings are wrong."""
        with self._lock:
            found = self._of.get(backend.alias)
            if found is None:
                try:
                    app = backend.make_app()
                except ConfigurationError as error:
                    raise InvalidTaskBackend(f"TASKS[{backend.alias!r}]: {error}") from error
                found = self._of[backend.alias] = _Carrier(app, app.sync())
            return found

    def forget(self) -> None:
        """Close them all."""
        with self._lock:
            former, self._of = self._of, {}
        for carrier in former.values():
            with suppress(UsageError):  # in async code, which may not wait for that: it closes with the process
                carrier.client.close()

    def start_anew(self) -> None:
        """Another thread may have held the lock."""
        self._lock = threading.Lock()


_carriers = _Carriers()


@receiver(setting_changed)
def _forget_carriers(*, setting: str, **_: Any) -> None:
    if setting == "TASKS":
        _carriers.forget()
