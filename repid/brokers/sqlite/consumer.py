"""The consumer of the SQLite broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec
import trio

from ...delivery import Delivery, Progress, Settlement
from ...errors import BrokerError, ConfigurationError, NotConnected
from ...ports import AtMost, Topics, Verdict, at_most_of
from ..checks import check_settlements
from . import claiming, settling, views
from .requests import Request
from .rows import pack, to_bodies
from .session import Session
from .store import Store

CLOSING_TIME = 5.0
"""Seconds that closing a consumer waits for the broker's thread: closing writes nothing, so only a hanging disk takes them."""


class SQLiteConsumer:
    """Leases messages of some queues of an `SQLiteServer` to one worker.

    What it handed over stays leased when its block is left, until it is settled or rescued: `settle` and `extend`
    go on working as long as the server is connected.
    """

    def __init__(self, session: Session, id_: int) -> None:
        self._session = session
        self._id = id_
        self._closed = False

    @property
    def lease_timeout(self) -> float:
        """A lease that was neither settled nor extended for so many seconds may be rescued."""
        return self._session.lease_timeout

    async def receive(
        self,
        limit: int,
        *,
        at_most: AtMost | Mapping[tuple[str, str], int] | None = None,
        max_wait: float = float("inf"),
    ) -> list[Delivery]:
        """Lease up to `limit` ready messages by rank; wait at most `max_wait` until there is one.

        Cancelled: nothing was leased. Raises `UsageError` when the consumer is closed, also meanwhile.
        """
        if limit < 1:
            raise ConfigurationError(f"receive needs a limit of at least 1, but got {limit}")
        limits = at_most_of(at_most)
        limit = int(min(limit, 2**31))

        def claim(store: Store) -> list[Delivery] | None:
            return claiming.claim(store, self._id, limit, limits) or None

        request = Request(
            claim, is_wish=max_wait > 0, peek=lambda store: claiming.has_any(store, self._id, limits), claims=True
        )
        self._check()
        if not request.is_wish:
            return await self._session.ask(request) or []
        with trio.move_on_after(max_wait):
            return await self._session.ask(request)
        return []

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition with its outbox and result in one step; answer in order. Cancelled: none was.

        Raises `ConfigurationError`, and settles none, where an outbox holds what cannot be published.
        """
        check_settlements(settlements)
        outboxes = [to_bodies(settlement.outbox) if settlement.outbox else () for settlement in settlements]
        return await self._session.change(lambda store: settling.settle(store, settlements, outboxes))

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start the lease of each anew, also of one that has ended and was not rescued yet. False: it is lost."""
        tokens = [delivery.token for delivery in deliveries]
        return await self._session.change(lambda store: claiming.extend(store, tokens), durable=False)

    async def rescue(self) -> int:
        """Take back every lease that has ended, whoever holds it; how many, those that are poison now included."""
        rescued = count = await self._session.change(claiming.rescue, durable=False)
        while count == claiming.RESCUED_AT_ONCE:  # others get the lock in between
            count = await self._session.change(claiming.rescue, durable=False)
            rescued += count
        return rescued

    async def suspects(self) -> int:
        """How many ready messages this consumer could be given if it held nothing else."""
        return await self._session.look(lambda store: claiming.count_suspects(store, self._id))

    async def report(self, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
        """Note that runs have begun and how far they have come. What is not leased to us any more is passed over.

        Raises `ConfigurationError`, and notes none, where one holds what is no number or cannot be written.
        """
        noted = [(delivery.token, _pack_progress(delivery, how_far)) for delivery, how_far in progress]
        await self._session.change(lambda store: claiming.report(store, noted), durable=False)

    async def cancellations(self) -> list[int]:
        """Wait until somebody cancels messages that are leased to this consumer; the tokens of their leases."""

        def cancellations(store: Store) -> list[int] | None:
            return claiming.cancellations(store, self._id) or None

        self._check()
        peek = partial(claiming.has_cancellations, consumer=self._id)
        return await self._session.ask(Request(cancellations, is_wish=True, peek=peek))

    def _check(self) -> None:
        self._session.check()
        if self._closed:
            raise claiming.closed()

    async def close(self) -> None:
        """Take nothing more; who waits in `receive` is told. Nothing happens where the connection is closed."""
        self._closed = True
        with suppress(NotConnected, BrokerError), trio.move_on_after(CLOSING_TIME, shield=True):
            await self._session.ask(Request(lambda store: store.close([self._id]), in_memory=True))


def _pack_progress(delivery: Delivery, progress: Progress | None) -> bytes | None:
    if progress is None:
        return None
    packed = None
    with suppress(TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        packed = pack(progress)
    if packed is None or views.to_progress(packed) is None:
        raise ConfigurationError(
            f"the progress of message {delivery.envelope.id!r} must be finite numbers and a note that is text, but is "
            f"{progress!r}"
        )
    return packed


@asynccontextmanager
async def open_consumer(session: Session, queues: Mapping[str, Topics]) -> AsyncGenerator[SQLiteConsumer, None]:
    """Enter a consumer for a block. Raises `QueueNotDeclared`."""
    wanted = {name: None if topics is None else frozenset(topics) for name, topics in queues.items()}
    id_ = await session.change(lambda store: store.open(wanted), durable=False)
    consumer = SQLiteConsumer(session, id_)
    try:
        yield consumer
    finally:
        await consumer.close()
