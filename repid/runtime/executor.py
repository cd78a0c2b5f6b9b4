"""Channel → actor → verdict: one long-lived task that runs deliveries one after another.

Theory. A run costs no task and no cancel scope of its own: an executor makes one run after another in one scope, which
is replaced only after it was used. `drive` says how the coroutines are stepped.

* `_batch` is what this executor has taken and not started. It changes it between runs only; others empty it
  through `hand_back`, which a stop does. `_run` is the present run, and None between runs.
* A run is cut off by cancelling the scope. Whoever does so records the cause first, and the cause decides the fate once
  the run has ended; a cancelled scope without a cause means that the worker itself is being cancelled.
* The run has ended when its coroutine has. Only then a verdict is handed over, in the same step, so that no other
  task sees a run that has ended and has no verdict.
* Without a wait, others would never have their turn: there is a checkpoint after some runs, or after some time, and
  none while verdicts are congested.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

import trio

from ..codec import encode_json
from ..delivery import (
    ON_PLAIN_RETURN,
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
    Starting,
    Stopping,
    TimedOut,
    decide,
    disposition_on,
    unless_cancelled,
)
from ..errors import LeaseLost, PayloadError
from ..inject import Message, refuse_unfinished
from ..logs import Log
from ..tracebacks import let_go
from .backends import UNFINISHED, abandoned
from .crew import Crew, Desk
from .drive import drive
from .failures import failure_of, is_cancellation, log_failure, stems_from_cancellation, stray_cancellation
from .holding import Holding
from .roles import Role
from .signals import comes_from_ctrl_c
from .timer import Cause
from .wrong_loop import hint_at_the_loop

log = Log("repid.worker")

RUNS_PER_CHECKPOINT = 16
TIME_PER_CHECKPOINT = 0.001
"""After so many runs, or seconds, without one there is a checkpoint."""

NOTICEABLE = 0.05
"""Seconds. An actor that keeps the event loop for less is not named, even if its timeout ends meanwhile."""

LONG = 1.0
"""Seconds. An actor that keeps the event loop for so long is named in any case: other runs and leases wait for it."""


class Executor:
    """Runs deliveries. It has one cancel scope, which is replaced when it was used; the crew's timer holds the deadlines."""

    __slots__ = ("_batch", "_cause", "_crew", "_desk", "_ledger", "_on_long_step", "_run", "_scope", "_settler")

    def __init__(self, crew: Crew, desk: Desk) -> None:
        self._crew = crew
        self._desk = desk
        self._ledger = crew.ledger
        self._settler = crew.settler
        self._on_long_step = crew.roles.backends.on_long_step
        self._batch: list[Holding] = []
        self._run: Holding | None = None
        self._cause: Cause | None = None
        self._scope = trio.CancelScope()
        crew.executors.append(self)

    @property
    def name(self) -> str:
        """What it runs, in words for a log."""
        run = self._run
        return (
            "nothing" if run is None else f"actor {run.actor_role.actor.name!r} (message {run.delivery.envelope.id!r})"
        )

    @property
    def is_busy(self) -> bool:
        """Whether it runs something."""
        return self._run is not None

    @property
    def present(self) -> tuple[Delivery, float] | None:
        """What it runs, and when the timeout of that ends, on trio's clock. May be asked from any thread."""
        run = self._run
        return None if run is None else (run.delivery, run.began + run.actor_role.timeout(run.delivery.envelope))

    async def work(self) -> None:
        """Run deliveries until the channel is closed. Cancelled: releases the one it holds, if any."""
        try:
            while True:
                with self._scope:
                    await self._serve()
                if self._run is not None:
                    self._cut_short(self._run, self._cause)
                self._cause = None
                self._scope = trio.CancelScope()
                await trio.lowlevel.checkpoint_if_cancelled()
        except trio.EndOfChannel:
            return
        except BaseException:
            self._interrupted()
            raise

    def cut_off(self, holding: Holding, cause: Cause) -> None:
        """Cancel this run, if it is still the present one; the cause decides its fate once it has ended."""
        if self._run is holding:
            holding.run_ends = math.inf
            self._cause = self._cause or cause
            self._scope.cancel()

    async def _serve(self) -> None:
        """Run deliveries until the channel is closed (raises `trio.EndOfChannel`) or the scope is used up (returns)."""
        crew, ledger = self._crew, self._ledger
        clock = trio.lowlevel.current_clock().current_time  # as trio.current_time, without looking for the clock
        while True:
            now = clock()
            runs, due = 0, now + TIME_PER_CHECKPOINT
            while not ledger.is_congested:
                if not self._batch:
                    self._batch = crew.take_nowait()
                    if not self._batch:
                        self._batch = await crew.take()
                        now = clock()
                        runs, due = 0, now + TIME_PER_CHECKPOINT
                runs += 1
                run = self._admit(self._batch.pop(), now)
                if run is not None:
                    self._run, role = run, run.role
                    assert role is not None  # what nobody takes is no run
                    rest = self._call(run, role) if role.starts_at_once else self._prepare_and_run(run)
                    if rest is not None:
                        await rest
                        if self._run is not None or self._cause is not None:
                            return
                        runs, due = 0, clock() + TIME_PER_CHECKPOINT
                now = clock()
                if now >= due:
                    if run is not None and now - run.began >= NOTICEABLE:
                        self._name_if_blocking(run, run.began, now)
                    break
                if runs >= RUNS_PER_CHECKPOINT:
                    break
            if self._batch:
                crew.give(self.hand_back())
            await trio.lowlevel.checkpoint()
            await ledger.wait_to_settle()

    def hand_back(self) -> list[Holding]:
        """Give up what it has taken and not started."""
        batch, self._batch = self._batch, []
        return batch

    def _admit(self, holding: Holding, now: float) -> Holding | None:
        """Turn a held delivery into a run; None: it was settled, parked or dropped instead."""
        crew, role, delivery = self._crew, holding.role, holding.delivery
        if holding.lease_ends <= now or not holding.is_ours:  # lost, whether the keeper has seen it or not
            crew.lease_lost(holding)
            crew.forget(holding)
        elif role is None:
            crew.unrouted(holding)
        elif holding.is_cancelled:
            crew.turn_away(holding, CancelRequested())
        elif delivery.lost and crew.follow(holding):
            pass
        elif role.limits and (full := next((limit for limit in role.limits if limit.is_full), None)) is not None:
            crew.park(full, holding)
        elif holding.expires_at <= now:
            crew.turn_away(holding, Expired())
        else:
            return self._bind(role, holding, now)
        return None

    def _bind(self, role: Role, run: Holding, now: float) -> Holding | None:
        """Decode the payload to the actor's arguments; None: it does not fit, or cannot be decoded, and was settled."""
        delivery = run.delivery
        envelope = delivery.envelope
        if role.needs_message:
            run.message = Message(delivery, role.terms(delivery), self._desk)
        run.began = now
        try:
            run.arguments = role.bind(envelope, run.message)
        except PayloadError as error:
            failure = failure_of(error)
            log.error("message %r does not fit actor %r: %s", envelope.id, role.actor.name, failure.text)  # noqa: TRY400
            run.message = None
            self._crew.turn_away(run, PayloadRefused(Failure(failure.type, failure.text)))
            return None
        except BaseException as error:  # noqa: BLE001  from the code of a type, its `__post_init__` say
            self._ledger.begin(run, role)
            run.called = True
            self._failed(run, error)
            return None
        self._ledger.begin(run, role)
        if delivery.ttl_left is not None:
            self._desk.begin(delivery)
        return run

    def _call(self, run: Holding, role: Role) -> Awaitable[None] | None:
        """Start the actor's coroutine; what to await for the rest of it. None: it waited for nothing, all is done."""
        context = self._crew.context.copy()
        if self._on_long_step is not None:
            context.run(self._on_long_step.set, self._stepped_elsewhere)
        run.called = True
        try:
            coroutine = role.start(run.arguments, run.message)
        except BaseException as error:  # noqa: BLE001  told apart in _failed
            self._failed(run, error)
            return None
        try:
            trap = context.run(coroutine.send, None)
        except StopIteration as stop:
            self._returned(run, role, stop.value)
            return None
        except BaseException as error:  # noqa: BLE001  told apart in _failed
            self._failed(run, error)
            return None
        run.context = context
        return self._finish(run, role, context, coroutine, trap)

    async def _finish(
        self, run: Holding, role: Role, context: Context, coroutine: Coroutine[Any, Any, Any], trap: Any
    ) -> None:
        """Go on with a coroutine whose first step has yielded `trap`."""
        try:
            self.stepped(run.began, trio.current_time())
            value = await drive(coroutine, trap, context, self)
        except BaseException as error:  # noqa: BLE001  told apart in _failed
            self._disarm(run)
            self._failed(run, error)
        else:
            self._disarm(run)
            self._returned(run, role, value)

    def yields(self) -> None:
        """The run lets others run: let there be others, who yield in the same turn, if there is enough to do for two."""
        if len(self._batch) >= RUNS_PER_CHECKPOINT:
            half = len(self._batch) // 2
            later, self._batch = self._batch[:half], self._batch[half:]
            self._crew.give(later)

    def stepped(self, began: float, ended: float) -> None:
        """The run has kept the event loop from then to then."""
        if ended - began >= NOTICEABLE and self._run is not None:
            self._name_if_blocking(self._run, began, ended)

    def _stepped_elsewhere(self, seconds: float) -> None:
        """A step that the run has made on another loop has kept that for so long, until now."""
        now = self._crew.clock.current_time()
        self.stepped(now - seconds, now)

    def _name_if_blocking(self, run: Holding, began: float, now: float) -> None:
        """Name the actor after one step of it that was long, or during which its timeout ended and could not cut it off."""
        if began < run.named_at:
            return  # that step is a part of one for which it was named
        timeout = run.actor_role.timeout(run.delivery.envelope)
        is_late = began <= run.began + timeout < now
        if is_late or now - began >= LONG:
            run.named_at = now
            log.warning(
                "actor %r (message %r) blocked the event loop for %.3g s%s: nothing else of that loop could run meanwhile; "
                "let it await, or declare it with def, so that it runs in a thread",
                run.actor_role.actor.name,
                run.delivery.envelope.id,
                now - began,
                f", past its timeout of {timeout:g} s" if is_late else "",
            )

    def waits(self) -> None:
        """The run waits for something: its timeout is watched from now on, and others take over the batch."""
        run = self._run
        assert run is not None
        self._ledger.suspended()
        self._crew.share_rest(self.hand_back())
        self._crew.suspended[run] = self
        run.run_ends = run.began + run.actor_role.timeout(run.delivery.envelope)
        self._crew.timer.watch(run.run_ends)
        if run.is_cancelled:  # during its first checkpoints, when nobody could find it
            self.cut_off(run, CancelRequested)
        elif not run.is_ours and run.phase is Phase.RUNNING:
            self.cut_off(run, LeaseExpired)

    def _disarm(self, run: Holding) -> None:
        run.run_ends = math.inf
        if run in self._crew.suspended:
            self._crew.has_ended(run)

    async def _prepare_and_run(self, run: Holding) -> None:
        """Runs that wait in any case: for the broker's word that they are acknowledged, for a thread or a process."""
        self._crew.share_rest(self.hand_back())
        if run.actor_role.mode == "ack_first" and not await self._ack_first(run):
            return
        run.began = trio.current_time()
        if run.is_cancelled:
            self._conclude(run, CancelRequested())
            return
        rest = self._call(run, run.actor_role)
        if rest is not None:
            await rest

    async def _ack_first(self, run: Holding) -> bool:
        run.acked_first = True
        if run.message is not None:
            run.message._acked_first()  # noqa: SLF001  the worker's side of it
        self._settler.put(Settlement(run.delivery, disposition_on(Phase.HELD, Starting())))
        answer = self._settler.expect(run.delivery)
        with suppress(LeaseLost):
            await answer.wait()
        if answer.verdict is not None and answer.verdict.accepted:
            return True
        self._done(run)  # the mode promises at most one run, so without a clear answer there is none
        return False

    def _returned(self, run: Holding, role: Role, value: Any) -> None:
        message = run.message
        if self._cause is TimedOut:
            log.warning("%s returned after its timeout; what it returned counts", self.name)
        if type(value) in UNFINISHED:
            self._failed(run, refuse_unfinished(f"actor {role.actor.name!r} ({role.actor.function!r})", value))
            return
        if role.is_plain and not run.delivery.envelope.options.store_result:  # the same as below, for the many
            if message is None:
                self._settler.put(Settlement(run.delivery, ON_PLAIN_RETURN))
            elif not message.is_acted_on:
                self._settler.put(Settlement(run.delivery, ON_PLAIN_RETURN, message._close(ON_PLAIN_RETURN)))  # noqa: SLF001
            self._done(run)
            return
        payload = b"null"
        if role.stores_result(run.delivery.envelope):
            try:
                payload = encode_json(value)
            except BaseException as error:  # noqa: BLE001  a value may have code of its own
                self._failed(run, error)
                return
        self._conclude(run, Returned(value), payload=payload)

    def _failed(self, run: Holding, error: BaseException) -> None:
        """Record what was raised as the failure of this run, unless it was cut off: then whoever did that decides.

        An error that has no cancellation in it nor behind it is the actor's own, though it may come late; but what is
        cancelled or lost is never tried again. Only Ctrl-C goes through: `SystemExit`, and a `KeyboardInterrupt` that the
        code itself has raised, are failures like others.
        """
        if comes_from_ctrl_c(error):
            raise error
        if trio.current_effective_deadline() == -math.inf and self._was_cut_off(error):
            run.error = None if is_cancellation(error) else error
            return
        if run.phase is Phase.DECIDED:
            log.error("actor %r failed after its verdict, which stands", run.actor_role.actor.name, exc_info=error)
        failure = stray_cancellation(error) if is_cancellation(error) else failure_of(error)
        if run.actor_role.actor.is_async:
            failure = hint_at_the_loop(failure, error, in_trio=run.actor_role.runs_in_trio)
        self._conclude(run, Raised(failure, run.actor_role.error_word(error)), error)

    def _was_cut_off(self, error: BaseException) -> bool:
        """Whether a run that was cancelled and raised this owes it to that. `raise … from None` answers a timeout."""
        if self._cause is CancelRequested or self._cause is LeaseExpired:
            return True
        return stems_from_cancellation(error, openly=self._cause is TimedOut)

    def _cut_short(self, run: Holding, cause: Cause | None) -> None:
        """Its run was cut off and has ended: the recorded cause decides; without one the worker is being cancelled."""
        name = run.actor_role.actor.name
        if run.error is not None:
            log.error("actor %r failed while it was being cancelled", name, exc_info=run.error)
            let_go(run.error)
        if cause is None:
            self._interrupted()
        elif cause is CancelRequested:
            log.info("actor %r was cancelled with its message %r", name, run.delivery.envelope.id)
            self._conclude(run, CancelRequested())
        elif cause is LeaseExpired:
            log.warning("actor %r lost the lease of message %r and was cancelled", name, run.delivery.envelope.id)
            self._conclude(run, LeaseExpired())
        else:
            timeout = run.actor_role.timeout(run.delivery.envelope)
            error = TimeoutError(f"actor {name!r} ran longer than its timeout of {timeout:g} s")
            error.__context__ = run.error
            self._conclude(run, TimedOut(failure_of(error), run.actor_role.error_word(error)), error)
        run.error = None  # its traceback holds frames that hold the run

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
                run.actor_role.actor.name,
                run.delivery.envelope.id,
            )
            self._ledger.abandon(run)
            self._done(run)
        else:
            self._conclude(run, Stopping())

    def _conclude(
        self, run: Holding, event: Event, error: BaseException | None = None, payload: bytes = b"null"
    ) -> None:
        """Hand over what follows from the event."""
        delivery, message = run.delivery, run.message
        disposition = decide(run.phase, event, run.actor_role.terms(delivery))
        if isinstance(disposition, Keep):
            self._ledger.keep(run)
        elif disposition is not None:
            outbox = message._close(disposition) if message is not None else ()  # noqa: SLF001
            result = run.actor_role.result(delivery.envelope, disposition, payload)
            survived = delivery.lost > 0 and not isinstance(event, Stopping)
            self._settler.put(Settlement(delivery, disposition, outbox, result, survived))
            if error is not None and isinstance(event, Raised | TimedOut):
                log_failure(run.actor_role.actor.name, delivery, disposition, error, event.failure)
        if error is not None:
            let_go(error)
        self._done(run)

    def _done(self, run: Holding) -> None:
        self._run = None
        if run.message is not None:
            self._hand_over_deferred(run, run.message)
        role = run.actor_role
        self._ledger.end(run, role)
        if role.limits:
            self._crew.release_slot(role)

    def _hand_over_deferred(self, run: Holding, message: Message) -> None:
        """The run has ended: a verb that lets its message be run again takes effect, and later ones do so at once."""
        message.is_under_way = False
        if run.deferred is not None and run.is_ours:
            self._crew.settle(run.delivery, unless_cancelled(run.deferred, cancelled=run.is_cancelled), ())
