"""Jobs: declared intents, and what became of enqueueing one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from .application import Application, find_app
from .codec import JSON, encode_json
from .envelope import TOPIC, Envelope, PrioritiesT, new_id
from .names import check_name
from .producer import check_id, make_options
from .queue import Queue


class JobHandle(msgspec.Struct, frozen=True):
    """What one `enqueue()` has published."""

    envelope: Envelope

    @property
    def id(self) -> str:
        """The id of the message: the job's, or a fresh one."""
        return self.envelope.id

    @property
    def queue(self) -> str:
        """The name of the queue it went to."""
        return self.envelope.queue


class Job:
    """A call of the actor `name`, to be made by whatever worker reads `queue`.

    args: the actor's parameters: a dict, Struct or dataclass; anything msgspec can encode as a JSON object.
    priority: HIGH, MEDIUM (default) or LOW; see `PrioritiesT`.
    id_: makes the job unique: while a message with this id is alive, another is refused. None: a fresh id each time.
    retries, timeout: None: the actor's own hold (0 and 10 minutes if it has none).
    ttl: the message becomes a dead letter if it has not been started that long after it became due. None: never.
    delay: how long after enqueueing it becomes due.
    app: None: the app whose `magic()` block encloses the call.

    Durations are seconds or timedeltas. Raises `ConfigurationError` for bad arguments and `PayloadError` for args
    that cannot be encoded.
    """

    def __init__(
        self,
        name: str,
        queue: str | Queue = "default",
        *,
        args: Any = None,
        priority: PrioritiesT | None = None,
        id_: str | None = None,
        retries: int | None = None,
        timeout: float | timedelta | None = None,
        ttl: float | timedelta | None = None,
        delay: float | timedelta | None = None,
        app: Application | None = None,
    ) -> None:
        self.name = check_name("actor", name)
        self.queue = queue if isinstance(queue, Queue) else Queue(queue, app=app)
        self.args = args
        self._id = check_id(id_)
        self._payload = b"" if args is None else encode_json(args)
        self._options = make_options(priority=priority, retries=retries, timeout=timeout, ttl=ttl, delay=delay)
        self._app = app

    def __repr__(self) -> str:
        unique = f", id_={self._id!r}" if self.is_unique else ""
        return f"Job({self.name!r}, queue={self.queue.name!r}{unique})"

    @property
    def is_unique(self) -> bool:
        """Whether an id was given."""
        return self._id is not None

    @property
    def id_(self) -> str | None:
        """The id that was given."""
        return self._id

    async def enqueue(self) -> JobHandle:
        """Publish the job; it is as durable as the server promises when this returns.

        Raises `QueueNotDeclared` (a `KeyError`) if the queue does not exist, and `DuplicateId` if a message with
        the job's id is alive. Cancelled: nothing was published.
        """
        app = find_app(self._app, f"job {self.name!r}")
        envelope = Envelope(
            self._id or new_id(), self.queue.name, self._payload, JSON, {TOPIC: self.name}, None, self._options
        )
        outcome = (await app.publisher(app.server(), declare=False)((envelope,)))[0]
        if outcome is not None:
            raise outcome
        return JobHandle(envelope)
