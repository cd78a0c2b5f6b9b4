"""Jobs: declared intents, and handles on what was enqueued."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypedDict, TypeVar, Unpack, cast

import msgspec

from .application import Application, find_app
from .codec import JSON, encode_json
from .delivery import DAY, StoredResult
from .envelope import TOPIC, Envelope, PrioritiesT, new_id
from .errors import ConfigurationError, NotSupported, ResultError, UsageError
from .fields import Field
from .hosts import hosted, within
from .names import check_duration, check_id, check_known, check_name
from .ports import Broker, Missed, Overlap, Schedule, Snapshot
from .producer import copy_headers, make_options
from .queue import Queue
from .results import Lazy, Result, Status
from .schedule import check_same_arguments, declared, make_schedule, schedule_name

T = TypeVar("T")

ANYTHING = cast("type[Any]", Any)
"""For a result whose type nobody has said."""


class JobOptions(TypedDict, total=False):
    """What may be said about a job. Durations are seconds or timedeltas.

    priority: HIGH, MEDIUM (default) or LOW; see `PrioritiesT`.
    id_: makes the job unique: while a message with this id is alive, another is refused. Default: a fresh id each time.
    retries, timeout: default: the actor's own (0 and 10 minutes if it has none).
    ttl: a message not started that long after it became due becomes a dead letter. Default: never.
    delay, deferred_until: it becomes due that long after enqueueing, or at that time (a datetime with a time zone).
    store_result: keep its result. Default: the actor's own option, False if it has none.
    headers, reply_to: strings by name, and the channel for replies, as in a message.
    server_name: of the server to send to. Default: that of its queue, else the app's default server.
    result_id, result_ttl: under which id (default: the message's), and for how long (default: a day).
    every, cron: makes the job recurring, at this interval (`deferred_by` is another word for it) or at the times of a cron expression or a name such
        as "@daily" (extra: cron).
    timezone: of the cron expression. Default "UTC". What happens when its clocks change: see `repid.cron`.
    overlap: "skip" (default): no tick of a recurring job while the former one's message is live; "allow".
    missed: for ticks more than a minute late, as after a time without a worker, "one" catches up (default), or "none".
    """

    priority: PrioritiesT | None
    id_: str | None
    retries: int | None
    timeout: float | timedelta | None
    ttl: float | timedelta | None
    delay: float | timedelta | None
    deferred_until: datetime | None
    store_result: bool | None
    result_id: str | None
    result_ttl: float | timedelta | None
    headers: Mapping[str, str] | None
    reply_to: str | None
    server_name: str | None
    every: float | timedelta | None
    deferred_by: float | timedelta | None
    cron: str | None
    timezone: str | None
    overlap: Overlap | None
    missed: Missed | None


_JOB_OPTIONS = frozenset(JobOptions.__annotations__)


def _option(name: str, default: Any) -> Callable[[Job], Any]:
    """What a job says of this option, else its default."""

    def read(job: Job) -> Any:
        value = getattr(job._model.options, name)  # noqa: SLF001  its own
        return default if value is None else value

    return read


def _rule(name: str) -> Callable[[Job], Any]:
    """What the schedule of a recurring job says; None for another job."""
    return lambda job: None if job._schedule is None else getattr(job._schedule, name)  # noqa: SLF001  its own


class Job:
    """A call of the actor `name`, to be made by whatever worker reads `queue`.

    `args` are the actor's parameters: a dict, Struct or dataclass; anything msgspec can encode as a JSON object.
    `app` may be left out where the queue was given one, and inside the `magic()` block of one. Options as in `JobOptions`.
    Each of them can be read as a field, with its default where it was not given, and not assigned; durations as seconds.
    Of what an actor may say too (`retries`, `timeout`, `store_result`), the default stands for what the actor says.

    Raises `ConfigurationError` for bad arguments and `PayloadError` for args that cannot be encoded.
    """

    __slots__ = (
        "__weakref__",
        "_app",
        "_args",
        "_deferred_until",
        "_due_at",
        "_id",
        "_latest",
        "_model",
        "_queue",
        "_schedule",
        "_server_name",
    )

    name = Field[str](lambda job: job._model.headers[TOPIC])  # noqa: SLF001  its own, as all below
    queue = Field[Queue](lambda job: job._queue)  # noqa: SLF001
    args = Field[Any](lambda job: job._args)  # noqa: SLF001
    app = Field[Application | None](lambda job: job._app)  # noqa: SLF001
    id_ = Field[str | None](lambda job: job._id)  # noqa: SLF001
    priority = Field[PrioritiesT](_option("priority", PrioritiesT.MEDIUM))
    retries = Field[int](_option("retries", 0))
    timeout = Field[float](_option("timeout", 600.0))
    ttl = Field[float | None](_option("ttl", None))
    delay = Field[float | None](_option("delay", None))
    deferred_until = Field[datetime | None](lambda job: job._deferred_until)  # noqa: SLF001
    store_result = Field[bool](_option("store_result", False))  # noqa: FBT003  the default
    result_id = Field[str | None](_option("result_id", None))
    result_ttl = Field[float](_option("result_ttl", DAY))
    headers = Field[dict[str, str]](lambda job: dict(job._model.headers))  # noqa: SLF001
    reply_to = Field[str | None](lambda job: job._model.reply_to)  # noqa: SLF001
    server_name = Field[str | None](lambda job: job._server_name)  # noqa: SLF001
    every = Field[float | None](_rule("every"))
    deferred_by = Field[float | None](_rule("every"))
    cron = Field[str | None](_rule("cron"))
    timezone = Field[str | None](_rule("timezone"))
    overlap = Field[Overlap | None](_rule("overlap"))
    missed = Field[Missed | None](_rule("missed"))

    def __init__(
        self,
        name: str,
        queue: str | Queue = "default",
        *,
        args: Any = None,
        app: Application | None = None,
        **options: Unpack[JobOptions],
    ) -> None:
        check_name("actor", name)
        check_known(f"job {name!r}", options, _JOB_OPTIONS)
        self._queue = queue if isinstance(queue, Queue) else Queue(queue, app=app)
        self._args = args
        self._server_name = _check_server(name, self._queue, options)
        self._app = self._queue.app if app is None else app
        self._id = check_id(options.get("id_"), "the id_ of a job")
        self._deferred_until = options.get("deferred_until")
        self._due_at = _check_moment(options)
        reply_to = options.get("reply_to")
        self._latest: JobHandle | None = None
        self._model = Envelope(
            self._id or name,
            self.queue.name,
            _encode_args(name, args),
            JSON,
            _check_headers(name, options),
            None if reply_to is None else check_name("channel", reply_to),
            make_options(
                priority=options.get("priority"),
                retries=options.get("retries"),
                timeout=options.get("timeout"),
                ttl=options.get("ttl"),
                delay=options.get("delay"),
                store_result=options.get("store_result"),
                result_id=options.get("result_id"),
                result_ttl=options.get("result_ttl"),
            ),
        )
        self._schedule = self._make_schedule(options)

    def __repr__(self) -> str:
        unique = f", id_={self._id!r}" if self.is_unique else ""
        return f"Job({self.name!r}, queue={self.queue.name!r}{unique})"

    @property
    def is_unique(self) -> bool:
        """Whether an id was given."""
        return self._id is not None

    @property
    def is_recurring(self) -> bool:
        """Whether enqueueing it stores a schedule rather than one message."""
        return self._schedule is not None

    @hosted
    async def enqueue(self) -> JobHandle:
        """Publish the job; it is as durable as the server promises when this returns.

        A recurring job's schedule is stored instead, under its id, or else as "queue:name"; the handle is on its
        latest tick's message. Enqueueing it again, as a program may do at every start, changes nothing: the next tick
        keeps its time, and what was changed with `app.schedules` stays. If the job says something else than last time,
        that takes the place of what was stored; but of two jobs without an id that differ in their arguments the
        second one is refused with a `ConfigurationError`.

        Raises `QueueNotDeclared` (a `KeyError`) if the queue does not exist, and `DuplicateId` if a message with
        the job's id is alive. Cancelled: nothing was published.
        """
        app = find_app(self._app, f"job {self.name!r}")
        broker = app.server(self._server_name)
        self._check_claimed(broker)
        if self._schedule is not None:
            if broker.capabilities.has("queue_admin"):
                await broker.counts(self.queue.name)  # complains of an undeclared queue
            await self._declare(broker, self._schedule)
            self._latest = JobHandle(app, broker, self._schedule.envelope, self._schedule.name)
            return self._latest
        envelope = msgspec.structs.replace(self._model, id=self._id or new_id())
        if self._due_at is not None:
            now = await broker.now() if broker.capabilities.has("schedules") else time.time()
            delay = max(0.0, self._due_at - now)
            envelope = msgspec.structs.replace(envelope, options=msgspec.structs.replace(envelope.options, delay=delay))
        outcome = (await app.publisher(broker, declare=False)((envelope,)))[0]
        if outcome is not None:
            raise outcome
        self._latest = JobHandle(app, broker, envelope)
        return self._latest

    @property
    def result(self) -> Lazy[Result[Any] | None]:
        """`await job.result`: that of its unique id, of its latest enqueue, or of its `result_id`; None until there is one."""
        return self.result_as(ANYTHING)

    def result_as(self, type_: type[T]) -> Lazy[Result[T] | None]:
        """Like `result`, with a value of this type."""
        return Lazy(lambda: self._result_handle()._fetch(type_))  # noqa: SLF001  the other half of it

    async def wait(self, timeout: float | timedelta | None = None) -> Result[Any]:  # noqa: ASYNC109  a bound of its own
        """As `JobHandle.wait`."""
        return await self._handle().wait(timeout)

    async def wait_as(
        self,
        type_: type[T],
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
    ) -> Result[T]:
        """As `JobHandle.wait_as`."""
        return await self._handle().wait_as(type_, timeout)

    async def status(self) -> Status:
        """As `JobHandle.status`."""
        return await self._handle().status()

    async def cancel(self) -> bool:
        """As `JobHandle.cancel`."""
        return await self._handle().cancel()

    def watch(self) -> Watch:
        """As `JobHandle.watch`."""
        return self._handle().watch()

    def _handle(self) -> JobHandle:
        if self._latest is not None and not (self.is_unique and self._latest.schedule_name is None):
            return self._latest
        if self._id is None:
            raise UsageError(f"job {self.name!r} was not enqueued yet: it has no message to ask about")
        return self._handle_on_model()

    def _result_handle(self) -> JobHandle:
        if self._latest is None and self._model.options.result_id is not None:
            return self._handle_on_model()
        return self._handle()

    def _handle_on_model(self) -> JobHandle:
        app = find_app(self._app, f"job {self.name!r}")
        return JobHandle(app, app.server(self._server_name), self._model, is_known=self._latest is not None)

    async def _declare(self, broker: Broker, schedule: Schedule) -> None:
        while True:  # once more where a tick or another program was quicker
            found = await broker.schedules([schedule.name])
            stored = found[0] if found else None
            if not self.is_unique:
                check_same_arguments(stored, schedule)
            wanted = declared(stored, schedule, "id" if self.is_unique else "job", await broker.now())
            if wanted is stored or await broker.replace_schedule(stored, wanted):
                return

    def _check_claimed(self, broker: Broker) -> None:
        """Raise `NotSupported` where the server cannot keep the job unique, or recurring."""
        claimed, name = broker.capabilities, type(broker).__name__
        if self._schedule is not None and not claimed.has("schedules"):
            raise NotSupported(
                f"job {self.name!r} is recurring, but {name} keeps no schedules: give the server another one that does, "
                "as state=, or use one that does, such as SQLiteServer"
            )
        if self._schedule is None and self._id is not None and claimed.unique_ids == "none":
            raise NotSupported(
                f"job {self.name!r} has id_={self._id!r}, which makes it unique, but {name} does not compare ids: leave "
                "id_ out, or use a server that does, such as SQLiteServer"
            )

    def _make_schedule(self, options: JobOptions) -> Schedule | None:
        every: Any = options.get("every")
        word = "deferred_by" if every is None else "every"
        if options.get("deferred_by") is not None:
            if every is not None:
                raise ConfigurationError(
                    f"job {self.name!r} has both every and deferred_by: they are two words, give one"
                )
            every = options.get("deferred_by")
        rule: dict[str, Any] = {word: options.get(word) for word in ("cron", "timezone", "overlap", "missed")}
        rule = {word: value for word, value in rule.items() if value is not None}
        what = f"job {self.name!r}"
        if every is not None:
            rule["every"] = check_duration(f"{word} of {what}", every, positive=True)
        elif not rule:
            return None
        if self._due_at is not None or self._model.options.delay is not None:
            raise ConfigurationError(f"{what} is recurring and delayed: it can be one of the two")
        name = self._id or schedule_name(self.queue.name, self.name)
        return make_schedule(what, name, msgspec.structs.replace(self._model, id=name), **rule)


class JobHandle:
    """One enqueued message, in whatever process it runs.

    `schedule_name` is set for a recurring job: the handle is on the message its schedule published last. `is_known`:
    the message was published, so that it has ended if it is nowhere.
    """

    def __init__(
        self,
        app: Application,
        broker: Broker,
        envelope: Envelope,
        schedule_name: str | None = None,
        *,
        is_known: bool = True,
    ) -> None:
        self._is_known = is_known
        self._app = app
        self._broker = broker
        self.envelope = envelope
        self.schedule_name = schedule_name

    def __repr__(self) -> str:
        return f"<JobHandle {self.id!r} on {self.queue!r}>"

    @property
    def id(self) -> str:
        """The id of the message: the job's, or a fresh one; a recurring job's: the name of its schedule."""
        return self.envelope.id

    @property
    def queue(self) -> str:
        """The name of the queue it went to."""
        return self.envelope.queue

    @property
    def result(self) -> Lazy[Result[Any] | None]:
        """`await handle.result`: the result; None until there is one."""
        return self.result_as(ANYTHING)

    def result_as(self, type_: type[T]) -> Lazy[Result[T] | None]:
        """Like `result`, with a value of this type."""
        return Lazy(lambda: self._fetch(type_))

    async def wait(self, timeout: float | timedelta | None = None) -> Result[Any]:  # noqa: ASYNC109  a bound of its own
        """Wait until it has ended in whatever way; the result. Cancelling loses nothing.

        Raises `TimeoutError` if it has not ended after `timeout` (seconds or timedelta; None: no bound), which changes
        nothing; `ResultError` if the server knows no message of its id, and if it has ended and no result of it is
        stored: none was asked for with `store_result`, or it has expired. The text tells which.
        """
        return await self.wait_as(ANYTHING, timeout)

    @hosted
    async def wait_as(
        self,
        type_: type[T],
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
    ) -> Result[T]:
        """Like `wait`, with a value of this type."""
        if timeout is None:
            return await self._wait(type_)
        seconds = check_duration("timeout", timeout)
        try:
            return await within(seconds, lambda: self._wait(type_))
        except TimeoutError:
            found = await self._fetch(type_)  # it may have ended in this moment, or a timeout of 0 just asks
            if found is None:
                raise TimeoutError(f"{self!r} has not ended within {seconds:g} seconds") from None
            return found

    async def _wait(self, type_: type[T]) -> Result[T]:
        async for status in self.watch():
            if status.is_over:
                break
        result = await self._fetch(type_)
        if result is None:
            raise ResultError(self._why_no_result(status.state))
        return result

    async def status(self) -> Status:
        """How it stands now: not over, over, or unknown. See `Status.state`."""
        return await anext(self.watch())

    def _why_no_result(self, state: str) -> str:
        wanted = self.envelope.options.store_result
        if state == "unknown":
            return (
                f"no message {self.id!r} is known on the server of queue {self.queue!r}: it was never enqueued there, or "
                "it has ended and no result of it is stored any more"
            )
        if wanted is False:
            return f"message {self.id!r} has ended, and no result was stored: its job says store_result=False"
        if state not in {"gone", "dead"}:
            return f"message {self.id!r} has ended as {state!r}, and its result has expired meanwhile (result_ttl)"
        why = "its result has expired (result_ttl)"
        if wanted is None:
            why = f"no result was asked for (store_result=True on its job or its actor), or {why}"
        place = f"; it is among the dead messages of queue {self.queue!r}" if state == "dead" else ""
        return f"message {self.id!r} has ended, and no result of it is stored: {why}{place}"

    @hosted
    async def cancel(self) -> bool:
        """Cancel it: a waiting message is removed, a running one's actor is cancelled, in whatever process it runs.

        Its result says cancelled. False: it is over already. A recurring job's schedule goes on: remove that with
        `app.schedules`.
        """
        return await self._broker.cancel((await self._ids())[0]) != "unknown"

    def watch(self) -> Watch:
        """`async for status in handle.watch()`: how it stands now, and each change, until it is over."""
        return Watch(self)

    @hosted
    async def _look(self, seen: Snapshot | None) -> Snapshot:
        """How it stands, as soon as that differs from what was seen."""
        return await self._broker.watch(*await self._ids(), seen)

    async def _ids(self) -> tuple[str, str]:
        if self.schedule_name is None:
            return self.id, self.envelope.result_id
        for stored in await self._broker.schedules([self.schedule_name]):
            if stored.last_id is not None:
                return stored.last_id, self.envelope.options.result_id or stored.last_id
        raise UsageError(f"schedule {self.schedule_name!r} has not published a message yet")

    @hosted
    async def _fetch(self, type_: type[T]) -> Result[T] | None:
        """The result as it is now; None: there is none yet, or none any more."""
        stored = await self._stored()
        return None if stored is None else Result(stored, type_)

    async def _stored(self) -> StoredResult | None:
        store = self._app.result_store or self._broker
        return (await store.fetch_results([(await self._ids())[1]]))[0]


class Watch:
    """The states of one job, one after another; what changes faster than it is asked for is seen in its last state."""

    def __init__(self, handle: JobHandle) -> None:
        self._handle = handle
        self._seen: Snapshot | None = None
        self._over = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Status:
        if self._over:
            raise StopAsyncIteration
        was_there = self._seen is not None or self._handle._is_known  # noqa: SLF001  the other half of it
        self._seen = await self._handle._look(self._seen)  # noqa: SLF001
        status = _status(self._seen, is_known=was_there)
        self._over = status.is_over
        return status


def _status(snapshot: Snapshot, *, is_known: bool) -> Status:
    if snapshot.state == "gone" and snapshot.result is None and not is_known:
        return Status(state="unknown")
    if snapshot.state in {"dead", "gone"}:
        return Status(state=snapshot.result.state if snapshot.result else snapshot.state, attempt=snapshot.attempt)
    state = "cancelling" if snapshot.cancelling else "running" if snapshot.state == "leased" else snapshot.state
    progress = snapshot.progress
    if progress is None:
        return Status(state=state, attempt=snapshot.attempt)
    return Status(state=state, attempt=snapshot.attempt, done=progress.done, total=progress.total, note=progress.note)


def _encode_args(name: str, args: Any) -> bytes:
    if args is None:
        return b""
    payload = encode_json(args)
    if not payload.startswith(b"{"):
        raise ConfigurationError(
            f"the args of job {name!r} must be the actor's parameters by name, such as {{'number': 1}}, but are {args!r}"
        )
    return payload


def _check_headers(name: str, options: JobOptions) -> dict[str, str]:
    given = options.get("headers")
    if given is None:
        return {TOPIC: name}
    headers = copy_headers(given)
    if headers.setdefault(TOPIC, name) != name:
        raise ConfigurationError(f"the headers of job {name!r} name another actor as their topic: {headers[TOPIC]!r}")
    return headers


def _check_server(name: str, queue: Queue, options: JobOptions) -> str | None:
    given = options.get("server_name")
    if given is None:
        return queue.server_name
    if queue.server_name not in {None, check_name("server", given)}:
        raise ConfigurationError(
            f"job {name!r} has server_name={given!r}, but its queue is on the server {queue.server_name!r}: give one of them"
        )
    return given


def _check_moment(options: JobOptions) -> float | None:
    moment = options.get("deferred_until")
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ConfigurationError(f"deferred_until must be a datetime with a time zone, but is {moment!r}")
    if options.get("delay") is not None:
        raise ConfigurationError("a job has both delay and deferred_until: give one of them")
    return moment.timestamp()
