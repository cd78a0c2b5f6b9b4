"""Jobs: declared intents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, Unpack

import msgspec

from .application import Application, check_app, find_app, needed_schedules_of, publisher
from .calls import PLAIN, Callee, CallOptions, check_accepted, check_unique, deferred, make_headers, read_terms
from .codec import JSON, encode_json
from .delivery import DAY
from .envelope import TOPIC, Envelope, PrioritiesT, new_id
from .errors import BrokerRefused, ConfigurationError, PayloadError, QueueNotDeclared, UsageError, did_you_mean
from .fields import Field
from .handle import JobHandle, Watch
from .hosts import hosted
from .names import NOT_OF_JOBS, check_duration, check_iterable, check_known, check_name
from .ports import Broker, Missed, Overlap, Schedule, ScheduleStore
from .queue import Queue
from .results import ANYTHING, Lazy, NoResult, Result, Status, T
from .schedule import check_same_arguments, declared, make_schedule, schedule_name

S = TypeVar("S")


class JobOptions(CallOptions, total=False):
    """What may be said about a job: the options of any call (`CallOptions`), and what makes it recurring.

    server_name: of the server to send to. Default: that of its queue, else the app's default server.
    every, cron: makes the job recurring, at this interval (`deferred_by` is another word for it) or at the times of a
    cron expression or a name such as "@daily" (extra: cron).
    timezone: of the cron expression. Default "UTC". What happens when its clocks change: see `repid.cron`.
    overlap: "skip" (default): no tick of a recurring job while the former one's message is live; "allow".
    missed: for ticks more than a minute late, as after a time without a worker, "one" catches up (default), or "none".
    """

    every: float | timedelta | None
    deferred_by: float | timedelta | None
    cron: str | None
    timezone: str | None
    overlap: Overlap | None
    missed: Missed | None


_JOB_OPTIONS = frozenset({"queue", "args", "app", *JobOptions.__annotations__})
_OF_SCHEDULES = frozenset(JobOptions.__annotations__) - frozenset(CallOptions.__annotations__)


def _option(name: str, default: Any) -> Callable[[Job[Any]], Any]:
    """What a job says of this option, else its default."""

    def read(job: Job[Any]) -> Any:
        value = getattr(job._model.options, name)  # noqa: SLF001  its own
        return default if value is None else value

    return read


def _rule(name: str) -> Callable[[Job[Any]], Any]:
    """What the schedule of a recurring job says; None for another job."""
    return lambda job: None if job._schedule is None else getattr(job._schedule, name)  # noqa: SLF001  its own


class Element(msgspec.Struct, frozen=True):
    """In the place of a job's args: an element of the list of a batch actor, which is the whole payload."""

    value: Any


class Job(NoResult, Generic[T]):
    """A call of the actor `name`, to be made by whatever worker reads `queue`.

    `args` are the actor's parameters: a dict, Struct or dataclass; anything msgspec can encode as a JSON object. `app`
    may be left out where the queue was given one, and inside the `magic()` block of one. Options as in `JobOptions`.
    Each of them can be read as a field, with its default where it was not given, and not assigned; durations as
    seconds. Of what an actor may say too (`retries`, `timeout`, `store_result`), the default stands for what the actor
    says.

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
        "_type",
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
        check_known(f"job {name!r}", options, _JOB_OPTIONS, NOT_OF_JOBS)
        check_app(f"job {name!r}", app)
        self._queue = queue if isinstance(queue, Queue) else Queue(queue, app=app)
        self._args = args.value if isinstance(args, Element) else args
        self._server_name = _check_server(name, self._queue, options)
        self._app = self._queue.app if app is None else app
        terms = read_terms("a job", options) if options else PLAIN
        self._id, self._due_at = terms.id_, terms.due_at
        self._deferred_until = options.get("deferred_until")
        self._latest: JobHandle[T] | None = None
        self._type: type[T] = ANYTHING
        headers = make_headers(f"job {name!r}", name, terms.headers)
        payload = _encode_args(name, args)
        self._model = Envelope(
            self._id or name, self._queue.name, payload, JSON, headers, terms.reply_to, terms.options
        )
        self._schedule = None if _OF_SCHEDULES.isdisjoint(options) else self._make_schedule(options)

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

    async def enqueue(self, *, connection: Any = None) -> JobHandle[T]:
        """Publish the job; it is as durable as the server promises when this returns.

        `connection`: one of psycopg, SQLAlchemy or Django to the database of a `PostgresServer`; the job is published
        if your own transaction on it is committed. Raises `NotSupported` for another server.

        A recurring job's schedule is stored instead, under its id, or else as "queue:name"; the handle is on its
        latest tick's message. Enqueueing it again, as a program may do at every start, changes nothing: the next tick
        keeps its time, and what was changed with `app.schedules` stays. If the job says something else than last time,
        that takes the place of what was stored; but of two jobs without an id that differ in their arguments the
        second one is refused with a `ConfigurationError`.

        Raises `QueueNotDeclared` (a `KeyError`) if the queue does not exist, and `DuplicateId` if a message with
        the job's id is alive. Cancelled: nothing was published.
        """
        app = find_app(None, f"job {self.name!r}") if self._app is None else self._app
        self._warn_of_unknown_arguments(app)
        broker = app.server(self._server_name)
        if self._schedule is not None:
            if connection is not None:
                raise ConfigurationError(
                    f"the recurring job {self.name!r} stores a schedule: connection= is for others"
                )
            return await self._recur(app, broker, self._schedule)
        envelope = await self._make_envelope(broker)
        outcome = (await publisher(app, broker, declare=False, connection=connection)((envelope,)))[0]
        if outcome is not None:
            if isinstance(outcome, QueueNotDeclared) and (meant := did_you_mean(outcome.queue, app.queues())):
                outcome.add_note(f"the app has actors that read other queues{meant}")
            raise outcome
        return self._enqueued(app, broker, envelope)

    @hosted
    async def _recur(self, app: Application, broker: Broker, schedule: Schedule) -> JobHandle[T]:
        store = needed_schedules_of(app, broker, f"job {self.name!r} is recurring, but ")
        if broker.capabilities.has("queue_admin"):
            await broker.counts(self.queue.name)  # complains of an undeclared queue
        await self._declare(store, schedule)
        handle = JobHandle(
            broker, schedule.envelope, app.result_store, self._type, schedule_name=schedule.name, _schedules=store
        )
        self._latest = handle
        return handle

    async def _make_envelope(self, broker: Broker) -> Envelope:
        """The next message of the job, for this server. Raises `NotSupported` where that cannot keep it unique."""
        if self._id is not None:
            check_unique(f"job {self.name!r}", self._id, broker)
        envelope = msgspec.structs.replace(self._model, id=self._id or new_id())
        return envelope if self._due_at is None else (await deferred([envelope], broker, self._due_at))[0]

    def _warn_of_unknown_arguments(self, app: Application) -> None:
        """Have the app warn of arguments that its actor does not take: nothing else would tell of a misspelt one."""
        if self._model.payload.startswith(b"{"):
            given = self._args if isinstance(self._args, dict) else msgspec.json.decode(self._model.payload)
            app.warn_of_unknown_arguments(self.name, self._model.queue, frozenset(map(str, given)))

    def _enqueued(self, app: Application, broker: Broker, envelope: Envelope) -> JobHandle[T]:
        self._latest = JobHandle(broker, envelope, app.result_store, self._type)
        return self._latest

    def _of(self, callee: Callee) -> Job[T]:
        """A worker would accept its arguments, and its results have the type of the actor's. Raises `PayloadError`."""
        callee.check_call(self._model)
        self._type = callee.returns
        return self

    @property
    def result(self) -> Lazy[Result[T] | None]:
        """`await job.result`: that of its unique id, of its latest enqueue, or of its `result_id`; None until there is
        one.
        """
        return self.result_as(self._type)

    def result_as(self, type_: type[S]) -> Lazy[Result[S] | None]:
        """Like `result`, with a value of this type."""
        return Lazy(lambda: self._result_handle()._fetch(type_))  # noqa: SLF001  the other half of it

    async def wait(self, timeout: float | timedelta | None = None) -> Result[T]:  # noqa: ASYNC109  a bound of its own
        """As `JobHandle.wait`."""
        return await self._handle().wait(timeout)

    async def wait_as(
        self,
        type_: type[S],
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
    ) -> Result[S]:
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

    def _handle(self) -> JobHandle[T]:
        if self._latest is not None and not (self.is_unique and self._latest.schedule_name is None):
            return self._latest
        if self._id is None:
            raise UsageError(f"job {self.name!r} was not enqueued yet: it has no message to ask about")
        return self._handle_on_model()

    def _result_handle(self) -> JobHandle[T]:
        if self._latest is None and self._model.options.result_id is not None:
            return self._handle_on_model()
        return self._handle()

    def _handle_on_model(self) -> JobHandle[T]:
        app = find_app(self._app, f"job {self.name!r}")
        broker, is_known = app.server(self._server_name), self._latest is not None
        return JobHandle(broker, self._model, app.result_store, self._type, is_known)

    async def _declare(self, store: ScheduleStore, schedule: Schedule) -> None:
        while True:  # once more where a tick or another program was quicker
            found = await store.schedules([schedule.name])
            stored = found[0] if found else None
            if not self.is_unique:
                check_same_arguments(stored, schedule)
            wanted = declared(stored, schedule, "id" if self.is_unique else "job", await store.now())
            if wanted is stored or await store.replace_schedule(stored, wanted):
                return

    def _make_schedule(self, options: JobOptions) -> Schedule | None:
        every: Any = options.get("every")
        name_of_every = "deferred_by" if every is None else "every"
        if options.get("deferred_by") is not None:
            if every is not None:
                raise ConfigurationError(
                    f"job {self.name!r} has both every and deferred_by: they are two words, give one"
                )
            every = options.get("deferred_by")
        rule: dict[str, Any] = {key: options.get(key) for key in ("cron", "timezone", "overlap", "missed")}
        rule = {key: value for key, value in rule.items() if value is not None}
        what = f"job {self.name!r}"
        if every is not None:
            rule["every"] = check_duration(f"{name_of_every} of {what}", every, positive=True)
        elif not rule:
            return None
        if self._due_at is not None or self._model.options.delay is not None:
            raise ConfigurationError(f"{what} is recurring and delayed: it can be one of the two")
        name = self._id or schedule_name(self.queue.name, self.name)
        return make_schedule(what, name, msgspec.structs.replace(self._model, id=name), **rule)


async def enqueue_jobs(app: Application, jobs: Iterable[Job[S]]) -> list[JobHandle[S]]:
    """Publish all, in one step for each server; handles in their order. `app` is that of jobs that have none.

    Raises `ConfigurationError`, before anything is sent, for a recurring job and for what is no job, and `SomeRefused`.
    """
    check_jobs(jobs)
    batch = list(jobs)
    for job in batch:
        if not isinstance(job, Job):
            raise ConfigurationError(f"enqueue_many takes an actor and its items, or jobs, but was given {job!r:.120}")
        if job.is_recurring:
            raise ConfigurationError(f"{job!r} is recurring: enqueue it by itself, with job.enqueue()")
    handles: list[JobHandle[S] | None] = [None] * len(batch)
    outcomes: list[BrokerRefused | None] = [None] * len(batch)
    places: dict[tuple[Application, str | None], list[int]] = {}
    for place, job in enumerate(batch):
        places.setdefault((job._app or app, job._server_name), []).append(place)  # noqa: SLF001  the other half of it
    for (owner, server_name), here in places.items():
        broker = owner.server(server_name)
        for place in here:
            batch[place]._warn_of_unknown_arguments(owner)  # noqa: SLF001
        envelopes = [await batch[place]._make_envelope(broker) for place in here]  # noqa: SLF001
        answers = await publisher(owner, broker, declare=False)(envelopes)
        for place, envelope, answer in zip(here, envelopes, answers, strict=True):
            outcomes[place] = answer
            handles[place] = batch[place]._enqueued(owner, broker, envelope) if answer is None else None  # noqa: SLF001
    check_accepted(handles, outcomes)
    return [handle for handle in handles if handle is not None]


def check_jobs(jobs: object) -> None:
    """Raises `ConfigurationError` for what is not several jobs, as an actor without its items is not."""
    if callable(jobs) and not isinstance(jobs, Iterable):
        raise ConfigurationError(
            f"enqueue_many takes an actor and its items, or jobs, but was given {jobs!r:.120} alone: give a list of "
            "its items, too"
        )
    check_iterable("the jobs of enqueue_many", jobs)


def _encode_args(name: str, args: Any) -> bytes:
    if args is None:
        return b""
    try:
        payload = encode_json(args.value if isinstance(args, Element) else args)
    except PayloadError as error:
        raise PayloadError(f"cannot encode the args of job {name!r} as JSON", error.faults) from error.__cause__
    if not isinstance(args, Element) and not payload.startswith(b"{"):
        raise ConfigurationError(
            f"the args of job {name!r} must be the actor's parameters by name, such as {{'number': 1}}, but are "
            f"{args!r}"
        )
    return payload


def _check_server(name: str, queue: Queue, options: JobOptions) -> str | None:
    given = options.get("server_name")
    if given is None:
        return queue.server_name
    if queue.server_name not in {None, check_name("server", given)}:
        raise ConfigurationError(
            f"job {name!r} has server_name={given!r}, but its queue is on the server {queue.server_name!r}: give one "
            "of them"
        )
    return given
