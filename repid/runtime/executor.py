"""Channel → actor → verdict: one long-lived task that runs deliveries one after another.

Theory. A run costs no task and no cancel scope of its own: an executor makes one run after another in one scope, which
is replaced only after it was used. `drive` says how the coroutines are stepped.

* `_batch` is what this executor has taken and not started. It changes it between runs only; others empty it
  through `hand_back`, which a stop does. `_run` is the present run, and None between runs.
* A run is cut off by cancelling the scope. Its cause is recorded first, and decides the fate of the run once that has
  ended; a cancelled scope without a cause means that the worker itself is being cancelled.
* The run has ended when its coroutine has. Only then a verdict is handed over, in the same step, so that no other
  task sees a run that has ended and has no verdict.
* Without a wait, others would never have their turn: there is a checkpoint after some runs, or after some time, and
  none while verdicts are congested.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

import trio

from ..ctrl_c import comes_from_ctrl_c
from ..delivery import (
    ON_PLAIN_RETURN,
    CancelRequested,
    Delivery,
    Event,
    LeaseExpired,
    Phase,
    Settlement,
    Starting,
    Stopping,
    TimedOut,
    disposition_on,
)
from ..errors import LeaseLost, PayloadError
from ..inject import FINISHED, Message, is_unfinished, refuse_unfinished
from ..logs import Log, in_seconds
from ..logs import context as log_context
from ..ports import SendingRun, sending_run
from ..process import end_child
from ..tracebacks import let_go
from .actor_runners import ActorRunner
from .backends import abandoned
from .crew import Crew
from .drive import drive
from .endings import Endings
from .failures import failure_of, in_words, is_cancellation, stems_from_cancellation
from .filling import Filling
from .holding import Batch, Holding, members_of
from .limits import first_full
from .message_context import MessageContext
from .timer import Cause

log = Log("repid.worker")

RUNS_PER_CHECKPOINT = 64
TIME_PER_CHECKPOINT = 0.001
"""Runs, and seconds, without a checkpoint after which there is one."""

WORTH_SHARING = 16
"""The number of runs that are enough to do for two executors."""

NOTICEABLE = 0.05
"""Seconds. An actor that keeps the event loop for less is not named, even if its timeout ends meanwhile."""

LONG = 1.0
"""Seconds. An actor that keeps the event loop for so long is named in any case: other runs and leases wait for it."""


class Executor:
    """Runs deliveries. It has one cancel scope, which is replaced when it was used; the crew's timer holds the
    deadlines.
    """

    __slots__ = (
        "_batch",
        "_cause",
        "_context",
        "_crew",
        "_endings",
        "_filling",
        "_ledger",
        "_log_level",
        "_message_context",
        "_run",
        "_scope",
        "_settler",
    )

    def __init__(self, crew: Crew, message_context: MessageContext, endings: Endings, filling: Filling) -> None:
        self._crew = crew
        self._message_context = message_context
        self._ledger = crew.ledger
        self._settler = crew.settler
        self._log_level = crew.log_level
        self._endings = endings
        self._filling = filling
        self._context = crew.context.copy()
        self._context.run(sending_run.set, SendingRun(crew.sending, self))
        if (on_long_step := crew.runners.backends.on_long_step) is not None:
            self._context.run(on_long_step.set, self._stepped_elsewhere)
        self._batch: list[Holding] = []
        self._run: Holding | None = None
        self._cause: Cause | None = None
        self._scope = trio.CancelScope()
        crew.executors.append(self)

    @property
    def name(self) -> str:
        """What it runs, in words for a log."""
        run = self._run
        return "nothing" if run is None else f"actor {run.actor_runner.actor.name!r} ({run.subject})"

    @property
    def is_busy(self) -> bool:
        """Whether it runs something."""
        return self._run is not None

    @property
    def present(self) -> list[tuple[Delivery, float]]:
        """What it runs, and when the timeout of that ends, on trio's clock. May be asked from any thread."""
        run = self._run
        if run is None:
            return []
        ends = run.began + run.timeout
        return [(each.delivery, ends) for each in members_of(run)]

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
        most_unsettled = ledger.most_unsettled
        clock = trio.lowlevel.current_clock().current_time  # as trio.current_time, without looking for the clock
        while True:
            now = clock()
            runs, due = 0, now + TIME_PER_CHECKPOINT
            while ledger.unsettled < most_unsettled:
                if not self._batch:
                    self._batch = crew.take_nowait()
                    if not self._batch:
                        self._batch = await crew.take()
                        now = clock()
                        runs, due = 0, now + TIME_PER_CHECKPOINT
                runs += 1
                holding = self._batch.pop()
                arguments = self._admit(holding, now)
                if arguments is not None:
                    self._run, runner = holding, holding.runner
                    assert runner is not None  # what nobody takes is no run
                    at_once = self._call if runner.begin is None else self._call_on_host
                    start = at_once if runner.starts_at_once else self._prepare_and_run
                    rest = start(holding, runner, arguments)
                    if rest is not None:
                        await rest
                        if self._run is not None or self._cause is not None:
                            return
                        now = clock()
                        runs, due = 0, now + TIME_PER_CHECKPOINT
                        continue  # `drive` has looked at its steps
                now = clock()
                if now >= due:
                    if arguments is not None and now - holding.began >= NOTICEABLE:
                        self._name_if_blocking(holding, holding.began, now)
                    break
                if runs >= RUNS_PER_CHECKPOINT:
                    break
            await trio.lowlevel.checkpoint()
            await ledger.wait_to_settle()

    def hand_back(self) -> list[Holding]:
        """Give up what it has taken and not started."""
        batch, self._batch = self._batch, []
        return batch

    def _admit(self, holding: Holding, now: float) -> dict[str, Any] | None:
        """Turn a held delivery into a run, with these arguments; None: it was settled, parked or dropped instead."""
        runner, delivery, ledger = holding.runner, holding.delivery, self._ledger
        if holding.startable_until <= now:
            if isinstance(holding, Batch):  # it has no lease
                return self._filling.fill(holding, now)
            if not self._crew.may_start(holding, now):
                return None
        if runner is None:
            self._crew.unrouted(holding)
        elif ledger.kept and ledger.places <= 0:  # nobody knows for how long, and other workers may have places
            self._crew.turn_away(holding, Stopping())
        elif runner.limits and (full := first_full(runner.limits)) is not None:
            self._crew.park(full, holding)
        else:
            if runner.needs_message:
                holding.message = Message(delivery, runner.terms(delivery), self._message_context)
            holding.began = now
            try:
                arguments = runner.bind(delivery.envelope, holding.message)
            except PayloadError as error:
                holding.message = None
                self._endings.misfit(holding, runner, failure_of(error))
                return None
            except BaseException as error:  # noqa: BLE001  it is the message's failure
                self._endings.unreadable(holding, runner, error)
                return None
            ledger.begin(holding, runner)
            if delivery.ttl_left is not None:
                self._message_context.begin(delivery)
            return arguments
        return None

    def _call(self, run: Holding, runner: ActorRunner, arguments: dict[str, Any]) -> Awaitable[None] | None:
        """Start the actor's coroutine; what to await for the rest of it. None: it waited for nothing, all is done."""
        context = self._context.copy()
        if self._log_level is not None:
            context.run(log_context.set, run.fields)
        try:
            coroutine = context.run(runner.start, arguments, run.message)  # the call itself may set something
        except BaseException as error:  # noqa: BLE001  told apart in _failed
            self._failed(run, error)
            return None
        try:
            trap = context.run(coroutine.send, None)
        except StopIteration as stop:
            self._returned(run, runner, stop.value)
            return None
        except BaseException as error:  # noqa: BLE001  told apart in _failed
            self._failed(run, error)
            return None
        run.context = context
        return self._finish(run, runner, context, coroutine, trap)

    def _call_on_host(self, run: Holding, runner: ActorRunner, arguments: dict[str, Any]) -> Awaitable[None] | None:
        """The same, where the coroutine belongs to a task of the host, which has the context of the run."""
        begin = runner.begin
        assert begin is not None
        context = self._context.copy()
        if self._log_level is not None:
            context.run(log_context.set, run.fields)
        try:
            rest, value = begin(context.run(runner.start, arguments, run.message), context)
        except BaseException as error:  # noqa: BLE001  told apart in _failed
            self._failed(run, error)
            return None
        if rest is None:
            self._returned(run, runner, value)
            return None
        run.context = context.copy()
        return self._finish(run, runner, run.context, rest, run.context.run(rest.send, None))

    async def _finish(
        self, run: Holding, runner: ActorRunner, context: Context, coroutine: Coroutine[Any, Any, Any], trap: Any
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
            if self._cause is TimedOut:
                log.about(run.fields).warning("%s returned after its timeout; what it returned counts", self.name)
            self._returned(run, runner, value)

    def yields(self) -> None:
        """The run lets others run: have another one begin, which yields in the same turn, if there is enough to do."""
        if len(self._batch) >= WORTH_SHARING:
            half = len(self._batch) // 2
            later, self._batch = self._batch[:half], self._batch[half:]
            self._crew.give(later)

    def stepped(self, began: float, ended: float) -> None:
        """The run has kept the event loop from then to then."""
        if self._crew.is_of_parent:
            error = sys.exception()
            end_child(None if isinstance(error, StopIteration) else error)
        if ended - began >= NOTICEABLE and self._run is not None:
            self._name_if_blocking(self._run, began, ended)

    def _stepped_elsewhere(self, seconds: float) -> None:
        """A step that the run has made on another loop has kept that for so long, until now."""
        now = self._crew.clock.current_time()
        self.stepped(now - seconds, now)

    def _name_if_blocking(self, run: Holding, began: float, now: float) -> None:
        """Name the actor after one step of it that was long, or during which its timeout ended and could not cut it
        off.
        """
        if began < run.named_at:
            return  # that step is a part of one for which it was named
        timeout = run.timeout
        is_late = began <= run.began + timeout < now
        if is_late or now - began >= LONG:
            run.named_at = now
            log.about(run.fields).warning(
                "actor %r (%s) blocked the event loop for %s s%s: nothing else of that loop could run meanwhile; "
                "let it await, or declare it with def, so that it runs in a thread",
                run.actor_runner.actor.name,
                run.subject,
                in_seconds(now - began),
                f", past its timeout of {timeout:g} s" if is_late else "",
            )

    def waits(self) -> None:
        """The run waits for something: its timeout is watched from now on, and others take over the batch."""
        run = self._run
        assert run is not None
        self._ledger.suspended()
        self._crew.share_rest(self.hand_back())
        self._crew.suspended[run] = self
        run.run_ends = run.began + run.timeout
        self._crew.timer.watch(run.run_ends)
        if run.is_cancelled:  # during its first checkpoints, when nobody could find it
            self.cut_off(run, CancelRequested)
        elif not run.is_ours and run.phase is Phase.RUNNING:
            self.cut_off(run, LeaseExpired)

    def _disarm(self, run: Holding) -> None:
        """The run has ended: nobody may cut it off any more."""
        run.run_ends = math.inf
        if run in self._crew.suspended:
            self._crew.has_ended(run)

    async def _prepare_and_run(self, run: Holding, runner: ActorRunner, arguments: dict[str, Any]) -> None:
        """Runs that wait in any case: for the broker's word that they are acknowledged, for a thread or a process."""
        run.is_prepared = True
        self._crew.share_rest(self.hand_back())
        if runner.mode == "ack_first" and not await self._ack_first(run):
            return
        run.began = trio.current_time()
        if run.is_cancelled:
            self._conclude(run, CancelRequested())
            return
        run.is_prepared = False
        call = self._call if runner.begin is None else self._call_on_host
        rest = call(run, runner, arguments)
        if rest is not None:
            await rest
        elif (now := trio.current_time()) - run.began >= NOTICEABLE:
            self._name_if_blocking(run, run.began, now)

    async def _ack_first(self, run: Holding) -> bool:
        """Acknowledge before the start. Returns False if the broker has not clearly done so: then the run is over."""
        run.acked_first = True
        if run.message is not None:
            run.message._acked_first()  # noqa: SLF001  the worker's side of it
        self._settler.put(Settlement(run.delivery, disposition_on(Phase.HELD, Starting())), run)
        answer = self._settler.expect(run.delivery)
        with suppress(LeaseLost):
            await answer.wait()
        if answer.verdict is not None and answer.verdict.accepted:
            return True
        self._done(run, run.actor_runner)  # the mode promises at most one run
        return False

    def _returned(self, run: Holding, runner: ActorRunner, value: Any) -> None:
        """Hand over what follows from the value that the actor returned."""
        if self._crew.is_of_parent:
            end_child(None)
        message = run.message
        if value is not None and type(value) not in FINISHED and is_unfinished(value):
            self._failed(run, refuse_unfinished(f"actor {runner.actor.name!r} ({runner.actor.function!r})", value))
            return
        if runner.is_plain and not run.delivery.envelope.options.store_result:  # the same as below, for the many
            if message is None:
                self._settler.put(Settlement(run.delivery, ON_PLAIN_RETURN), run)
            elif not message.is_acted_on:
                outbox = message._close(ON_PLAIN_RETURN)  # noqa: SLF001  the worker's side of it
                self._settler.put(Settlement(run.delivery, ON_PLAIN_RETURN, outbox), run)
            if self._log_level is not None:
                action = None if message is None else message.action
                fate = in_words(ON_PLAIN_RETURN) if action in {None, "acked"} else str(action)
                self._endings.log_run(run, self._log_level, fate)
        elif isinstance(run, Batch):
            self._endings.batch_returned(run, runner, value)
        else:
            self._endings.returned(run, runner, value)
        self._done(run, runner)

    def _failed(self, run: Holding, error: BaseException) -> None:
        """Record what was raised as the failure of this run, unless it was cut off: then the cause of that decides.

        An error that has no cancellation in it nor behind it is the actor's own, though it may come late (`raise … from
        None` answers a timeout); but what is cancelled or lost is never tried again. Only Ctrl-C goes through:
        `SystemExit`, and a `KeyboardInterrupt` that the code itself has raised, are failures like others.
        """
        if self._crew.is_of_parent:
            end_child(error)
        if comes_from_ctrl_c(error):
            raise error
        is_cut_off = (
            self._cause is CancelRequested
            or self._cause is LeaseExpired
            or stems_from_cancellation(error, openly=self._cause is TimedOut)
        )
        if is_cut_off and trio.current_effective_deadline() == -math.inf:
            run.error = None if is_cancellation(error) else error
            return
        self._endings.raised(run, error)
        self._done(run, run.actor_runner)

    def _cut_short(self, run: Holding, cause: Cause | None) -> None:
        """Its run was cut off and has ended: the recorded cause decides; without one the worker is being cancelled."""
        name = run.actor_runner.actor.name
        if run.error is not None:
            text, explained = "actor %r failed while it was being cancelled", failure_of(run.error).traceback
            log.about(run.fields).error(text, name, exc_info=run.error, explained=explained)
            let_go(run.error)
        if cause is None:
            self._interrupted()
        elif cause is CancelRequested:
            log.about(run.fields).info("actor %r was cancelled with %s", name, run.subject)
            self._conclude(run, CancelRequested())
        elif cause is LeaseExpired:
            log.about(run.fields).warning("actor %r lost the lease of %s and was cancelled", name, run.subject)
            self._conclude(run, LeaseExpired())
        else:
            error = TimeoutError(f"actor {name!r} ran longer than its timeout of {run.timeout:g} s")
            error.__context__ = run.error
            self._conclude(run, TimedOut(failure_of(error), run.actor_runner.error_word(error)), error)
        run.error = None  # its traceback holds frames that hold the run

    def _interrupted(self) -> None:
        """Cancelled from outside: release what is in hand, or leave it to its lease if a thread goes on with it."""
        if self._batch:
            self._crew.give(self.hand_back())
        run = self._run
        if run is None:
            return
        if run.context is not None and run.context.get(abandoned, False):
            log.about(run.fields).warning(
                "the thread of actor %r did not end and is left behind; %s comes back when its lease ends",
                run.actor_runner.actor.name,
                run.subject,
            )
            for member in members_of(run):
                self._ledger.abandon(member)
            self._done(run, run.actor_runner)
        else:
            self._conclude(run, Stopping())

    def _conclude(self, run: Holding, event: Event, error: BaseException | None = None) -> None:
        """Hand over what follows from the event."""
        self._endings.conclude(run, event, error)
        self._done(run, run.actor_runner)

    def _done(self, run: Holding, runner: ActorRunner) -> None:
        """The run is over, and its verdict handed over: let go of it, and of its places under its limits."""
        self._run = None
        if runner.gathering is not None and isinstance(run, Batch):
            if runner.needs_message:
                for member in run.members:
                    self._endings.let_go(member)
            self._ledger.end_batch(run, runner.gathering)
        else:
            if run.message is not None:
                self._endings.let_go(run)
            self._ledger.end(run, runner)
        if runner.limits:
            self._crew.release_slot(runner)
