"""Queues: declaring them, and looking at and after what is in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from .application import Application, find_app
from .errors import ConfigurationError
from .hosts import hosted
from .names import check_count, check_iterable, check_name, check_one_of
from .ports import Broker, BrowsedMessage, Category, Counts
from .producer import raise_refused

CATEGORIES: tuple[Category, ...] = ("ready", "scheduled", "leased", "dead")


class Queue:
    """One named buffer on the app's default server. Two of the same name are the same queue.

    Without `app=`, the app is the one whose `magic()` block encloses the call.
    """

    def __init__(self, name: str = "default", *, app: Application | None = None) -> None:
        self.name = check_name("queue", name)
        self.app = app

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Queue) and (self.name, self.app) == (other.name, other.app)

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
        if messages is not None:
            check_iterable("messages to requeue", messages)
        keys = None if messages is None else [self._dead_key(message) for message in messages]
        outcomes = await self._broker.revive(self.name, keys)
        raise_refused(outcomes)
        return len(outcomes)

    def _dead_key(self, message: BrowsedMessage) -> int:
        if message.category != "dead":
            raise ConfigurationError(
                f"only dead messages can be requeued, but {message.envelope.id!r} is {message.category}"
            )
        return message.key

    @property
    def _broker(self) -> Broker:
        return find_app(self.app, f"queue {self.name!r}").server()
