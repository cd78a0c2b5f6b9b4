"""Verdicts whose outbox has no room in a full queue, until there is some.

They are set aside, so that they hold up no other verdict and no run. Meanwhile nothing is claimed for the actors that
sent them, except for those that read that queue themselves: a worker that reads a queue and sends to it, as a pipeline
in one process does, must go on with what makes room. A worker that has very many of those stops claiming. For each
queue that is full one task stands in line with all who send there, and settles what was set aside in its order. It runs
only as long as there is something. A worker that ends releases these messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio

from ..delivery import Settlement
from ..errors import QueueFull
from ..ports import Consumer, SendingRun, Turn, Verdict
from .ledger import Ledger
from .sending import Sending

Note: TypeAlias = Callable[[list[Settlement], list[Verdict]], None]
"""Takes what was written, and the answers."""

FIRST_PIECE = 50
"""How many verdicts are tried together at first; then twice as many as there was room for."""


class SetAside:
    """`settle` asks the broker, and calls the function that it is given with the answers; `note` takes those that are
    final. `fail` takes a verdict for which there can be no room.

    `sources`: the (queue, topic) of messages whose verdicts wait, for which no more are to be claimed, with how many
    there are. `on_room` is called when there are no more of one of them.
    """

    def __init__(
        self,
        consumer: Consumer,
        ledger: Ledger,
        sending: Sending,
        settle: Callable[[list[Settlement], Note], Awaitable[None]],
        note: Note,
        fail: Callable[[Settlement, QueueFull], None],
    ) -> None:
        self.sources: Counter[tuple[str, str]] = Counter()
        self.on_room: Callable[[], None] = lambda: None
        self._ledger = ledger
        self._consumer = consumer
        self._run = SendingRun(sending, None)
        self._settle = settle
        self._note = note
        self._fail = fail
        self._by_queue: dict[str, list[Settlement]] = {}
        sending.aside = self._by_queue.keys()
        self._nursery: trio.Nursery | None = None

    @property
    def without_source(self) -> int:
        """How many wait though more of their (queue, topic) is claimed: they send to the queue that they came from."""
        return self._ledger.set_aside - self.sources.total()

    def __len__(self) -> int:
        return sum(map(len, self._by_queue.values()))

    @property
    def all(self) -> list[Settlement]:
        """What is set aside now. May be asked from any thread."""
        return [settlement for settlements in list(self._by_queue.values()) for settlement in settlements]

    def open(self, nursery: trio.Nursery) -> None:
        """Wait for room in tasks of this nursery from now on."""
        self._nursery = nursery

    def close(self) -> list[Settlement]:
        """Give up all, when the tasks have ended. From now on nothing can be added."""
        left = self.all
        self._ledger.put_aside(-len(left), -self._ledger.size_aside)
        self._by_queue.clear()
        self._nursery = None
        return left

    def add(self, settlement: Settlement, queue: str) -> bool:
        """Set a verdict aside until there is room in this queue. Returns False when that is over."""
        return self._add([settlement], queue)

    def _add(self, settlements: list[Settlement], queue: str) -> bool:
        if self._nursery is None:
            return False
        self._count(queue, settlements, 1)
        if queue in self._by_queue:
            self._by_queue[queue] += settlements
        else:
            self._by_queue[queue] = settlements
            self._nursery.start_soon(self._serve, queue)
        return True

    def divert(self, settlements: list[Settlement]) -> list[Settlement]:
        """Set those aside that send where others wait already; returns the rest."""
        rest: list[Settlement] = []
        aside: dict[str, list[Settlement]] = {}
        for settlement in settlements:
            queue = next((each.queue for each in settlement.outbox if each.queue in self._by_queue), None)
            if queue is None:
                rest.append(settlement)
            else:
                aside.setdefault(queue, []).append(settlement)
        for queue, waiting in aside.items():
            self._add(waiting, queue)
        return rest

    async def _serve(self, queue: str) -> None:
        aside = self._by_queue[queue]
        while aside:
            try:
                async with self._consumer.turn(queue, self._run) as turn:
                    await self._settle_in_turn(queue, aside, turn)
            except QueueFull as error:
                failed = aside.pop(0)
                self._count(queue, [failed], -1)
                self._fail(failed, error)
        del self._by_queue[queue]

    async def _settle_in_turn(self, queue: str, aside: list[Settlement], turn: Turn) -> None:
        piece = FIRST_PIECE
        while aside:
            batch = aside[:piece]
            waiting: list[Settlement] = []
            answered: list[tuple[Settlement, Verdict]] = []
            full: QueueFull | None = None
            heard: list[tuple[Settlement, Verdict]] = []
            await self._settle(batch, lambda *pairs: heard.extend(zip(*pairs, strict=True)))  # noqa: B023  now
            for one, verdict in heard:
                if verdict.full is not None and verdict.full.queue == queue and verdict.full.can_wait:
                    waiting.append(one)
                    full = full or verdict.full
                else:
                    answered.append((one, verdict))
            aside[: len(batch)] = waiting
            if answered:
                turn.moved()
                self._count(queue, [one for one, _ in answered], -1)
                self._note([one for one, _ in answered], [verdict for _, verdict in answered])
            piece = max(2 * len(answered), FIRST_PIECE)
            if full is not None:
                await turn.wait(full)

    def _count(self, queue: str, settlements: Sequence[Settlement], step: int) -> None:
        """Note that these wait for room in the queue from now on (step 1) or do not any more (step -1)."""
        had, size = len(self.sources), 0
        for settlement in settlements:
            envelope = settlement.delivery.envelope
            if envelope.queue != queue and envelope.topic is not None:
                source = (envelope.queue, envelope.topic)
                self.sources[source] += step
                if not self.sources[source]:
                    del self.sources[source]
                size += len(envelope.payload)
        self._ledger.put_aside(step * len(settlements), step * size)
        if len(self.sources) < had:
            self.on_room()


def without_room(settlements: Sequence[Settlement], verdicts: Sequence[Verdict]) -> list[tuple[Settlement, QueueFull]]:
    """Those that were not carried out because a queue is full."""
    return [(one, verdict.full) for one, verdict in zip(settlements, verdicts, strict=True) if verdict.full is not None]
