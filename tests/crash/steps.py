"""How a child kills or stops itself at a named step: from outside, by what is put before the server's methods and `sqlite3.connect`.

Nothing of repid is changed: whatever a process does between two steps it does as it would without them.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from repid import BrokerRefused, DuplicateId, Envelope, NoAnswer, PublishUnknown, Server
from repid.delivery import Delivery, Settlement
from repid.ports import Consumer, Take, Topics, Verdict

from .engines import ENGINES, Name, server_class
from .journal import (
    Claimed,
    Confirmed,
    Extended,
    Intended,
    Journal,
    Judged,
    Kind,
    Lease,
    Proved,
    Settled,
    Settling,
    Stepped,
)
from .journal import now as clock

QUEUE = "work"
HEADERS = {"topic": "work"}

NOTHING_SPECIAL = 1_000_000
"""The number of a message that ends well at once. No producer counts so far."""

PRODUCER_STEPS = ("before publish", "after publish", "half publish")
WORKER_STEPS = (
    *(f"{when} {what}" for what in ("claim", "start", "finish", "settle") for when in ("before", "after")),
    "half settle",
    "stop run",
    "stop settle",
)
"""At the last two the process stops itself; whoever started it lets it go on. At all others it is killed."""


CALL_TIME = 0.004
"""Seconds within which most calls of a server are answered."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is told. `step` is taken when it is reached for the `nth` time; None: never.

    `prefix`, `count` and `rate` (messages per second) are for producers, `tasks` is for workers: how many they do at once; `life`: it does not live longer, in seconds.
    """

    engine: Name
    address: str
    name: str
    options: dict[str, int] = {}
    journal: str
    lease: float
    tasks: int
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
        self._counts_rows = ENGINES[orders.engine].counts_rows
        self._chance = random.Random(f"{orders.journal} {orders.seed}")
        if self._counts_rows and self._step is not None and self._step.startswith("half"):
            self._trace_transactions()

    def reach(self, step: str) -> None:
        """Kill or stop this process if it is its step and time."""
        if self._is_due(step):
            self._strike()

    def reach_half(self, step: str, changes: int) -> None:
        """If it is its step and time: be killed in the next transaction once it has changed so many rows.

        Where rows cannot be counted: very soon, when the request is made, sent, carried out or answered.
        """
        if not self._is_due(step):
            return
        if self._counts_rows:
            self._goal = changes
        else:
            signal.signal(signal.SIGALRM, lambda *_: self._strike())
            signal.setitimer(signal.ITIMER_REAL, self._chance.uniform(0.0001, CALL_TIME))

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


class DoomedServer(Server):
    """Comes before the class of a server: steps and a journal around what producers and workers ask of it.

    `tokens`: the latest lease of each message that this process has had. `unknown`: the ids of calls that had no answer.
    """

    doom: Doom
    order: Callable[[Any], int]
    tokens: dict[str, int]
    unknown: set[str]

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        doom, ids = self.doom, [envelope.id for envelope in envelopes]
        doom.journal.write(Intended(at=clock(), ids=ids))
        doom.reach("before publish")
        doom.reach_half("half publish", (len(ids) + 1) // 2)
        try:
            outcomes = await super().publish(envelopes)
        except PublishUnknown:
            self.unknown.update(ids)
            raise
        if self.unknown.issuperset(ids):
            outcomes = self._prove(ids, outcomes)
        doom.reach("after publish")
        sent = [id_ for id_, outcome in zip(ids, outcomes, strict=True) if outcome is None]
        doom.journal.write(Confirmed(at=clock(), ids=sent))
        return outcomes

    def _prove(self, ids: Sequence[str], outcomes: Sequence[BrokerRefused | None]) -> list[BrokerRefused | None]:
        """A call was made again: what is refused as a duplicate had been published."""
        existed = [id_ for id_, outcome in zip(ids, outcomes, strict=True) if isinstance(outcome, DuplicateId)]
        anew = [id_ for id_, outcome in zip(ids, outcomes, strict=True) if outcome is None]
        self.doom.journal.write(Proved(at=clock(), existed=existed, anew=anew))
        self.unknown.difference_update(ids)
        return [None if isinstance(outcome, DuplicateId) else outcome for outcome in outcomes]

    @asynccontextmanager
    async def consume(self, queues: Mapping[str, Topics]) -> AsyncGenerator[Any, None]:
        async with super().consume(queues) as consumer:
            yield cast("Consumer", _DoomedConsumer(consumer, self.doom, self.order, self.tokens))


def doomed_server(orders: Orders, doom: Doom) -> DoomedServer:
    """The server of the ordered engine."""
    engine = ENGINES[orders.engine]
    doomed = type("Doomed", (DoomedServer, server_class(orders.engine)), {})
    server = cast(
        "DoomedServer",
        doomed(**engine.options(orders.address, orders.name), lease_timeout=orders.lease, **orders.options),
    )
    server.doom, server.order, server.tokens, server.unknown = doom, engine.order, {}, set()
    return server


class _DoomedConsumer:
    """Goes in front of a consumer; what has no step and no line in the journal goes straight to it."""

    def __init__(self, consumer: Consumer, doom: Doom, order: Callable[[Any], int], tokens: dict[str, int]) -> None:
        self._consumer = consumer
        self._order = order
        self._doom = doom
        self._tokens = tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def receive(self, limit: int, *, take: Take | None = None, **limits: Any) -> list[Delivery]:
        self._doom.reach("before claim")
        asked = clock()

        def note_and_take(deliveries: list[Delivery]) -> None:
            self._doom.reach("after claim")
            leases = [Lease(one.envelope.id, self._order(one.token), one.attempt, one.lost) for one in deliveries]
            self._doom.journal.write(Claimed(at=clock(), asked=asked, leases=leases))
            self._tokens.update((lease.id, lease.token) for lease in leases)
            if take is not None:
                take(deliveries)

        return await self._consumer.receive(limit, take=note_and_take, **limits)

    async def extend(self, deliveries: Sequence[Delivery]) -> list[bool]:
        asked = clock()
        answers = await self._consumer.extend(deliveries)
        tokens = [self._order(delivery.token) for delivery, is_ours in zip(deliveries, answers, strict=True) if is_ours]
        self._doom.journal.write(Extended(at=clock(), asked=asked, tokens=tokens))
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        doom = self._doom
        doom.journal.write(Settling(at=clock(), verdicts=[self._judged(one) for one in settlements]))
        doom.reach("stop settle")
        doom.reach("before settle")
        doom.reach_half("half settle", len(settlements))
        try:
            verdicts = await self._consumer.settle(settlements)
        except NoAnswer:
            unanswered = [self._order(one.delivery.token) for one in settlements]
            doom.journal.write(Settled(at=clock(), accepted=[], refused=[], unanswered=unanswered))
            raise
        doom.reach("after settle")
        tokens: dict[str, list[int]] = {"settled": [], "refused": [], "unknown": []}
        for one, verdict in zip(settlements, verdicts, strict=True):
            tokens[verdict.outcome].append(self._order(one.delivery.token))
        settled = Settled(
            at=clock(), accepted=tokens["settled"], refused=tokens["refused"], unanswered=tokens["unknown"]
        )
        doom.journal.write(settled)
        return verdicts

    def _judged(self, settlement: Settlement) -> Judged:
        kind = cast("Kind", type(settlement.disposition).__name__)
        outbox = tuple(envelope.id for envelope in settlement.outbox)
        return Judged(settlement.delivery.envelope.id, self._order(settlement.delivery.token), kind, outbox)
