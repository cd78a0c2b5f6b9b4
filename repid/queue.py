"""Queues: declaring them, and looking at and after what is in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from .application import Application, check_app, find_app
from .delivery import UNBOUNDED, WhenFull
from .errors import ConfigurationError, QueueNotDeclared
from .fields import Field
from .hosts import hosted
from .names import check_count, check_iterable, check_name, check_one_of
from .ports import Broker, BrowsedMessage, Category, Counts, Topics, make_bounds
from .producer import raise_refused

CATEGORIES: tuple[Category, ...] = ("ready", "scheduled", "leased", "dead")


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one queue of a server stands: its counts, how many seconds ago the message was enqueued that is handled next
    (None: none is ready, or that was not recorded), the names of the app's actors that read it, and what each open
    consumer of any process takes of it, as the names of actors (None: all); `readers` is None where the server does not
    know that.
    """

    name: str
    counts: Counts
    age: float | None
    actors: tuple[str, ...]
    readers: tuple[Topics, ...] | None


async def look_at_queues(broker: Broker, actors: Mapping[str, Sequence[str]]) -> list[QueueStatus]:
    """All queues of a server, by name. `actors`: those of the app that read each of them."""
    while True:
        try:
            return await _look_at_queues(broker, actors)
        except QueueNotDeclared:  # deleted meanwhile
            continue


async def _look_at_queues(broker: Broker, actors: Mapping[str, Sequence[str]]) -> list[QueueStatus]:
    names = await broker.queues()
    counts = await broker.counts_of(names) if names else []
    readers = await broker.readers() if broker.capabilities.readers else None
    statuses = []
    for name, count in zip(names, counts, strict=True):
        [*head] = await broker.browse(name, "ready", limit=1) if count.ready else []
        enqueued_at = head[0].enqueued_at if head else None
        age = None if enqueued_at is None else max(0.0, head[0].seen_at - enqueued_at)
        own = tuple(actors.get(name, ()))
        read = None if readers is None else tuple(reader[name] for reader in readers if name in reader)
        statuses.append(QueueStatus(name=name, counts=count, age=age, actors=own, readers=read))
    return statuses


class Queue:
    """One named buffer on a server of the app: the one named `server_name`, else its default one.

    Without `app=`, the app is the one whose `magic()` block encloses the call. Two queues of the same name, app and
    server are equal. What a queue was made with can be read and not assigned.

    `max_size`, `max_bytes`: how many messages, and bytes of their payloads, may wait (ready or scheduled; what is
    running does not count). `when_full`: "wait" (default): who sends waits until there is room; "raise": `QueueFull` is
    raised; "drop_oldest": the oldest waiting messages are dropped. `declare` stores that on the server, for all who use
    the queue.
    """

    __slots__ = ("__weakref__", "_app", "_bounds", "_name", "_server_name")

    name = Field[str](lambda queue: queue._name)  # noqa: SLF001  its own
    app = Field[Application | None](lambda queue: queue._app)  # noqa: SLF001
    server_name = Field[str | None](lambda queue: queue._server_name)  # noqa: SLF001
    max_size = Field[int | None](lambda queue: queue._bounds.max_size)  # noqa: SLF001
    max_bytes = Field[int | None](lambda queue: queue._bounds.max_bytes)  # noqa: SLF001
    when_full = Field[WhenFull](lambda queue: queue._bounds.when_full)  # noqa: SLF001

    def __init__(
        self,
        name: str = "default",
        *,
        app: Application | None = None,
        server_name: str | None = None,
        max_size: int | None = None,
        max_bytes: int | None = None,
        when_full: WhenFull | None = None,
    ) -> None:
        self._name = check_name("queue", name)
        self._bounds = make_bounds(f"queue {name!r}", max_size, max_bytes, when_full)
        self._app = check_app(f"queue {name!r}", app)
        self._server_name = None if server_name is None else check_name("server", server_name)

    def __repr__(self) -> str:
        server = "" if self._server_name is None else f", server_name={self._server_name!r}"
        return f"Queue({self._name!r}{server})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Queue) and self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        return self._name, self._app, self._server_name

    def __hash__(self) -> int:
        return hash(self.name)

    @hosted
    async def declare(self) -> None:
        """Create the queue, if it does not exist yet, and bound it if this one has bounds.

        They take the place of those that it had. Without bounds it keeps them; `remove_bounds` removes them.
        """
        if self._bounds.are_none:
            await self._broker.declare([self.name])
        else:
            await self._broker.set_bounds({self.name: self._bounds})

    @hosted
    async def remove_bounds(self) -> None:
        """Let any number of messages wait from now on. The queue is created if it does not exist yet."""
        await self._broker.set_bounds({self.name: UNBOUNDED})

    @hosted
    async def flush(self) -> int:
        """Remove every ready and scheduled message; how many. Leased and dead ones stay."""
        return await self._broker.flush(self.name)

    @hosted
    async def delete(self) -> None:
        """Remove the queue and everything in it; verdicts on what is running will be refused."""
        await self._broker.delete(self.name)

    @hosted
    async def pause(self) -> None:
        """Hold its messages back from all workers, until `resume`. What is running goes on."""
        await self._broker.pause(self.name)

    @hosted
    async def resume(self) -> None:
        """Let workers have its messages again."""
        await self._broker.resume(self.name)

    @hosted
    async def counts(self) -> Counts:
        """How many messages are ready, scheduled, leased and dead; the bounds of the queue, and how many it has
        dropped.
        """
        return await self._broker.counts(self.name)

    async def size(self) -> int:
        """How many messages wait: ready and scheduled ones."""
        counts = await self.counts()
        return counts.ready + counts.scheduled

    @hosted
    async def get_messages(self, category: Category = "ready", *, limit: int = 100) -> list[BrowsedMessage]:
        """Look at up to `limit` messages of one category, in the order in which they would be handled."""
        check_one_of("category", category, CATEGORIES)
        count = int(min(check_count("limit", limit), sys.maxsize))
        return await self._broker.browse(self.name, category, limit=count)

    @hosted
    async def requeue(self, messages: Iterable[BrowsedMessage] | None = None) -> int:
        """Make dead messages ready again as new ones (None: all of them); how many.

        Should some be refused because their id is alive again, an `ExceptionGroup` names them; the others are ready.
        """
        outcomes = await self._broker.revive(self.name, _keys_of("requeued", messages))
        raise_refused(outcomes, "ready again")
        return len(outcomes)

    @hosted
    async def delete_messages(self, messages: Iterable[BrowsedMessage] | None = None) -> int:
        """Remove dead messages for good (None: all of the queue's); how many. Stored results stay until they expire.

        What is not dead any more is passed over. Waiting messages are removed by `flush` or by cancelling their jobs.
        Cancelled: some may be removed.
        """
        return await self._broker.delete_messages(self.name, _keys_of("deleted", messages))

    @property
    def _broker(self) -> Broker:
        return find_app(self.app, f"queue {self.name!r}").server(self._server_name)


def _keys_of(what: str, messages: Iterable[BrowsedMessage] | None) -> list[str] | None:
    if messages is None:
        return None
    check_iterable(f"the messages to be {what}", messages)
    return [_dead_key(what, message) for message in messages]


def _dead_key(what: str, message: BrowsedMessage) -> str:
    if not isinstance(message, BrowsedMessage):
        raise ConfigurationError(
            f'only what get_messages("dead") gives can be {what}, but this is of type {type(message).__name__}'
        )
    if message.category != "dead":
        raise ConfigurationError(f"only dead messages can be {what}, but {message.envelope.id!r} is {message.category}")
    return message.key
