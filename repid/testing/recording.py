"""What happens on the server of a test: a memory driver that notes what was sent and what became of each delivery.

Theory. Verdicts reach a server by `settle` alone and messages by `publish`, `tick` and the outboxes of verdicts, so a
driver that notes these calls misses nothing, and the worker before it is the one of production. What a verdict does not
tell, the value and the error themselves, is noted by a middleware around every run, the outermost one. Both meet in the
delivery, which is one object for one lease. A context variable says which run sends: it is set by that middleware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, TypeAlias

import trio
from msgspec.structs import replace
from trio.testing import MockClock

from ..actors import Actor, CallNext
from ..brokers.memory.driver import MemoryDriver
from ..delivery import Ack, Cancel, DeadLetter, Delivery, Disposition, Failure, Reason, Release, Retry, Settlement
from ..envelope import Envelope
from ..errors import BrokerRefused, can_be_pickled, made_again
from ..inject import Message
from ..ports import TickOutcome, Verdict

Fate: TypeAlias = Literal["running", "acked", "retried", "released", "dead", "cancelled", "refused"]
"""What became of a message after one run. running: nothing yet. refused: its lease was lost before its verdict came."""

THREAD_PATIENCE = 1.0
PROCESS_PATIENCE = 10.0
"""Real seconds for which a virtual clock waits for a sync actor; a process has to start, too."""

present_run: ContextVar[Run | None] = ContextVar("repid_present_run", default=None)


class RunFailed(AssertionError):  # noqa: N818  named for what happened, as those of repid.errors
    """A run failed, and its error is not there to be raised: it ran past its timeout, or its payload did not fit.

    `run` is the run, `run.failure` what is stored of the error.
    """

    def __init__(self, run: Run, failure: Failure) -> None:
        super().__init__(f"{run!r} failed with {failure.type}: {failure.text}")
        self.run = run

    def __reduce__(self) -> tuple[Callable[..., RunFailed], tuple[Any, ...], dict[str, Any]]:
        return made_again, (type(self), *self.args), self.__dict__


class Run:
    """One run of one message, as `TestClient` saw it. A message that fails and is tried again has several.

    envelope: the message. actor: the name of the actor that ran; None if it was turned away without a run. attempt: 1
    for the first. value: what the actor returned. error: what it raised, whatever became of that. fate: what became of
    the message ("acked" also where a failure is acknowledged). reason: why it is a dead letter. delay: seconds until it
    is ready again. failure: the error as it is stored. sent: what the run has sent, the outbox included, in order. A
    batch is one run for each of its messages; what its actor has sent by itself is noted with the first.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.envelope = delivery.envelope
        self.actor: str | None = None
        self.attempt = delivery.attempt
        self.value: Any = None
        self.error: BaseException | None = None
        self.fate: Fate = "running"
        self.reason: Reason | None = None
        self.delay = 0.0
        self.failure: Failure | None = None
        self.sent: list[Envelope] = []
        self._traceback: TracebackType | None = None

    def __getstate__(self) -> dict[str, Any]:
        error = self.error if self.error is None or can_be_pickled(self.error) else None
        return self.__dict__ | {"error": error, "_traceback": None}

    def __repr__(self) -> str:
        why = f" ({self.reason})" if self.reason is not None else ""
        return (
            f"<run of {self.envelope.topic!r}, message {self.message_id!r}, attempt {self.attempt}: {self.fate}{why}>"
        )

    @property
    def message_id(self) -> str:
        """The id of the message."""
        return self.envelope.id

    @property
    def is_success(self) -> bool:
        """Whether the message was acknowledged, and not for a failure."""
        return self.fate == "acked" and self.failure is None

    def raise_error(self) -> None:
        """Raise what the actor raised, with its traceback. Nothing happens if it raised nothing and did not fail.

        Raises `RunFailed` where there is no such error: for a timeout, or a payload that does not fit.
        """
        if self.error is not None:
            raise self.error.with_traceback(self._traceback)
        if self.failure is not None:
            raise RunFailed(self, self.failure)

    def _began(self, actor: str) -> None:
        self.actor = actor

    def _raised(self, error: Exception) -> None:
        self.error = error
        self._traceback = error.__traceback__  # the worker drops it once the error is logged

    def _ended(self, disposition: Disposition, outbox: Sequence[Envelope]) -> None:
        self.sent.extend(outbox)
        match disposition:
            case Ack(failure):
                self.fate, self.failure = "acked", failure
            case Retry(delay, failure):
                self.fate, self.delay, self.failure = "retried", delay, failure
            case Release(delay):
                self.fate, self.delay = "released", delay
            case DeadLetter(reason, failure):
                self.fate, self.reason, self.failure = "dead", reason, failure
            case Cancel():
                self.fate = "cancelled"


class Recorder:
    """What was sent to the servers of a test, and every run, in order."""

    def __init__(self) -> None:
        self.sent: list[Envelope] = []
        self.runs: list[Run] = []
        self._of: dict[Delivery, Run] = {}
        self._holding: list[float] = []
        """Of each run that works elsewhere, how long a virtual clock waits for it."""
        self._threshold = 0.0
        """That of the clock, while none does."""

    def run_of(self, delivery: Delivery) -> Run:
        """The run of this delivery, which is made here if it is the first word of it."""
        run = self._of.get(delivery)
        if run is None:
            run = self._of[delivery] = Run(delivery)
            self.runs.append(run)
        return run

    async def watch(self, call_next: CallNext, message: Message, actor: Actor) -> Any:
        """The middleware around every run."""
        runs = [self.run_of(each._delivery) for each in message.batch]  # noqa: SLF001  the worker's side of it
        for run in runs:
            run._began(actor.name)  # noqa: SLF001  the recorder's side of it
        token = present_run.set(runs[0])
        try:
            with nullcontext() if actor.is_async else self.clock_held(in_process=actor.run_in_process):
                value = await call_next(message, actor)
        except Exception as error:
            for run in runs:
                run._raised(error)  # noqa: SLF001  the recorder's side of it
            raise
        finally:
            present_run.reset(token)
        values = value if actor.batch is not None and isinstance(value, list | tuple) else [value] * len(runs)
        for run, own in zip(runs, values, strict=False):  # the worker says so if there are more or less of them
            if actor.batch is not None and isinstance(own, Exception):
                run._raised(own)  # noqa: SLF001  the recorder's side of it
            else:
                run.value = own
        return value

    @contextmanager
    def clock_held(self, *, in_process: bool) -> Iterator[None]:
        """Keep a virtual clock from jumping by itself while a thread or a process works: to trio their tasks seem to
        sleep, so the clock would jump to their timeouts. After a while it jumps all the same, since a thread may wait
        for a task that sleeps.
        """
        clock = trio.lowlevel.current_clock() if trio.lowlevel.in_trio_run() else None
        if not isinstance(clock, MockClock):
            yield
            return
        if not self._holding:
            self._threshold = clock.autojump_threshold
        holding = PROCESS_PATIENCE if in_process else THREAD_PATIENCE
        self._holding.append(holding)
        clock.autojump_threshold = max([self._threshold, *self._holding])
        try:
            yield
        finally:
            self._holding.remove(holding)
            clock.autojump_threshold = max([self._threshold, *self._holding])

    def watched(self, actor: Actor) -> Actor:
        """The actor with the middleware around all others."""
        return replace(actor, middlewares=(self.watch, *actor.middlewares))

    def published(self, envelopes: Sequence[Envelope]) -> None:
        """These were accepted; if a run has sent them, it is noted there too."""
        self.sent.extend(envelopes)
        run = present_run.get()
        if run is not None:
            run.sent.extend(envelopes)

    def settled(self, settlement: Settlement, verdict: Verdict) -> None:
        """A verdict was answered. What was given back without a run is no run."""
        disposition = settlement.disposition
        if isinstance(disposition, Release) and not (disposition.started or disposition.unrouted):
            return
        run = self.run_of(settlement.delivery)
        if not verdict.accepted:
            run.fate = "refused"
            return
        run._ended(disposition, settlement.outbox)  # noqa: SLF001  the recorder's side of it
        self.sent.extend(settlement.outbox)


class RecordingDriver(MemoryDriver):
    """The memory engine, with a recorder that is told, and a clock that can be put forward."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(lease_timeout=60.0)
        self._recorder = recorder

    async def publish(self, envelopes: Sequence[Envelope]) -> list[BrokerRefused | None]:
        """As the memory engine, and noted."""
        outcomes = await super().publish(envelopes)
        self._recorder.published([each for each, no in zip(envelopes, outcomes, strict=True) if no is None])
        return outcomes

    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:
        """As the memory engine, and noted."""
        verdicts = await super().settle(consumer, settlements)
        for settlement, verdict in zip(settlements, verdicts, strict=True):
            self._recorder.settled(settlement, verdict)
        return verdicts

    async def tick(self, name: str, expected_next: float, next_at: float, envelope: Envelope | None) -> TickOutcome:
        """As the memory engine, and noted."""
        outcome = await super().tick(name, expected_next, next_at, envelope)
        if outcome == "fired" and envelope is not None:
            self._recorder.published([envelope])
        return outcome

    def next_due_in(self) -> float:
        """Seconds until the next scheduled message becomes ready; infinity if there is none."""
        return max(0.0, self.store.next_due() - self._clock.look())

    def forward(self, seconds: float) -> None:
        """Put the clock forward. What falls due by that is ready now."""
        self._clock.forward(seconds)
        self._step(self.store.advance)
