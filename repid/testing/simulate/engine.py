"""The one engine of a simulated fleet, and the unreliable line that each process has to it.

`Engine` is the memory driver, with a record of each call in the history and a judgement by the account. A `Line` is
what one process has of it: a driver of its own, for a server of its own, that obeys the plan. It claims to be remote,
so the front door shields its calls, limits their time and opens the link again.

Theory. A call makes two trips. On the way there it can be lost, held up or overtaken, on the way back its answer can;
the work is one step of the engine between the two. `dead` is for ever: nothing of a killed process reaches the engine
any more.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any, cast

import trio
from msgspec.structs import replace

from ...brokers.door import Server
from ...brokers.memory.driver import MemoryDriver
from ...delivery import Release, Retry, Settlement
from ...envelope import Envelope
from ...errors import BrokerUnavailable, RepidError
from ...ports import (
    EVERYTHING,
    Driver,
    FullDriver,
    News,
    Role,
    ScheduleChange,
    Topics,
    Verdict,
    is_due_soon,
)
from .account import AFTERMATH, LONGEST_TRIPS, Account, Disturbances, Violation
from .clock import Nap, VirtualClock, raise_if_cancelled
from .history import History
from .plan import Fault
from .runs import Runs

CALLS = frozenset(
    name
    for kind in inspect.getmro(FullDriver)
    for name, member in vars(kind).items()
    if inspect.iscoroutinefunction(member)
) - {"news"}
"""The calls of a driver that has every role, except `link` and `news`."""

UNSEEN = frozenset(
    {"queues", "counts", "browse", "find", "snapshots", "events", "fetch_results", "now", "schedules", "due_schedules"}
)
"""Those that change nothing: they are left out of the history where nothing went wrong, and are no news."""

MAKES_READY = frozenset({"publish", "settle", "rescue", "subscribe", "unsubscribe", "revive", "tick", "pause"})
"""Calls after which there may be something to claim that nobody was told of."""

CHANGES_NO_MESSAGE = frozenset({"subscribe", "unsubscribe", "extend", "declare", "set_bounds"})

OFTEN = 0.55
"""How often a trip lets others have their turn; that both trips of a call do is rare, so that histories are quick."""


class SteppedDriver(MemoryDriver):
    """A memory driver whose wall clock can be stepped. Leases and delays do not follow that clock; schedules do.

    `step`: how far it was stepped in all, in seconds. `stepped_at`: when last, on trio's clock.
    """

    step = 0.0
    stepped_at = -math.inf

    async def now(self) -> float:
        """Seconds since 1970, as a clock says that somebody sets."""
        return await super().now() + self.step


class Engine:
    """What keeps the messages. `stop` is called once, with the first violation."""

    def __init__(
        self,
        lease_timeout: float,
        clock: VirtualClock,
        history: History,
        faults: Disturbances,
        chance: Random,
        stop: Callable[[Violation], None],
        latency: float = 0.0,
        without: Collection[Role] = (),
    ) -> None:
        self.clock = clock
        self.chance = chance
        self.latency = latency
        self.capabilities = replace(
            EVERYTHING, calls="remote", readers=False, roles=EVERYTHING.roles.difference(without)
        )
        self.driver = SteppedDriver(lease_timeout)
        self.history = history
        self.faults = faults
        self.account = Account(lease_timeout, faults, latency)
        self.runs = Runs(self.account, faults, stop, 1.5 * LONGEST_TRIPS * latency)
        self.lines: dict[Line, None] = {}
        self.away_until = 0.0
        self.changed = trio.lowlevel.ParkingLot()
        self._due = math.inf
        self._drops = 0
        self._stop = stop

    async def carry_out(self, process: str, name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """One call, in one step: nothing of the memory driver waits."""
        now = self.clock.current_time()
        try:
            answer = await getattr(self.driver, name)(*arguments, **options)
        except RepidError as error:
            self.history.call(now, process, name, arguments, error)
            raise
        if name not in UNSEEN:
            if name == "pause":
                arguments = (*arguments, options["paused"])
            if not (name == "claim" and not answer.deliveries):
                self.history.call(now, process, name, arguments, answer)
            try:
                self.account.judge(now, process, name, arguments, answer)
                if name == "settle":
                    self.runs.settled(process, arguments[1], answer)
                    await self._check_refused(arguments[1], answer)
            except Violation as violation:
                self.history.event(now, process, f"VIOLATION {violation}")
                self._stop(violation)
            has_schedules = name == "replace_schedules" and await self._is_any_due_soon(arguments[0], answer)
            self._tell(name, arguments, answer, has_schedules=has_schedules)
        return answer

    async def _check_refused(self, settlements: Sequence[Settlement], verdicts: Sequence[Verdict]) -> None:
        """A refused verdict has stored no result: while its message is alive, there is none."""
        ids = [
            one.result.id
            for one, verdict in zip(settlements, verdicts, strict=True)
            if not verdict.accepted and one.result is not None and self.account.is_alive(one.delivery.envelope.id)
        ]
        stored = [result.id for result in await self.driver.fetch_results(ids) if result is not None] if ids else []
        if stored:
            raise Violation(f"a verdict was refused, and its result is stored all the same: {', '.join(stored)}")

    def _tell(self, name: str, arguments: Sequence[Any], answer: Any, *, has_schedules: bool) -> None:
        """Wake the processes that wait for what has changed. An engine may wake too many; this one wakes few, so that a
        claim that only chance would have brought is missed.
        """
        if self.changed:
            self.changed.unpark_all()
        is_ready = self._is_something_ready(name, arguments, answer)
        has_events = name == "cancel" and "requested" in answer
        ids: Collection[str] | None = ()
        for line in self.lines:
            if line.watched:  # nobody asks about what was dropped
                ids = None if self.account.drops > self._drops else _ids_of(name, arguments, answer)
                break
        self._drops = self.account.drops
        changes = self.driver.store.changes
        has_room, changes.has_room = changes.has_room, False
        if is_ready or has_events or ids is None or ids or has_room or has_schedules:
            for line in self.lines:
                line.hear(
                    is_ready=is_ready, has_events=has_events, ids=ids, has_room=has_room, has_schedules=has_schedules
                )

    def _is_something_ready(self, name: str, arguments: Sequence[Any], answer: Any) -> bool:
        """Whether the call has given a claim something to find, or an earlier moment to wait for."""
        if name not in MAKES_READY:
            return False
        store, before = self.driver.store, self._due
        self._due = store.next_due()
        if self._due < before:
            return True
        for channel in store.channels.values():
            if (channel.lanes or channel.suspects) and not channel.paused:
                return _has_brought_something(name, arguments, answer)
        return False

    async def _is_any_due_soon(self, changes: Sequence[ScheduleChange], outcomes: Sequence[bool]) -> bool:
        """Whether any schedule was stored of which the workers must be told."""
        now = await self.driver.now()
        return any(is_stored and is_due_soon(new, now) for (_, new), is_stored in zip(changes, outcomes, strict=True))

    def restart(self, seconds: float) -> None:
        """Be away for some time. Every link breaks; what was stored stays."""
        self.away_until = max(self.away_until, trio.current_time() + seconds)
        for line in self.lines:
            line.break_link()


class Line:
    """A driver that obeys the plan, for the server of one process."""

    def __init__(self, engine: Engine, process: str, courier: trio.Nursery) -> None:
        self.process = process
        self.capabilities = engine.capabilities
        self.is_dead = False
        self.cut_until = 0.0
        self.slow_until = 0.0
        self.trip = 0.0
        self._engine = engine
        self._courier = courier
        self._armed: list[Fault] = []
        self._consumers: set[str] = set()
        self._news: News | None = None
        self.watched: Collection[str] = ()
        """The ids that its process watches."""
        self._nap: Nap | None = None
        """The wait for news that is under way, or was the last."""
        self._links = 0
        engine.lines[self] = None

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name not in CALLS:
            raise AttributeError(name)

        ask = self.__dict__[name] = partial(self._ask, name)
        return ask

    def server(self) -> Server:
        """A server of the process's own over this line."""
        return Server(cast("Driver", self))

    @property
    def lease_timeout(self) -> float:
        """Of the engine."""
        return self._engine.driver.lease_timeout

    def arm(self, fault: Fault) -> None:
        """Strike the next call of the fault's name."""
        self._armed.append(fault)

    def disarm(self) -> None:
        """Strike no call any more."""
        self._armed.clear()

    def hear(
        self,
        *,
        is_ready: bool = True,
        has_events: bool = True,
        ids: Collection[str] | None = None,
        has_room: bool = True,
        has_schedules: bool = True,
    ) -> None:
        """There is news of the engine; `ids` may have changed (None: any)."""
        is_ready, has_events = is_ready and bool(self._consumers), has_events and bool(self._consumers)
        if not self.watched:
            ids = ()
        elif ids is not None:
            ids = [id_ for id_ in ids if id_ in self.watched]
        has_schedules = has_schedules and bool(self._consumers)
        if not (is_ready or has_events or ids is None or ids or has_room or has_schedules):
            return
        before = self._news
        if before is not None:
            is_ready, has_events = is_ready or before.ready, has_events or before.events
            ids = None if ids is None or before.ids is None else {*ids, *before.ids}
            has_room, has_schedules = has_room or before.room, has_schedules or before.schedules
        self._news = News(is_ready, has_events, ids, has_room, has_schedules)
        if self._nap is not None:
            self._nap.wake()

    def break_link(self) -> None:
        """The calls that are under way fail, and the engine forgets who takes what."""
        self._links += 1

    @asynccontextmanager
    async def link(self, watched: Collection[str]) -> AsyncIterator[None]:
        """Open a link; raises `BrokerUnavailable` while the engine cannot be reached."""
        link = self._links
        await self._travel()
        await self._check_passes("link", link)
        self._links += 1
        self.watched = watched
        self.hear()
        try:
            yield
        finally:
            self._links += 1
            for consumer in sorted(self._consumers):
                await self._engine.carry_out(self.process, "unsubscribe", (consumer,), {})
            self._consumers.clear()

    async def subscribe(self, consumer: str, queues: Mapping[str, Topics]) -> None:
        """Note that a consumer takes these."""
        self._consumers.add(consumer)
        await self._ask("subscribe", consumer, queues)

    async def unsubscribe(self, consumer: str) -> None:
        """It takes nothing any more."""
        await self._ask("unsubscribe", consumer)
        self._consumers.discard(consumer)

    async def news(self, wait: float) -> News | None:
        """Wait for news. A process that is cut off hears of nothing until it is not."""
        clock = self._engine.clock
        until = clock.current_time() + wait
        if self._news is None:
            self._nap = nap = Nap(clock, until)
            await nap.rest()
            if not nap.was_woken:
                raise_if_cancelled()
                return None
        else:
            await trio.lowlevel.checkpoint()
        while (reachable_at := self._unreachable_until()) > trio.current_time():
            await clock.sleep_until(min(reachable_at, until))
            if trio.current_time() >= until:
                return None
        news, self._news = self._news, None
        return news

    async def _ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """One call. Where nothing goes wrong, others have their turn on one of the two trips, or on both."""
        fault = self._struck(name) if self._armed else None
        link, turn = self._links, self._engine.chance.random()
        if fault is not None:
            await self._lose_or_hold_up(fault, name, arguments, options)
        if turn < OFTEN or self.trip or self._engine.latency:
            await self._travel(pauses=turn < OFTEN)
        if self._may_be_broken(link):
            await self._check_passes(name, link)
        answer = await self._engine.carry_out(self.process, name, arguments, options)
        if fault is not None and fault.kind == "lose_answer":
            await self._silence(fault, f"the answer to {name} was lost")
        if fault is not None and fault.kind == "slow_answer":
            await trio.sleep(fault.seconds)
        if turn > 1.0 - OFTEN or self.trip or self._engine.latency:
            await self._travel(pauses=turn > 1.0 - OFTEN)
        if self._may_be_broken(link):
            await self._check_passes(name, link)
        return answer

    async def _travel(self, *, pauses: bool = True) -> None:
        """The time of one trip between the process and the engine."""
        if self.trip and trio.current_time() < self.slow_until:
            await trio.sleep(self.trip)
        elif self._engine.latency:
            takes = self._engine.latency * self._engine.chance.uniform(0.5, LONGEST_TRIPS / 2)
            await self._engine.clock.wait_until(trio.current_time() + takes)
        elif pauses:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _may_be_broken(self, link: int) -> bool:
        return bool(self.is_dead or link != self._links or self._engine.away_until or self.cut_until)

    async def _check_passes(self, name: str, link: int) -> None:
        """Raises `BrokerUnavailable` where the trip leads nowhere."""
        if self.is_dead or link != self._links:
            raise BrokerUnavailable(f"the link broke during {name}")
        if trio.current_time() < self._engine.away_until:
            raise BrokerUnavailable("the engine is away")
        if trio.current_time() < self.cut_until:
            await trio.sleep_until(self.cut_until)
            raise BrokerUnavailable(f"nothing passed for too long during {name}")

    def _unreachable_until(self) -> float:
        return math.inf if self.is_dead else max(self.cut_until, self._engine.away_until)

    def _struck(self, name: str) -> Fault | None:
        now = trio.current_time()
        fault = next((fault for fault in self._armed if fault.call == name), None)
        if fault is not None:
            self._armed.remove(fault)
            self._engine.history.event(now, self.process, f"fault: {fault}")
            self._engine.faults.add(self.process, now, now + fault.seconds + AFTERMATH)
        return fault

    async def _lose_or_hold_up(
        self, fault: Fault, name: str, arguments: Sequence[Any], options: Mapping[str, Any]
    ) -> None:
        if fault.kind == "lose_request":
            await self._silence(fault, f"{name} was lost")
        if fault.kind == "late_request":
            self._courier.start_soon(self._bring_late, fault.seconds, name, arguments, options)
            await trio.lowlevel.checkpoint()
            raise BrokerUnavailable(f"the link broke during {name}")
        if fault.kind == "slow_request":
            await trio.sleep(fault.seconds)

    async def _silence(self, fault: Fault, what: str) -> None:
        await trio.sleep(fault.seconds)
        raise BrokerUnavailable(what)

    async def _bring_late(
        self, seconds: float, name: str, arguments: Sequence[Any], options: Mapping[str, Any]
    ) -> None:
        """The engine reads what was sent before the link broke."""
        await trio.sleep(seconds)
        needs_consumer = name in {"claim", "report"}
        if not self.is_dead and name != "subscribe" and not (needs_consumer and arguments[0] not in self._consumers):
            await self._engine.carry_out(self.process, name, arguments, options)


def _has_brought_something(name: str, arguments: Sequence[Any], answer: Any) -> bool:
    """Whether a call of `MAKES_READY` has changed what waits, or who may take it."""
    match name:
        case "publish" | "revive":
            return None in answer
        case "settle":
            return any(one.outbox or isinstance(one.disposition, (Retry, Release)) for one in arguments[1])
        case "rescue":
            return bool(answer)
        case "tick":
            return bool(answer == "fired")
    return True


def _ids_of(name: str, arguments: Sequence[Any], answer: Any) -> Collection[str] | None:
    """The ids of the messages and results that a call may have changed; None: any."""
    if name in CHANGES_NO_MESSAGE or (name == "rescue" and not answer):
        return ()
    envelopes: list[Envelope] | None = None
    match name:
        case "publish":
            envelopes = arguments[0]
        case "claim":
            envelopes = [delivery.envelope for delivery in answer.deliveries]
        case "settle":
            envelopes = [envelope for one in arguments[1] for envelope in (one.delivery.envelope, *one.outbox)]
        case "report":
            envelopes = [delivery.envelope for delivery, _ in arguments[1]]
    return None if envelopes is None else [id_ for one in envelopes for id_ in (one.id, one.result_id)]
