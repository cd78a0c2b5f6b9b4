"""The consumer of the memory broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled, enable_ki_protection

from ...delivery import Delivery, Progress, Settlement
from ...errors import ConfigurationError
from ...ports import AtMost, Verdict, at_most_of
from ..checks import check_settlements
from .session import Session
from .taker import Taker
from .waiting import Waiter


class InMemoryConsumer:
    """Leases messages of some queues of an `InMemoryServer` to one worker.

    What it handed over stays leased when its block is left, until it is settled or rescued: `settle` and `extend`
    go on working as long as the server is connected.
    """

    def __init__(self, session: Session, taker: Taker) -> None:
        self._session = session
        self._taker = taker

    @property
    def lease_timeout(self) -> float:
        """A lease that was neither settled nor extended for so many seconds may be rescued."""
        return self._session.store.lease_timeout

    @enable_ki_protection
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
        self._session.check()
        await checkpoint_if_cancelled()
        limits = at_most_of(at_most)
        deliveries = self._claim(limit, limits)
        if deliveries or max_wait <= 0:
            await cancel_shielded_checkpoint()
            return deliveries
        deadline = trio.current_time() + max_wait
        while True:
            deliveries = await self._session.line.wait(Waiter(self._taker, limit, limits, deadline))
            deliveries = deliveries or self._claim(limit, limits)
            if deliveries or trio.current_time() >= deadline:
                return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition with its outbox and result in one step; answer in order. Cancelled: none was.

        Raises `ConfigurationError`, and settles none, where an outbox holds what cannot be published.
        """
        check_settlements(settlements)
        return await self._session.step(lambda now: self._session.store.settle(settlements, now))

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start the lease of each anew, also of one that has ended and was not rescued yet. False: it is lost."""
        return await self._session.step(lambda now: self._session.store.extend(deliveries, now))

    async def rescue(self) -> int:
        """Take back every lease that has ended, whoever holds it; how many, those that are poison now included."""
        return await self._session.step(self._session.store.rescue)

    async def suspects(self) -> int:
        """How many ready messages this consumer could be given if it held nothing else."""
        return await self._session.step(lambda now: self._session.store.suspects(self._taker, now))

    async def report(self, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
        """Note that runs have begun and how far they have come, until they are leased anew; what is not leased is passed over."""
        await self._session.step(lambda now: self._session.store.report(progress, now))

    async def cancellations(self) -> list[int]:
        """Wait until somebody cancels messages that are leased to this consumer; the tokens of their leases.

        Each is given once; cancelled, this call has taken none. Raises as `receive` when the consumer is closed.
        """
        return await self._session.take_requests(self._taker)

    def _claim(self, limit: int, at_most: AtMost) -> list[Delivery]:
        self._session.check_open(self._taker)
        return self._session.now(lambda now: self._session.store.receive(self._taker, limit, at_most, now))
