"""A consumer of any engine: claim, wait for news, claim again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import msgspec
import trio

from ..delivery import Delivery, Progress, Settlement, Token
from ..errors import BrokerUnavailable, ConfigurationError, NoAnswer, UsageError
from ..ports import (
    ANYTHING,
    REFUSED,
    UNKNOWN,
    AtMost,
    Driver,
    LeaseEvent,
    News,
    ResultStore,
    SteadyDriver,
    Topics,
    TrackingDriver,
    UnderWay,
    Verdict,
    WaitingDriver,
    at_most_of,
)
from .checks import check_progress, check_settlements
from .shared.calls import Calls
from .shared.hub import Hub, Subscription

_MAYBE_READY = News(ready=True, events=False, ids=())


class _Claim:
    """A `receive` that goes on until it has something: how much it takes."""

    __slots__ = ("at_most", "limit")

    def __init__(self, limit: int, at_most: AtMost) -> None:
        self.limit = limit
        self.at_most = at_most


class Consumer:
    """Leases messages of some queues of one server to one worker.

    What it handed over stays leased when its block is left, until it is settled or rescued: `settle` and `extend` go on
    working as long as the server is connected. All its calls may run at the same time. It survives a broken link.
    """

    def __init__(
        self,
        calls: Calls,
        driver: Driver,
        hub: Hub,
        key: str,
        queues: Mapping[str, Topics],
        result_store: ResultStore | None,
    ) -> None:
        self.key = key
        self.queues = {name: None if topics is None else frozenset(topics) for name, topics in queues.items()}
        self.is_open = True
        self._calls = calls
        self._driver = driver
        self._hub = hub
        self._result_store = result_store
        self._claimed = claimed = driver.capabilities
        self._keeps_results = result_store is not None or claimed.has("results")
        self._waiting: set[_Claim] = set()
        self._unanswered: set[Token] = set()
        """Tokens of leases whose settlement was sent and not answered."""
        self._of_link: dict[Token, int] | None = {} if claimed.leases == "connection" else None
        """Tokens of leases that end with the link, with how often it had broken when they were taken."""
        self._line = cast("WaitingDriver", driver) if isinstance(driver, WaitingDriver) else None
        self._tracking = cast("TrackingDriver", driver) if claimed.has("tracking") else None

    @property
    def lease_timeout(self) -> float:
        """A lease that was neither settled nor extended for so many seconds may be rescued."""
        return self._driver.lease_timeout

    async def receive(
        self,
        limit: int,
        *,
        at_most: AtMost | Mapping[tuple[str, str], int] | None = None,
        max_wait: float = math.inf,
    ) -> list[Delivery]:
        """Lease up to `limit` ready messages by rank; wait at most `max_wait` seconds until there is one.

        While the link is down it goes on waiting, and raises `BrokerUnavailable` if it still is at the end.
        `at_most`: see `AtMost`. Cancelling loses nothing: what was claimed is returned, although the caller was
        cancelled meanwhile. Raises `UsageError` when the consumer is closed, also while it waits.
        """
        if limit < 1:
            raise ConfigurationError(f"receive needs a limit of at least 1, but got {limit}")
        self._check_open()
        limits, deadline = at_most_of(at_most), trio.current_time() + max_wait
        if self._line is not None and max_wait > 0:
            deliveries = await self._line.claim_or_wait(self.key, limit, limits, deadline)
            if not deliveries:
                self._check_open()
            return deliveries
        claim = _Claim(limit, limits)
        self._waiting.add(claim)
        try:
            return await self._claim_until(claim, deadline)
        finally:
            self._waiting.discard(claim)

    def set_limits(self, at_most: AtMost | Mapping[tuple[str, str], int] | None) -> None:
        """A `receive` of this consumer that waits just now heeds these limits from now on."""
        limits = at_most_of(at_most)
        if self._line is not None:
            self._line.set_limits(self.key, limits)
        for claim in self._waiting:
            claim.at_most = limits
        if self._waiting:
            self._hub.tell(_MAYBE_READY)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition with its outbox and result; answer in the same order.

        The outbox is in the same step where the server claims that, else it is published first. Raises
        `BrokerUnavailable` where there was no answer: make the same call again. What it settled after all is then
        answered as unknown, not as refused. Cancelling loses nothing, as for any other call.
        """
        check_settlements(self._calls.server, self._claimed, settlements, keeps_results=self._keeps_results)
        if self._result_store is not None:
            settlements = await self._store_results(self._result_store, settlements)
        settle = partial(self._driver.settle, self.key, settlements)
        try:
            verdicts = await self._calls("settle", settle, count=len(settlements))
        except NoAnswer:
            self._unanswered.update(settlement.delivery.token for settlement in settlements)
            raise
        if self._unanswered or self._of_link is not None:
            verdicts = [self._answered(one, verdict) for one, verdict in zip(settlements, verdicts, strict=True)]
        return verdicts

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start the lease of each anew, also of one that has ended and was not rescued yet. False: it is lost."""
        return await self._calls("extend", partial(self._driver.extend, self.key, deliveries), count=len(deliveries))

    def vouch(self, under_way: UnderWay) -> None:
        """Have an engine with a thread of its own extend what is under way while the event loop is blocked.

        Other engines do nothing: in this process nobody can take a lease while the loop is blocked, and from a remote
        engine others take what is not extended in time.
        """
        if isinstance(self._driver, SteadyDriver):
            self._driver.vouch(self.key, under_way)

    async def rescue(self) -> int:
        """Take back every lease that has ended, whoever holds it; how many, those that are poison now included."""
        return await self._calls("rescue", self._driver.rescue)

    async def suspects(self) -> int:
        """How many ready messages this consumer could be given if it held nothing else; 0 where nothing is isolated."""
        if not self._claimed.isolates:
            return 0
        claim = partial(self._driver.claim, self.key, 0, ANYTHING)
        return (await self._calls("suspects", claim, count=0)).suspects

    async def report(self, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
        """Note how far runs have come, until they are leased anew; what is not leased is passed over.

        Raises `ConfigurationError`, and notes nothing, where a number is not finite or a note is no text.
        """
        check_progress(progress)
        if self._tracking is not None:
            report = partial(self._tracking.report, self.key, progress)
            await self._calls("report", report, count=len(progress))

    async def events(self) -> list[LeaseEvent]:
        """Wait for lease events: leases that are lost, and runs that somebody cancels; each is given once.

        Cancelled, this call has taken none. Raises as `receive` when the consumer is closed.
        """
        with self._hub.subscribed("events") as subscription:
            while True:
                self._check_open()
                subscription.is_fresh = False
                events = self._lost_with_the_link()
                try:
                    if self._tracking is not None:
                        events += await self._calls("events", partial(self._tracking.events, self.key))
                except BrokerUnavailable:
                    if not (self._calls.is_down or events):
                        raise
                if events:
                    return events
                await self._hub.wait(subscription)

    async def _store_results(self, store: ResultStore, settlements: Sequence[Settlement]) -> list[Settlement]:
        """Store elsewhere what the engine cannot keep, before the messages are settled: after a crash, once more."""
        results = [settlement.result for settlement in settlements if settlement.result is not None]
        if results:
            await store.store_results(results)
        return [msgspec.structs.replace(settlement, result=None) for settlement in settlements]

    async def _claim_until(self, wanted: _Claim, deadline: float) -> list[Delivery]:
        with self._hub.subscribed("ready") as subscription:
            while True:
                subscription.is_fresh = False
                claim = partial(self._driver.claim, self.key, wanted.limit, wanted.at_most)
                try:
                    claimed = await self._calls("claim", claim, count=wanted.limit)
                except BrokerUnavailable:
                    if not self._calls.is_down or trio.current_time() >= deadline:
                        raise
                    await self._wait_out(subscription, deadline)
                    continue
                if self._of_link is not None:
                    self._of_link.update(dict.fromkeys((d.token for d in claimed.deliveries), self._losses))
                now = trio.current_time()
                if claimed.deliveries or now >= deadline:
                    await (
                        trio.lowlevel.cancel_shielded_checkpoint()
                    )  # other consumers have their turn before this one asks again
                    return claimed.deliveries
                await self._hub.wait(subscription, min(deadline, now + claimed.next_in))
                self._check_open()

    async def _wait_out(self, subscription: Subscription, deadline: float) -> None:
        """The link is down: wait for news, which the link's return is."""
        await self._hub.wait(subscription, deadline)
        self._check_open()

    def _answered(self, settlement: Settlement, verdict: Verdict) -> Verdict:
        """The verdict as it is to be understood: what was asked before and not answered may have been carried out."""
        token = settlement.delivery.token
        if self._of_link is not None:
            self._of_link.pop(token, None)
        if token not in self._unanswered:
            return verdict
        self._unanswered.discard(token)
        return UNKNOWN if verdict == REFUSED else verdict

    def _lost_with_the_link(self) -> list[LeaseEvent]:
        if self._of_link is None:
            return []
        lost = [token for token, losses in self._of_link.items() if losses != self._losses]
        for token in lost:
            del self._of_link[token]
        return [LeaseEvent(token, "lost") for token in lost]

    @property
    def _losses(self) -> int:
        return 0 if self._calls.link is None else self._calls.link.losses

    def _check_open(self) -> None:
        """Raise `NotConnected` as every call does, and `UsageError` when the consumer is closed."""
        self._calls.check()
        if not self.is_open:
            raise UsageError("this consumer is closed: use it inside its `async with server.consume(...)` block")
