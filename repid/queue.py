"""Queues: declaring them, and looking at and after what is in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from .application import Application, find_app
from .errors import ConfigurationError
from .fields import Field
from .hosts import hosted
from .names import check_count, check_iterable, check_name, check_one_of
from .ports import Broker, BrowsedMessage, Category, Counts
from .producer import raise_refused

CATEGORIES: tuple[Category, ...] = ("ready", "scheduled", "leased", "dead")


class Queue:
    """One named buffer on a server of the app: the one named `server_name`, else its default one.

    Without `app=`, the app is the one whose `magic()` block encloses the call. Two queues of the same name, app and server
    are equal. What a queue was made with can be read and not assigned.
    """

    __slots__ = ("__weakref__", "_app", "_name", "_server_name")

    name = Field[str](lambda queue: queue._name)  # noqa: SLF001  its own
    app = Field[Application | None](lambda queue: queue._app)  # noqa: SLF001
    server_name = Field[str | None](lambda queue: queue._server_name)  # noqa: SLF001

    def __init__(
        self, name: str = "default", *, app: Application | None = None, server_name: str | None = None
    ) -> None:
        self._name = check_name("queue", name)
        self._app = app
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
        """Create the queue, if it does not exist yet."""
        await self._broker.declare([self.name])

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
        """How many messages are ready, scheduled, leased and dead."""
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
