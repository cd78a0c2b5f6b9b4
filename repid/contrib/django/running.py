"""The actors that run tasks in a worker: one for functions that block, in threads, and one for async functions.

A task is found by its path, so a worker runs any task of its project without having it declared. Around a run happens
what Django expects of a worker: signals, the context, and connections to databases that are closed when they are too
old.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import msgspec
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import close_old_connections, reset_queries

from ...actors import Router
from ...app import Repid
from ...blocking import Client
from ...brokers.process import name_process
from ...codec import encode_json
from ...delivery import DAY, DeadMessage, NewResult
from ...errors import BrokerError
from ...inject import Message, SyncMessage
from ...names import check_duration
from ...ports import Broker
from ...tracebacks import explain
from .protocol import (
    BaseTaskBackend,
    TaskContext,
    TaskResultStatus,
    normalize_json,
    task_finished,
    task_started,
)
from .records import (
    Record,
    Try,
    decode_call,
    failed_tries,
    fetch_tries,
    first_tries,
    id_of_tries,
    now,
)
from .serving import ACTOR_OPTIONS

SYNC = "django.task"
ASYNC = "django.async_task"
"""The names of the two actors."""


def add_actors(
    app: Repid, backend: str, sender: type[BaseTaskBackend], queues: Iterable[str], options: Mapping[str, Any]
) -> None:
    """Have the app's workers run the tasks of a backend. Raises `ConfigurationError` for an option that is wrong."""
    given: Any = {name: options[name] for name in ACTOR_OPTIONS if name in options}
    router = Router(store_result=True, **given)
    ttl = check_duration("result_ttl", options.get("result_ttl", DAY))
    place = _Place(backend=backend, sender=sender, server=app.server(), client=app.sync(), ttl=ttl)
    sync_actor, async_actor = _make_sync_actor(place), _make_async_actor(place)
    for queue in sorted(queues):
        router.actor(name=SYNC, channel=queue)(sync_actor)
        router.actor(name=ASYNC, channel=queue)(async_actor)
    app.include_router(router)
    app.on_dead_letter(partial(_tell, place))


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    """What the runs of one backend have in common. `ttl`: seconds for which the record of a failure is kept."""

    backend: str
    sender: type[BaseTaskBackend]
    server: Broker
    client: Client
    ttl: float


def _make_sync_actor(place: _Place) -> Callable[[SyncMessage], Record]:
    def run_task(message: SyncMessage) -> Record:
        with _own_connections():
            earlier = [] if message.attempt == 1 else place.client.run(partial(_fetch_tries, place, message))
            run = _Run(place.backend, message, earlier)
            task_started.send_robust(place.sender, task_result=run.result)
            try:
                run.succeed(run.task.call(*run.arguments, **run.keywords))
            except Exception as error:
                run.fail(error)
                with suppress(BrokerError):  # what the task raised is what counts
                    place.client.run(partial(place.server.store_results, [run.stored(place.ttl)]))
                if message.is_last_attempt:
                    task_finished.send_robust(place.sender, task_result=run.result)
                raise
            task_finished.send_robust(place.sender, task_result=run.result)
            return run.record

    return run_task


def _make_async_actor(place: _Place) -> Callable[[Message], Awaitable[Record]]:
    async def run_async_task(message: Message) -> Record:
        async with ThreadSensitiveContext():  # a thread of its own, as an async view has, for what it does in threads
            try:
                earlier = [] if message.attempt == 1 else await _fetch_tries(place, message)
                run = _Run(place.backend, message, earlier)
                await task_started.asend_robust(place.sender, task_result=run.result)
                try:
                    run.succeed(await run.task.acall(*run.arguments, **run.keywords))
                except Exception as error:
                    run.fail(error)
                    with suppress(BrokerError):
                        await place.server.store_results([run.stored(place.ttl)])
                    if message.is_last_attempt:
                        await task_finished.asend_robust(place.sender, task_result=run.result)
                    raise
                await task_finished.asend_robust(place.sender, task_result=run.result)
                return run.record
            finally:
                await sync_to_async(close_old_connections)()

    return run_async_task


def _tell(place: _Place, dead: DeadMessage) -> None:
    """Tell of a task that failed without raising: it was stopped at its timeout, for one."""
    if dead.actor not in {SYNC, ASYNC}:
        return
    earlier = place.client.run(partial(fetch_tries, place.server, dead.envelope.id))
    if first_tries(earlier, dead.attempt)[-1].exception is None:
        tries = failed_tries(earlier, dead.attempt, dead.failure, now())
        record = Record(call=decode_call(dead.envelope.payload), queue=dead.envelope.queue, tries=tries)
        with _own_connections():
            result = record.seen(dead.envelope.id, place.backend, TaskResultStatus.FAILED)
            task_finished.send_robust(place.sender, task_result=result)


async def _fetch_tries(place: _Place, message: Message | SyncMessage) -> list[Try]:
    return await fetch_tries(place.server, message.message_id)


class _Run:
    """One run of a task: what to call, and its record, as it is before the call and after it."""

    def __init__(self, backend: str, message: Message | SyncMessage, earlier: list[Try]) -> None:
        self._id = message.message_id
        self._backend = backend
        self._earlier = first_tries(earlier, message.attempt - 1)
        self._try = Try(worker=name_process(), started_at=now())
        self.record = Record(
            call=decode_call(message.payload), queue=message.channel, tries=[*self._earlier, self._try]
        )
        self.result = self.record.seen(self._id, backend, TaskResultStatus.RUNNING)
        self.task = self.result.task
        context = [TaskContext(task_result=self.result)] if self.task.takes_context else []
        self.arguments: list[Any] = [*context, *self.result.args]
        self.keywords = self.result.kwargs

    def succeed(self, value: Any) -> None:
        """Note what it returned. Raises `TypeError` or `ValueError` for what is not JSON."""
        self._end(self._try, normalize_json(value), TaskResultStatus.SUCCESSFUL)

    def fail(self, error: Exception) -> None:
        """Note what it raised."""
        kind = type(error)
        path = f"{kind.__module__}.{kind.__qualname__}"
        failed = msgspec.structs.replace(self._try, exception=path, traceback=explain(error, in_program=True))
        self._end(failed, None, TaskResultStatus.FAILED)

    def _end(self, ended: Try, value: Any, status: TaskResultStatus) -> None:
        tries = [*self._earlier, msgspec.structs.replace(ended, ended_at=now())]
        self.record = msgspec.structs.replace(self.record, tries=tries, value=value)
        self.result = self.record.seen(self._id, self._backend, status)

    def stored(self, ttl: float) -> NewResult:
        """The record of a failure, as it is stored."""
        return NewResult(id=id_of_tries(self._id), state="success", payload=encode_json(self.record), ttl=ttl)


@contextmanager
def _own_connections() -> Iterator[None]:
    """Treat the connections of this thread to databases as Django does around a request."""
    reset_queries()
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
