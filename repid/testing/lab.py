"""Where a check works: one broker, fresh and connected, its time, and the steps that most checks are made of."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from ..delivery import DeadLetter, Delivery, Disposition, NewResult, Settlement
from ..envelope import NO_OPTIONS, TOPIC, Envelope, Options
from ..errors import NotSupported
from ..ports import SETTLED, Broker, Capabilities, Category, Consumer, Counts, Topics, Verdict
from .cutting import Cut
from .expecting import expect
from .timing import Time

CATEGORIES: tuple[Category, ...] = ("ready", "scheduled", "leased", "dead")
QUEUES = ("q", "r")

MOST_READY = 20_000
"""More than any check makes ready: a server that gives more hands something out again and again."""


class Lab:
    """One fresh broker, connected, with the queues "q" and "r" declared.

    `moment` is the step in which checks let time pass, in seconds: a second where the clock can be moved, less where
    checks must wait. What a check measures may be off by `slack`.
    """

    def __init__(
        self,
        broker: Broker,
        capabilities: Capabilities,
        time: Time,
        another: Callable[[Broker], Broker] | None,
        cut: Cut | None = None,
    ) -> None:
        self.broker = broker
        self.capabilities = capabilities
        self.time = time
        self.moment = time.moment
        self.slack = time.moment / 2
        self._another = another
        self._cut = cut
        self._connection = AsyncExitStack()

    @property
    def cut(self) -> Cut:
        """What cuts the link to the engine."""
        assert self._cut is not None
        return self._cut

    @property
    def ends_with_link(self) -> bool:
        """Whether leases end with the link under which they were taken."""
        return self.capabilities.leases == "connection"

    # Connections

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Keep the broker connected for a block."""
        async with self._connection:
            await self._connection.enter_async_context(self.broker.connection())
            await self.broker.declare(QUEUES)
            yield

    async def close(self) -> None:
        """Leave the connection."""
        await self._connection.aclose()

    async def reopen(self) -> None:
        """Leave the connection and open it again."""
        await self.close()
        await self._connection.enter_async_context(self.broker.connection())

    @asynccontextmanager
    async def another(self) -> AsyncGenerator[Broker, None]:
        """A second client of the same storage, connected."""
        assert self._another is not None
        broker = self._another(self.broker)
        async with broker.connection():
            yield broker

    def consumer(self, topics: Topics = None, *queues: str) -> AbstractAsyncContextManager[Consumer]:
        """A consumer of "q", or of these queues."""
        return self.broker.consume(dict.fromkeys(queues or ("q",), topics))

    # Time

    async def advance(self, seconds: float) -> None:
        """Let this much of the broker's time pass."""
        await self.time.advance(seconds)

    async def outlive(self, consumer: Consumer) -> None:
        """Let a lease taken now end."""
        await self.time.advance(self.time.bearable(consumer.lease_timeout) * 1.1)

    async def idle(self) -> None:
        """Wait until all tasks wait."""
        await wait_all_tasks_blocked(self.time.cushion)

    async def soon(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Until the condition holds, which should be soon."""
        with trio.move_on_after(self.time.patience):
            while not await condition():  # noqa: ASYNC110  the condition is the broker's, which has no event for it
                await trio.sleep(self.time.cushion or 0.001)
            return
        expect(what, actual="waited in vain", expected="soon")

    # Steps

    async def publish(self, *envelopes: Envelope) -> None:
        """Publish in one call what must be accepted."""
        expect("the outcomes of publish", await self.broker.publish(envelopes), [None] * len(envelopes))

    async def take(self, consumer: Consumer, count: int) -> list[Delivery]:
        """Receive `count` messages, in as many calls as that needs."""
        deliveries: list[Delivery] = []
        with trio.move_on_after(self.time.patience):
            while len(deliveries) < count:
                deliveries += await consumer.receive(count - len(deliveries))
        expect("the number of messages received", len(deliveries), count)
        return deliveries

    async def take_one(self, consumer: Consumer) -> Delivery:
        """Receive one."""
        return (await self.take(consumer, 1))[0]

    async def drain(self, consumer: Consumer) -> list[Delivery]:
        """Receive what is ready now, all of it."""
        deliveries: list[Delivery] = []
        while more := await consumer.receive(100, max_wait=0):
            deliveries += more
            if len(deliveries) > MOST_READY:
                expect("what is received", f"no end of it after {MOST_READY} messages", "an end")
        return deliveries

    async def settle(
        self,
        consumer: Consumer,
        delivery: Delivery,
        disposition: Disposition,
        *outbox: Envelope,
        result: NewResult | None = None,
    ) -> Verdict:
        """Settle one delivery."""
        verdicts = await consumer.settle([Settlement(delivery, disposition, outbox, result)])
        expect("the number of verdicts", len(verdicts), 1)
        return verdicts[0]

    async def woken(self, consumer: Consumer, cause: Callable[[], Awaitable[object]], limit: int = 1) -> list[str]:
        """The ids that a waiting `receive` of this consumer gets soon after `cause`, and not before."""
        received: list[Delivery] = []
        ended = trio.Event()

        async def wait() -> None:
            received.extend(await consumer.receive(limit))
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await self.idle()
            expect("what a receive gave before there was anything", ids(received), [])
            await cause()
            with trio.move_on_after(self.time.patience):
                await ended.wait()
            nursery.cancel_scope.cancel()
        return ids(received)

    async def settle_all(
        self, consumer: Consumer, deliveries: Sequence[Delivery], disposition: Disposition
    ) -> list[Verdict]:
        """Settle several deliveries in one call, all in the same way."""
        return await consumer.settle([Settlement(delivery, disposition) for delivery in deliveries])

    async def kill(self, *envelopes: Envelope) -> None:
        """Publish these and make them dead; nothing else may be ready in their queues."""
        await self.publish(*envelopes)
        async with self.consumer(None, *{envelope.queue for envelope in envelopes}) as consumer:
            deliveries = await self.take(consumer, len(envelopes))
            verdicts = await self.settle_all(consumer, deliveries, DeadLetter("nacked"))
        expect("the verdicts on dead letters", verdicts, [SETTLED] * len(envelopes))

    # Looking

    async def places(self, *queues: str) -> dict[str, str]:
        """Where each message of these queues ("q" and "r" if none is given) is: category by id.

        One that is in two places is said to be in "ready+dead".
        """
        found: dict[str, list[str]] = {}
        for queue in queues or QUEUES:
            for category in CATEGORIES:
                for browsed in await self.broker.browse(queue, category, limit=100_000):
                    found.setdefault(browsed.envelope.id, []).append(category)
        return {id_: "+".join(categories) for id_, categories in found.items()}

    async def browsed(self, category: Category, queue: str = "q") -> list[str]:
        """The ids that `browse` shows, in its order."""
        return [browsed.envelope.id for browsed in await self.broker.browse(queue, category)]

    async def placed(self, what: str, expected: Mapping[str, str]) -> None:
        """Expect the messages of "q" and "r" to be in these places, and no others. Says nothing where none can be
        shown.
        """
        if self.capabilities.has("queue_admin"):
            expect(what, await self.places(), expected)

    async def counted(self, what: str, queue: str, expected: Counts) -> None:
        """Expect these counts. Says nothing where the server does not count."""
        if self.capabilities.has("queue_admin"):
            expect(what, await self.broker.counts(queue), expected)

    async def refused(self, what: str, call: Callable[[], Awaitable[object]]) -> None:
        """Expect the call to raise `NotSupported`."""
        try:
            answer = await call()
        except NotSupported:
            return
        expect(f"what {what} does", answer, NotSupported)

    async def expired(self, *expected: str, queue: str = "q") -> None:
        """Expect these messages, and no others, to be dead because their ttl has passed.

        A broker may notice that late, but not later than when it is asked to rescue or to deliver.
        """
        async with self.consumer(None, queue) as consumer:
            await consumer.rescue()
            await consumer.receive(1, max_wait=0)

        async def noticed() -> bool:
            dead.clear()
            dead.update({found.envelope.id: found.reason for found in await self.broker.browse(queue, "dead")})
            return len(dead) >= len(expected)

        dead: dict[str, str | None] = {}
        await self.soon(f"{', '.join(expected)} dead", noticed)
        expect("what is dead, and why", dead, dict.fromkeys(expected, "expired"))


def message(
    id_: str, queue: str = "q", *, topic: str | None = None, payload: bytes = b"x", options: Options = NO_OPTIONS
) -> Envelope:
    """An envelope as most checks need it."""
    return Envelope(id_, queue, payload, headers={} if topic is None else {TOPIC: topic}, options=options)


def messages(count: int, prefix: str = "m", queue: str = "q") -> list[Envelope]:
    """`count` envelopes, with ids in order."""
    return [message(f"{prefix}{n}", queue) for n in range(count)]


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    """The ids of what was delivered."""
    return [delivery.envelope.id for delivery in deliveries]
