"""Channel → actor → verdict: one long-lived task that runs deliveries one after another."""

from __future__ import annotations

import logging
import math
import time
import types
from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from typing import Any

import msgspec
import trio

from ..codec import encode_json
from ..delivery import (
    ACK,
    CancelRequested,
    Delivery,
    Event,
    Expired,
    Failure,
    Keep,
    LeaseExpired,
    PayloadRefused,
    Phase,
    Raised,
    Returned,
    Settlement,
    Stopping,
    TimedOut,
    decide,
)
from ..errors import LeaseLost, PayloadError
from ..inject import Message
from .backends import abandoned
from .crew import Crew, Desk
from .failures import failure_of, log_failure, split, stops_the_worker
from .roles import Role
from .timer import Cause

log = logging.getLogger("repid.worker")

RUNS_PER_CHECKPOINT = 16
TIME_PER_CHECKPOINT = 0.001
"""After so many runs, or seconds, without one there is a checkpoint."""

CHECKPOINTS_PER_RUN = 4
"""A run may yield to others so often before it counts as one that waits for something."""

CHECKPOINT: Any = trio.lowlevel.cancel_shielded_checkpoint().send(None)  # noqa: ASYNC105  its first step by hand
"""What a coroutine yields that waits for nothing and only lets others run: it is resumed in the next turn."""


class Run(msgspec.Struct, eq=False, gc=False):
    """One delivery in the hands of an executor. `acked_first`: settled before the start. `began`: if it has limits."""

    role: Role
    delivery: Delivery
    message: Message | None
    arguments: dict[str, Any]
    acked_first: bool = False
    called: bool = False
    began: float = 0.0
    context: Context | None = None

    @property
    def phase(self) -> Phase:
        """How far it has come."""
        if self.acked_first or (self.message is not None and self.message.is_acted_on):
            return Phase.DECIDED
        return Phase.RUNNING


class Executor:
    """Runs deliveries. It has one cancel scope, which is replaced when it was used; the crew's timer holds the deadlines."""

    __slots__ = ("_batch", "_cause", "_crew", "_desk", "_ledger", "_run", "_scope", "_settler", "deadline")

    def __init__(self, crew: Crew, desk: Desk) -> None:
        self._crew = crew
        self._desk = desk
        self._ledger = crew.ledger
        self._settler = crew.settler
        self._batch: list[Delivery] = []
        self._run: Run | None = None
        self._cause: Cause | None = None
        self._scope = trio.CancelScope()
        self.deadline = math.inf
        """When the present run's timeout ends, on trio's clock."""
        crew.executors.append(self)

    @property
    def name(self) -> str:
        """What it runs, in words for a log."""
        run = self._run
        return "nothing" if run is None else f"actor {run.role.actor.name!r} (message {run.delivery.envelope.id!r})"

    async def work(self) -> None:
        """Run deliveries until the channel is closed. Cancelled: releases the one it holds, if any."""
        while True:
            try:
                with self._scope:
                    await self._serve()
            except trio.EndOfChannel:
                return
            except BaseException:
                self._interrupted()
                raise
            if self._run is not None and self._cause is not None:
                self._cut_short(self._run, self._cause)
            self._cause = None
            self._scope = trio.CancelScope()

    def cut_off(self, delivery: Delivery, cause: Cause) -> None:
        """Cancel the run of a delivery, if it is still the present one; the cause decides its fate once it has ended."""
        if self._run is not None and self._run.delivery is delivery:
            self.deadline = math.inf
            self._cause = self._cause or cause
            self._scope.cancel()

    async def _serve(self) -> None:
        """Run deliveries until the channel is closed (raises `trio.EndOfChannel`) or the scope is used up (returns)."""
        crew, ledger = self._crew, self._ledger
        clock = time.perf_counter
        while True:
            runs, due = 0, clock() + TIME_PER_CHECKPOINT
            while not ledger.is_congested:
                if not self._batch:
                    self._batch = crew.take_nowait()
                    if not self._batch:
                        self._batch = await crew.take()
                        runs, due = 0, clock() + TIME_PER_CHECKPOINT
                runs += 1
                run = self._admit(self._batch.pop())
                if run is not None:
                    self._run = run
                    rest = self._call(run) if run.role.starts_at_once else self._prepare_and_run(run)
                    if rest is not None:
                        await rest
                        if self._cause is not None:
                            return
                        runs, due = 0, clock() + TIME_PER_CHECKPOINT
                if runs >= RUNS_PER_CHECKPOINT or clock() >= due:
                    break
            if self._batch:
                crew.give(self.hand_back())
            await trio.lowlevel.checkpoint()
            await ledger.wait_to_settle()

    def hand_back(self) -> list[Delivery]:
        """Give up what it has taken and not started."""
        batch, self._batch = self._batch, []
        return batch

    def _admit(self, delivery: Delivery) -> Run | None:
        """Turn a held delivery into a run; None: it was settled, parked or dropped instead."""
        crew, ledger = self._crew, self._ledger
        envelope = delivery.envelope
        role = crew.roles.find[envelope.queue](envelope)
        if delivery not in ledger.leases:  # lost while it was held
            crew.drop(role)
            return None
        if role is None:
            crew.unrouted(delivery)
            return None
        if delivery in ledger.cancelled_leases:
            self._turn_away(role, delivery, CancelRequested())
        elif delivery.lost and crew.follow(delivery):
            return None
        elif role.limits and (full := next((limit for limit in role.limits if limit.is_full), None)) is not None:
            crew.park(full, role, delivery)
        elif delivery.ttl_left is not None and ledger.has_expired(delivery):
            self._turn_away(role, delivery, Expired())
        else:
            return self._bind(role, delivery)
        return None

    def _bind(self, role: Role, delivery: Delivery) -> Run | None:
        """Decode the payload to the actor's arguments; None: it does not fit, and was settled."""
        ledger, envelope = self._ledger, delivery.envelope
        message = Message(delivery, role.terms(delivery), self._desk) if role.needs_message else None
        try:
            run = Run(role, delivery, message, role.bind(envelope, message))
        except PayloadError as error:
            log.error("message %r does not fit actor %r: %s", envelope.id, role.actor.name, error)  # noqa: TRY400
            self._turn_away(role, delivery, PayloadRefused(Failure("PayloadError", str(error))))
            return None
        ledger.begun()
        if delivery.ttl_left is not None:
            self._desk.begin(delivery)
        if role.limits:
            run.began = trio.current_time()
            for limit in role.limits:
                limit.busy += 1
        return run

    def _turn_away(self, role: Role, delivery: Delivery, event: Event) -> None:
        self._crew.turn_away(delivery, event, role)
        if role.limits:
            self._crew.leave(role)

    def _call(self, run: Run) -> Awaitable[None] | None:
        """Start the actor's coroutine; what to await for the rest of it. None: it waited for nothing, all is done."""
        context = self._crew.context.copy()
        run.called = True
        try:
            coroutine = run.role.start(run.arguments, run.message)
            trap = context.run(coroutine.send, None)
        except StopIteration as stop:
            self._returned(run, stop.value)
            return None
        except BaseException as error:  # noqa: BLE001  told apart in _failed
            self._failed(run, error)
            return None
        run.context = context
        return self._finish(run, context, coroutine, trap)

    @types.coroutine
    def _finish(
        self, run: Run, context: Context, coroutine: Coroutine[Any, Any, Any], trap: Any
    ) -> Generator[Any, Any, None]:
        """Go on with a coroutine that has yielded `trap`. Each step runs in its own context, as part of this task."""
        try:
            for _ in range(CHECKPOINTS_PER_RUN):
                if trap is not CHECKPOINT:
                    break
                self._share()
                trap = context.run(coroutine.send, (yield trap))
            self._wait_for(run)
            while True:
                try:
                    outcome = yield trap
                except BaseException as error:  # noqa: BLE001  whatever is thrown in belongs to the coroutine
                    trap = context.run(coroutine.throw, error)
                else:
                    trap = context.run(coroutine.send, outcome)
        except StopIteration as stop:
            self._disarm(run)
            self._returned(run, stop.value)
        except BaseException as error:  # noqa: BLE001  told apart in _failed
            self._disarm(run)
            self._failed(run, error)

    def _share(self) -> None:
        """A run yields to others: let there be others, who yield in the same turn, if there is enough to do for two."""
        if len(self._batch) >= RUNS_PER_CHECKPOINT:
            half = len(self._batch) // 2
            later, self._batch = self._batch[:half], self._batch[half:]
            self._crew.give(later)

    def _wait_for(self, run: Run) -> None:
        """The run waits for something: its timeout is watched from now on, and others take over the batch."""
        self._ledger.waited += 1
        self._crew.pass_on(self.hand_back())
        self._crew.running[run.delivery] = self
        self.deadline = trio.current_time() + run.role.timeout(run.delivery.envelope)
        self._crew.timer.watch(self.deadline)
        if run.delivery in self._ledger.cancelled_leases:  # during its first checkpoints, when nobody could find it
            self.cut_off(run.delivery, CancelRequested)
        elif run.delivery not in self._ledger.leases and run.phase is Phase.RUNNING:
            self.cut_off(run.delivery, LeaseExpired)

    def _disarm(self, run: Run) -> None:
        self.deadline = math.inf
        if run.delivery in self._crew.running:
            self._crew.has_ended(run.delivery)

    async def _prepare_and_run(self, run: Run) -> None:
        """Runs that wait in any case: for the broker's word that they are acknowledged, for a thread or a process."""
        self._crew.pass_on(self.hand_back())
        if run.role.mode == "ack_first" and not await self._ack_first(run):
            return
        if run.delivery in self._ledger.cancelled_leases:
            self._conclude(run, CancelRequested())
            return
        rest = self._call(run)
        if rest is not None:
            await rest

    async def _ack_first(self, run: Run) -> bool:
        run.acked_first = True
        if run.message is not None:
            run.message.acked_first()
        self._settler.put(Settlement(run.delivery, ACK))
        try:
            await self._settler.expect(run.delivery).wait()
        except LeaseLost:
            self._done(run)
            return False
        return True

    def _returned(self, run: Run, value: Any) -> None:
        role = run.role
        message = run.message
        if role.is_plain and not run.delivery.envelope.options.store_result:  # the same as below, for the many
            if message is None:
                self._settler.put(Settlement(run.delivery, ACK))
            elif not message.is_acted_on:
                self._settler.put(Settlement(run.delivery, ACK, message.close(ACK)))
            self._done(run)
            return
        payload = b"null"
        if role.stores_result(run.delivery.envelope):
            try:
                payload = encode_json(value)
            except PayloadError as error:
                self._failed(run, error)
                return
        self._conclude(run, Returned(value), payload=payload)

    def _failed(self, run: Run, error: BaseException) -> None:
        """Record a failure. Cancellation and orders to stop the process are let through, what came with them is logged."""
        cancelled, rest = split(error)
        if rest is not None and stops_the_worker(rest):
            raise error
        if cancelled is not None:
            if rest is not None:
                log.error("actor %r failed while it was being cancelled", run.role.actor.name, exc_info=rest)
            raise cancelled
        assert rest is not None
        if run.phase is Phase.DECIDED:
            log.error("actor %r failed after its verdict, which stands", run.role.actor.name, exc_info=rest)
        self._conclude(run, Raised(failure_of(rest), run.role.error_word(rest)), rest)

    def _cut_short(self, run: Run, cause: Cause) -> None:
        """The scope has caught the cancellation: the recorded cause decides."""
        name = run.role.actor.name
        if cause is CancelRequested:
            log.info("actor %r was cancelled with its message %r", name, run.delivery.envelope.id)
            self._conclude(run, CancelRequested())
            return
        if cause is LeaseExpired:
            log.warning("actor %r lost the lease of message %r and was cancelled", name, run.delivery.envelope.id)
            self._conclude(run, LeaseExpired())
            return
        timeout = run.role.timeout(run.delivery.envelope)
        error = TimeoutError(f"actor {name!r} ran longer than its timeout of {timeout:g} s")
        self._conclude(run, TimedOut(Failure("TimeoutError", str(error)), run.role.error_word(error)), error)

    def _interrupted(self) -> None:
        """Cancelled from outside: release what is in hand, or leave it to its lease if a thread goes on with it."""
        if self._batch:
            self._crew.give(self.hand_back())
        run = self._run
        if run is None:
            return
        if run.context is not None and run.context.get(abandoned, False):
            log.warning(
                "the thread of actor %r did not end and is left behind; message %r comes back when its lease ends",
                run.role.actor.name,
                run.delivery.envelope.id,
            )
            self._ledger.abandon(run.delivery)
            self._done(run)
        else:
            self._conclude(run, Stopping())

    def _conclude(self, run: Run, event: Event, error: BaseException | None = None, payload: bytes = b"null") -> None:
        """Hand over what follows from the event."""
        delivery, message = run.delivery, run.message
        disposition = decide(run.phase, event, run.role.terms(delivery))
        if isinstance(disposition, Keep):
            self._ledger.kept.add(delivery)
        elif disposition is not None:
            outbox = message.close(disposition) if message is not None else ()
            result = run.role.result(delivery.envelope, disposition, payload)
            survived = delivery.lost > 0 and not isinstance(event, Stopping)
            self._settler.put(Settlement(delivery, disposition, outbox, result, survived))
            if error is not None:
                log_failure(run.role.actor.name, delivery, disposition, error)
        self._done(run)

    def _done(self, run: Run) -> None:
        self._run = None
        if run.called:
            self._ledger.ended()
        else:
            self._ledger.withdrawn()
        if run.role.limits:
            for limit in run.role.limits:
                limit.ended(trio.current_time() - run.began)
            self._crew.leave(run.role)
