"""A consumer of any engine: claim, wait for news, claim again.

Theory. A driver never waits for messages, so `receive` waits here: it claims what is ready; if that is nothing, it
waits for news, or until the next message is due, and claims again. News is only a hint, so a claim that finds nothing
is no error. Some drivers can do more, and then there is less to do here: a `WaitingDriver` waits by itself, a
`GivingDriver` leases a message to a consumer before it tells of it, and a `WakingDriver`, which wakes only some
consumers, is told when one does not wait any more.

* What was claimed is never lost: `take` is called with it in the step in which it is known, and it is returned although
  the caller was cancelled.
* The token of a settlement that was not answered is in `_unanswered`. The engine may have carried it out, so if it is
  refused when it is sent again, the verdict is "unknown".
* Where leases end with the link, `_of_link` has the number of losses of the link at which each was taken. A lease with
  another number than now is lost, and `events` says so.
* A driver answers with each cancellation until the lease has ended. `_told` has its last answer, so that each is told
  once.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import cast

import trio

from ..delivery import Delivery, Progress, Settlement, Token
from ..errors import BrokerUnavailable, ConfigurationError, NoAnswer, UsageError
from ..ports import (
    ANYTHING,
    REFUSED,
    UNKNOWN,
    AtMost,
    Claimed,
    Driver,
    GivingDriver,
    LeaseEvent,
    News,
    ResultStore,
    SendingRun,
    SteadyDriver,
    Take,
    Topics,
    TrackingDriver,
    UnderWay,
    Verdict,
    WaitingDriver,
    WakingDriver,
    at_most_of,
    store_apart,
)
from .checks import check_progress, check_settlements
from .shared.calls import Calls
from .shared.hub import Subscription
from .shared.lines import Lines, Place

_MAYBE_READY = News(ready=True, events=False, ids=(), room=False, schedules=False)


def _to_nobody(_: list[Delivery]) -> None:
    """For callers that only use what `receive` returns."""


class _Claim:
    """A `receive` that waits: how many messages it takes, and within which limits. `given`: what it has got while it
    waited.
    """

    __slots__ = ("at_most", "given", "limit")

    def __init__(self, limit: int, at_most: AtMost) -> None:
        self.limit = limit
        self.at_most = at_most
        self.given: list[Delivery] = []


class Consumer:
    """Leases messages of some queues of one server to one worker.

    Messages that it handed over stay leased when its block is left, until they are settled or rescued: `settle` and
    `extend` work as long as the server is connected. All its calls may run at the same time. It survives a broken link.
    """

    def __init__(
        self,
        calls: Calls,
        driver: Driver,
        lines: Lines,
        key: str,
        queues: Mapping[str, Topics],
        result_store: ResultStore | None,
    ) -> None:
        self.key = key
        self.queues = {name: None if topics is None else frozenset(topics) for name, topics in queues.items()}
        self.is_open = True
        self._calls = calls
        self._driver = driver
        self._lines = lines
        self._hub = lines.hub
        self._result_store = result_store
        self._claimed = claimed = driver.capabilities
        self._keeps_results = result_store is not None or claimed.has("results")
        self._waiting: set[_Claim] = set()
        self._unanswered: set[Token] = set()
        """Tokens of leases whose settlement was sent and not answered."""
        self._told: frozenset[LeaseEvent] = frozenset()
        """The events in the driver's last answer: it repeats those that still matter."""
        self._of_link: dict[Token, int] | None = {} if claimed.leases == "connection" else None
        """Tokens of leases that end with the link, with how often it had broken when they were taken."""
        # By `hasattr`: from Python 3.12 on `isinstance` does not see what a wrapper hands on, as `testing.Cut` does.
        self._line = cast("WaitingDriver", driver) if hasattr(driver, "claim_or_wait") else None
        self._waking = cast("WakingDriver", driver) if hasattr(driver, "stop_waiting") else None
        self._giving = cast("GivingDriver", driver) if hasattr(driver, "given") else None
        self._tracking = cast("TrackingDriver", driver) if claimed.has("tracking") else None

    @property
    def lease_timeout(self) -> float:
        """Seconds after which a lease that was neither settled nor extended may be rescued."""
        return self._driver.lease_timeout

    async def receive(
        self,
        limit: int,
        *,
        at_most: AtMost | Mapping[tuple[str, str], int] | None = None,
        max_wait: float = math.inf,
        take: Take | None = None,
    ) -> list[Delivery]:
        """Lease up to `limit` ready messages by rank; wait at most `max_wait` seconds until there is one.

        While the link is down it goes on waiting, and raises `BrokerUnavailable` if the link is still down at the end.
        `at_most`: see `AtMost`. Cancelling loses nothing: what was claimed is returned although the caller was
        cancelled. `take` is called with it first, as soon as it is known: with an engine in this process, in the step
        of the publisher. It must not raise. Raises `UsageError` when the consumer is closed, also while it waits.
        """
        take = take or _to_nobody
        if limit < 1:
            raise ConfigurationError(f"receive needs a limit of at least 1, but got {limit}")
        self._check_open()
        limits, deadline = at_most_of(at_most), trio.current_time() + max_wait
        if self._line is not None and max_wait > 0:
            wait = partial(self._line.claim_or_wait, self.key, limit, limits, deadline, take)
            deliveries = await (self._calls("claim", wait, count=limit) if self._calls.instruments else wait())
            if deliveries:
                self._lines.tell_of_room()
            else:
                self._check_open()
            return deliveries
        claim = _Claim(limit, limits)
        self._waiting.add(claim)
        try:
            return await self._claim_until(claim, deadline, take)
        finally:
            self._waiting.discard(claim)
            if self._waking is not None and not self._waiting:
                self._waking.stop_waiting(self.key)

    def set_limits(self, at_most: AtMost | Mapping[tuple[str, str], int] | None) -> None:
        """Have a `receive` of this consumer that is waiting use these limits from now on."""
        limits = at_most_of(at_most)
        if self._line is not None:
            self._line.set_limits(self.key, limits)
        for claim in self._waiting:
            claim.at_most = limits
        if self._waiting:
            self._hub.tell(_MAYBE_READY)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Carry out each disposition with its outbox and result; answer in the same order.

        The outbox is in the same step if the server claims that, else it is published first. An outbox for which a full
        queue has no room is answered with "full": nothing was done. Raises `BrokerUnavailable` if there was no answer:
        make the same call again. What the first call settled is then answered as unknown, not as refused. Cancelling
        loses nothing.
        """
        check_settlements(self._calls.server, self._claimed, settlements, keeps_results=self._keeps_results)
        if self._result_store is not None:
            settlements = await store_apart(self._result_store, settlements)
        settle = partial(self._driver.settle, self.key, settlements)
        try:
            verdicts = await self._calls("settle", settle, count=len(settlements))
        except NoAnswer:
            self._unanswered.update(settlement.delivery.token for settlement in settlements)
            raise
        if self._unanswered or self._of_link is not None:
            verdicts = [self._answered(one, verdict) for one, verdict in zip(settlements, verdicts, strict=True)]
        return verdicts

    def turn(self, queue: str, run: SendingRun | None) -> AbstractAsyncContextManager[Place]:
        """Wait, before the block, for this call's turn to look for room in a full queue, among all that wait
        for that.
        """
        return self._lines.turn(queue, run)

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Start each lease anew, also one that has ended and was not rescued yet. False: that lease is lost."""
        return await self._calls("extend", partial(self._driver.extend, self.key, deliveries), count=len(deliveries))

    def vouch(self, under_way: UnderWay) -> None:
        """Have a thread of the engine's driver extend these leases while the event loop is blocked.

        An engine in this process has none: no lease can be taken while the loop is blocked. From a remote one whose
        driver has none, other workers take the leases that were not extended in time.
        """
        if hasattr(self._driver, "vouch"):
            cast("SteadyDriver", self._driver).vouch(self.key, under_way)

    async def rescue(self) -> int:
        """Take back every lease that has ended, of any consumer; returns how many, with those whose message is poison
        now.
        """
        return await self._calls("rescue", self._driver.rescue)

    async def suspects(self) -> int:
        """How many ready messages this consumer could get if it held no message; 0 if the engine isolates none."""
        if not self._claimed.isolates:
            return 0
        claim = partial(self._driver.claim, self.key, 0, ANYTHING)
        return (await self._calls("suspects", claim, count=0)).suspects

    async def report(self, progress: Sequence[tuple[Delivery, Progress | None]]) -> None:
        """Note how far runs have come, until their messages are leased anew. Deliveries whose lease is lost are left
        out.

        Raises `ConfigurationError`, and notes nothing, if a number is not finite or a note is not text.
        """
        check_progress(progress)
        if self._tracking is not None:
            report = partial(self._tracking.report, self.key, progress)
            await self._calls("report", report, count=len(progress))

    async def wait_link(self, at_most: float) -> None:
        """Wait this many seconds, or until the link is up again if it is down: what failed may be done then."""
        with trio.move_on_after(at_most):
            await self._calls.wait_up()

    async def events(self) -> list[LeaseEvent]:
        """Wait for lease events: leases that are lost, and runs that were cancelled; each is given once.

        If this call is cancelled, it has taken none. Raises as `receive` when the consumer is closed.
        """
        with self._hub.subscribed("events") as subscription:
            while True:
                self._check_open()
                subscription.is_fresh = False
                events = self._lost_with_the_link()
                try:
                    if self._tracking is not None:
                        events += self._new_of(await self._calls("events", partial(self._tracking.events, self.key)))
                except BrokerUnavailable:
                    if not (self._calls.is_down or events):
                        raise
                if events:
                    return events
                await self._hub.wait(subscription)

    def _new_of(self, events: Sequence[LeaseEvent]) -> list[LeaseEvent]:
        """Those events of a driver's answer that were not in the answer before."""
        told, self._told = self._told, frozenset(events)
        return [event for event in events if event not in told]

    async def _claim_until(self, wanted: _Claim, deadline: float, take: Take) -> list[Delivery]:
        has_waited = False
        with self._hub.subscribed("ready") as subscription:
            while True:
                subscription.is_fresh = False
                claim = self._to_claim(wanted, waits=trio.current_time() < deadline)
                try:
                    claimed = await self._calls("claim", claim, count=wanted.limit)
                except BrokerUnavailable:
                    if not self._calls.is_down or trio.current_time() >= deadline:
                        raise
                    await self._hub.wait(subscription, deadline)  # until the link is up again, which is news
                    self._check_open()
                    continue
                if self._of_link is not None:
                    self._of_link.update(dict.fromkeys((d.token for d in claimed.deliveries), self._losses))
                now = trio.current_time()
                if claimed.deliveries:
                    take(claimed.deliveries)
                    self._lines.tell_of_room()
                if claimed.deliveries or now >= deadline:
                    self._wake_others()
                    if not has_waited:  # other consumers have their turn before this one asks again
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    return claimed.deliveries
                due = now + claimed.next_in
                has_news = await self._wait_or_be_given(wanted, subscription, min(deadline, due), take)
                if wanted.given:
                    self._wake_others()
                    return wanted.given
                has_waited = True
                self._check_open()
                if not has_news and due > deadline and not self._calls.is_down:
                    return []  # a claim at this moment would find nothing, and the next `receive` begins with one

    async def _wait_or_be_given(self, wanted: _Claim, subscription: Subscription, until: float, take: Take) -> bool:
        """Wait for news. What the engine leases to this consumer with it is in `wanted.given` then, and was taken in
        that step.
        """
        if self._giving is None or self._calls.instruments:  # these are shown a claim
            return await self._hub.wait(subscription, until)
        giving = self._giving

        def look() -> None:
            if self.is_open and not wanted.given:
                wanted.given = giving.given(self.key, wanted.at_most)
                if wanted.given:
                    take(wanted.given)
                    self._lines.tell_of_room()

        subscription.look = look
        try:
            return await self._hub.wait(subscription, until)
        finally:
            subscription.look = None

    def _wake_others(self) -> None:
        """Have the other claims of this consumer made again: after one that has ended, the engine does not
        wake them.
        """
        if self._waking is not None and len(self._waiting) > 1:
            self._hub.tell(_MAYBE_READY)

    def _to_claim(self, wanted: _Claim, *, waits: bool) -> Callable[[], Awaitable[Claimed]]:
        """The driver's claim. One that wakes only some consumers is told of those that do not wait."""
        if waits or self._waking is None:
            return partial(self._driver.claim, self.key, wanted.limit, wanted.at_most)
        return partial(self._waking.claim, self.key, wanted.limit, wanted.at_most, waits=False)

    def _answered(self, settlement: Settlement, verdict: Verdict) -> Verdict:
        """The verdict on a settlement. One that was sent before and not answered may have been carried out then."""
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
