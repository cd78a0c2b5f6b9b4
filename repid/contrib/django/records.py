"""What is stored of a task, and how Django sees it.

A message holds a `Call`. Its result is a `Record`: the call, and each try of it. A message that failed has no value, so
the worker stores its record beside it, under an id of its own, before each failure: there the errors of earlier tries
are found again, and the class of an error, which repid's own record of a failure does not tell.
"""

from __future__ import annotations

import builtins
from datetime import UTC, datetime
from typing import Any

import msgspec
from django.conf import settings
from django.utils import timezone
from django.utils.module_loading import import_string

from ...codec import JSON_CODEC
from ...delivery import Failure
from ...errors import ConfigurationError
from ...ports import Broker, BrowsedMessage
from .protocol import Task, TaskError, TaskResult, TaskResultStatus

UNKNOWN = "unknown"
"""In place of a worker whose try left no trace: it was stopped at its timeout, or killed."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a task, as a message carries it. `task` is the path at which the task can be imported."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    enqueued_at: datetime
    priority: int = 0
    run_after: datetime | None = None


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a task by a worker. `exception` is the path of the class of what it raised."""

    worker: str = UNKNOWN
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exception: str | None = None
    traceback: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A call and what became of it. `value` is what the task returned in its last try."""

    call: Call
    queue: str
    tries: list[Try]
    value: Any = None

    def seen(self, id_: str, backend: str, status: TaskResultStatus) -> TaskResult[..., Any]:
        """The record as Django sees it. Raises `ImportError` where there is no such task any more."""
        first, last = (self.tries[0], self.tries[-1]) if self.tries else (Try(), Try())
        result: TaskResult[..., Any] = TaskResult(
            task=find_task(self.call.task).using(
                queue_name=self.queue,
                priority=self.call.priority,
                run_after=in_django(self.call.run_after),
                backend=backend,
            ),
            id=id_,
            status=status,
            enqueued_at=in_django(self.call.enqueued_at),
            started_at=in_django(first.started_at),
            finished_at=in_django(last.ended_at) if status in _FINISHED else None,
            last_attempted_at=in_django(last.started_at),
            args=self.call.args,
            kwargs=self.call.kwargs,
            backend=backend,
            errors=[
                TaskError(exception_class_path=each.exception, traceback=each.traceback)
                for each in self.tries
                if each.exception is not None
            ],
            worker_ids=[each.worker for each in self.tries],
        )
        object.__setattr__(result, "_return_value", self.value)  # it is frozen, and no argument sets this
        return result


_FINISHED = (TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED)

decode_call = JSON_CODEC.decoder(Call)
decode_record = JSON_CODEC.decoder(Record)


def find_task(path: str) -> Task[..., Any]:
    """The task at this path. Raises `ConfigurationError` if that is something else, which nobody may call."""
    found = import_string(path)
    if not isinstance(found, Task):
        raise ConfigurationError(f"{path!r} is not a task, but {found!r}: decorate the function with @task")
    return found


def now() -> datetime:
    """The present time, with its zone."""
    return datetime.now(UTC)


def in_django(moment: datetime | None) -> datetime | None:
    """A time as the settings want times: without a zone where `USE_TZ` is False."""
    if moment is None or settings.USE_TZ:
        return moment
    return timezone.make_naive(moment)


def from_django(moment: datetime) -> datetime:
    """The opposite."""
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)


def id_of_tries(id_: str) -> str:
    """The id under which the record of a message's tries is stored."""
    return f"{id_}:tries"


async def fetch_tries(server: Broker, id_: str) -> list[Try]:
    """The tries of a message that have failed, as far as they were recorded."""
    [stored] = await server.fetch_results([id_of_tries(id_)])
    return [] if stored is None else decode_record(stored.payload).tries


def first_tries(tries: list[Try], count: int) -> list[Try]:
    """The first of these tries; those that were not recorded are unknown ones."""
    return [*tries, *[Try()] * count][:count]


async def find_record(server: Broker, id_: str) -> tuple[Record, TaskResultStatus] | None:
    """What is known of a task. Returns None if nothing is: it was never enqueued, or it ended long ago."""
    [messages] = await server.find([id_])
    stored, tried = await server.fetch_results([id_, id_of_tries(id_)])
    if stored is not None and stored.state == "success":
        return decode_record(stored.payload), TaskResultStatus.SUCCESSFUL
    record: Record | None = None if tried is None else decode_record(tried.payload)
    tries = [] if record is None else record.tries
    if messages:
        return _record_of(messages[0], tries)
    if record is None or stored is None:
        return None
    return msgspec.structs.replace(record, tries=failed_tries(tries, len(tries), stored.failure)), FAILED


FAILED = TaskResultStatus.FAILED


def _record_of(message: BrowsedMessage, tries: list[Try]) -> tuple[Record, TaskResultStatus]:
    """The record of a message that is waiting, running or dead."""
    status = TaskResultStatus.READY
    if message.category == "dead":
        status, tries = FAILED, failed_tries(tries, message.attempt, message.failure, _moment(message.died_at))
    else:
        tries = first_tries(tries, message.attempt - 1)
        if message.category == "leased":
            status = TaskResultStatus.RUNNING
            tries = [*tries, Try(worker=message.leased_by or UNKNOWN, started_at=_moment(message.leased_at))]
    return Record(call=decode_call(message.envelope.payload), queue=message.envelope.queue, tries=tries), status


def failed_tries(
    tries: list[Try], attempt: int, failure: Failure | None, ended_at: datetime | None = None
) -> list[Try]:
    """All tries of a message that failed in this attempt; of one that was not recorded, what repid itself knows."""
    if failure is None:  # it ended without a run: its time was over, or its workers died
        return first_tries(tries, attempt - 1)
    found = first_tries(tries, attempt)
    if found and found[-1].exception is None:
        known = failure.type if hasattr(builtins, failure.type) else "Exception"
        found[-1] = Try(ended_at=ended_at, exception=f"builtins.{known}", traceback=failure.traceback or failure.text)
    return found


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
