"""How a child kills or stops itself at a named step: from outside, by wrapping the server and `sqlite3.connect`.

Nothing of repid is changed: whatever a process does between two steps it does as it would without them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from repid import BrokerRefused, Envelope, SQLiteServer
from repid.brokers.sqlite.server import Synchronous
from repid.delivery import Delivery, Settlement
from repid.ports import Consumer, Topics, Verdict

from .journal import Claimed, Confirmed, Extended, Intended, Journal, Judged, Kind, Lease, Settled, Settling, Stepped
from .journal import now as clock

QUEUE = "work"

PRODUCER_STEPS = ("before publish", "after publish", "half publish")
WORKER_STEPS = (
    *(f"{when} {what}" for what in ("claim", "start", "finish", "settle") for when in ("before", "after")),
    "half settle",
    "stop run",
    "stop settle",
)
"""At the last two the process stops itself; whoever started it lets it go on. At all others it is killed."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is told. `step` is taken when it is reached for the `nth` time; None: never.

    `prefix`, `count` and `rate` (messages per second) are for producers; `life`: it does not live longer, in seconds.
    """

    database: str
    journal: str
    synchronous: Synchronous
    lease: float
    seed: int
    life: int
    step: str | None = None
    nth: int = 1
    prefix: str = ""
    count: int = 0
    rate: float = 0.0


def obey(arguments: Sequence[str]) -> tuple[Orders, Doom]:
    """Read the orders, and tie this process's life to that of the one which gave them."""
    parent, orders = int(arguments[1]), msgspec.json.decode(arguments[2], type=Orders)
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit("whoever started this process has ended")
    signal.alarm(orders.life)
    return orders, Doom(Journal(Path(orders.journal)), orders)


class Doom:
    """Strikes once, when the ordered step is reached for the ordered time."""

    def __init__(self, journal: Journal, orders: Orders) -> None:
        self.journal = journal
        self._step = orders.step
        self._left = orders.nth
        self._goal: int | None = None
        self._began: int | None = None
        if self._step is not None and self._step.startswith("half"):
            self._trace_transactions()

    def reach(self, step: str) -> None:
        """Kill or stop this process if it is its step and time."""
        if self._is_due(step):
            self._strike()

    def reach_half(self, step: str, changes: int) -> None:
        """If it is its step and time: be killed in the next transaction once it has changed so many rows."""
        if self._is_due(step):
            self._goal = changes

    def _is_due(self, step: str) -> bool:
        self._left -= step == self._step
        return self._left == 0 and step == self._step

    def _strike(self) -> None:
        assert self._step is not None
        self.journal.write(Stepped(at=clock(), step=self._step))
        os.kill(os.getpid(), signal.SIGSTOP if self._step.startswith("stop") else signal.SIGKILL)

    def _trace_transactions(self) -> None:
        connect = sqlite3.connect

        def connect_traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = cast("sqlite3.Connection", connect(*arguments, **options))
            connection.set_trace_callback(partial(self._before_statement, connection))
            return connection

        sqlite3.connect = connect_traced  # type: ignore[assignment]  # in this process only

    def _before_statement(self, connection: sqlite3.Connection, statement: str) -> None:
        """SQLite calls this before each statement, and before each row of `executemany`. COMMIT is the last chance."""
        if self._goal is None:
            return
        if statement.startswith("BEGIN"):
            self._began = connection.total_changes
        elif self._began is not None and (
            connection.total_changes - self._began >= self._goal or statement.startswith("COMMIT")
        ):
            self._strike()


class DoomedServer(SQLiteServer):
    """The SQLite server, with steps and a journal around what producers and workers ask of it."""

    def __init__(self, orders: Orders, doom: Doom) -> None:
        super().__init__(orders.database, synchronous=orders.synchronous, lease_timeout=orders.lease)
        self._doom = doom
        self.tokens: dict[str, int] = {}
        """The latest lease of each message that this process has had."""

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        doom, ids = self._doom, [envelope.id for envelope in envelopes]
        doom.journal.write(Intended(at=clock(), ids=ids))
        doom.reach("before publish")
        doom.reach_half("half publish", (len(ids) + 1) // 2)
        outcomes = await super().publish(envelopes)
        doom.reach("after publish")
        sent = [id_ for id_, outcome in zip(ids, outcomes, strict=True) if outcome is None]
        doom.journal.write(Confirmed(at=clock(), ids=sent))
        return outcomes

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[Any, None]:
        async with super().consume(queues) as consumer:
            yield cast("Consumer", _DoomedConsumer(consumer, self._doom, self.tokens))


class _DoomedConsumer:
    """Goes in front of a consumer; what has no step and no line in the journal goes straight to it."""

    def __init__(self, consumer: Consumer, doom: Doom, tokens: dict[str, int]) -> None:
        self._consumer = consumer
        self._doom = doom
        self._tokens = tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def receive(self, limit: int, **limits: Any) -> list[Delivery]:
        self._doom.reach("before claim")
        asked = clock()
        deliveries = await self._consumer.receive(limit, **limits)
        if deliveries:
            self._doom.reach("after claim")
            leases = [Lease(one.envelope.id, one.token, one.attempt, one.lost) for one in deliveries]
            self._doom.journal.write(Claimed(at=clock(), asked=asked, leases=leases))
            self._tokens.update((lease.id, lease.token) for lease in leases)
        return deliveries

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        asked = clock()
        answers = await self._consumer.extend(deliveries)
        tokens = [delivery.token for delivery, is_ours in zip(deliveries, answers, strict=True) if is_ours]
        self._doom.journal.write(Extended(at=clock(), asked=asked, tokens=tokens))
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        doom = self._doom
        doom.journal.write(Settling(at=clock(), verdicts=[_judged(settlement) for settlement in settlements]))
        doom.reach("stop settle")
        doom.reach("before settle")
        doom.reach_half("half settle", len(settlements))
        verdicts = await self._consumer.settle(settlements)
        doom.reach("after settle")
        answers = [(one.delivery.token, verdict.accepted) for one, verdict in zip(settlements, verdicts, strict=True)]
        accepted = [token for token, is_accepted in answers if is_accepted]
        refused = [token for token, is_accepted in answers if not is_accepted]
        doom.journal.write(Settled(at=clock(), accepted=accepted, refused=refused))
        return verdicts


def _judged(settlement: Settlement) -> Judged:
    kind = cast("Kind", type(settlement.disposition).__name__)
    outbox = tuple(envelope.id for envelope in settlement.outbox)
    return Judged(settlement.delivery.envelope.id, settlement.delivery.token, kind, outbox)
