"""Verdicts → broker, in the batches that happen to gather while the one before is under way.

Theory. A verdict is final when `put` returns. `put` is synchronous, so nothing can be cancelled between the end of a
run and the handing over of its verdict.

* One task carries verdicts out, one batch at a time. What is put meanwhile is the next batch: batches grow with the
  load, and a single verdict never waits for others. Where runs end so fast that each turn of the event loop brings many
  verdicts, the batch is sent only when it has `WORTH_A_CALL`: otherwise there would be 1.5 times as many calls,
  and where many workers share few cores each call costs a process what it had in the processor's caches.
* The task is shielded, because a worker that is cancelled still has verdicts to settle. `close` bounds it; what is
  left then comes back when the leases end, and is counted as unsettled.
* A call without an answer is made again until it has one. What it had settled after all is answered as unknown, which
  is no lost lease.
* A verdict whose outbox has no room in a full queue is set aside (`set_aside`). Where the queue is bounded otherwise,
  or nothing can make room, its run has failed with `QueueFull`.
* A verdict that the broker cannot write must not hold up its neighbours: the batch is settled one by one, and what was
  wrong becomes the failure of its own message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import trio

from ..delivery import (
    Delivery,
    Failure,
    NewResult,
    Phase,
    Raised,
    Settlement,
    Stopping,
    disposition_on,
    with_failure,
)
from ..errors import BrokerUnavailable, LeaseLost, QueueFull, RepidError
from ..logs import Log
from ..ports import SETTLED, Consumer, ResultStore, Verdict, in_parts, store_apart
from .failures import failure_of, log_failure
from .holding import Holding, about
from .ledger import Ledger
from .outage import backoff, log_unavailable
from .postponed import Postponed
from .sending import Sending
from .set_aside import Note, SetAside, without_room

log = Log("repid.worker")


MANY_PER_TURN = 32
"""The number of verdicts in one turn of the event loop after which the next turn most likely brings more."""

WORTH_A_CALL = 128
"""The number of verdicts that are sent without waiting for more: what a call costs by itself is little beside them.
Executors go on meanwhile: they stop at `Ledger.most_unsettled`.
"""


class Settler:
    """Takes verdicts synchronously, so that nothing can come between "ended" and "handed over", and carries them out.

    `result_store` is given where results live elsewhere than the messages. `can_delay`: whether the server can make a
    message ready later; otherwise `postponed` holds such verdicts back. `is_local`: the server answers any call at
    once. Otherwise one call is about as many verdicts as it can answer in time, and as many bytes. `run` is shielded:
    it ends when `close` was called and everything is settled, or the bound of `close` is over.
    """

    def __init__(
        self,
        consumer: Consumer,
        ledger: Ledger,
        sending: Sending,
        result_store: ResultStore | None = None,
        *,
        can_delay: bool = True,
        is_local: bool = False,
    ) -> None:
        self.postponed = Postponed(self.put)
        self._can_delay = can_delay
        self._is_local = is_local
        self.set_aside = SetAside(consumer, ledger, sending, self._carry_out, self._note, self._fail)
        self._consumer = consumer
        self._result_store = result_store
        self._ledger = ledger
        self._pending: list[Settlement] = []
        self._on_their_way: list[Settlement] = []
        self._waiting: dict[Delivery, Answer] = {}
        self._parked = False
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False
        self._scope = trio.CancelScope(shield=True)
        self._ended = trio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether verdicts come too late."""
        return self._ended.is_set()

    @property
    def handed_over(self) -> list[Delivery]:
        """Those with a verdict that is not known to be carried out. May be asked from any thread."""
        return [settlement.delivery for settlement in [*self._on_their_way, *self._pending, *self.set_aside.all]]

    def put(self, settlement: Settlement, holding: Holding | None = None) -> None:
        """Hand a verdict over: from here on it is final. With the holding, if its lease is ours."""
        if not self._can_delay and self.postponed.hold_back(settlement, holding):
            return
        self._pending.append(settlement)
        self._ledger.handed_over(holding)
        if self._parked:
            self._parked = False
            self._lot.unpark()

    def put_acks(self, settlements: Sequence[Settlement], holdings: Sequence[Holding]) -> None:
        """Hand over many at once, of which none is to be held back."""
        self._pending.extend(settlements)
        self._ledger.all_handed_over(holdings)
        if self._parked:
            self._parked = False
            self._lot.unpark()

    def expect(self, delivery: Delivery) -> Answer:
        """The broker's answer to the verdict just put, which may be waited for."""
        answer = self._waiting[delivery] = Answer(delivery)
        return answer

    async def run(self) -> None:
        """Settle until closed and empty, or cut off."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self.set_aside.open(nursery)
                    while self._pending or not self._closed:
                        if self._pending:
                            await self._let_more_come()
                            await self._settle_pending()
                        else:
                            self._parked = True
                            await self._lot.park()
                    nursery.cancel_scope.cancel()
                self._pending += map(_released, self.set_aside.close())
                while self._pending:
                    await self._settle_pending()
        finally:
            self._ended.set()
            for delivery in list(self._waiting):
                self._answer(delivery, None)

    async def close(self, bound: float) -> None:
        """Take no more, settle what there is, and be done after `bound` seconds at the latest."""
        self.postponed.close()
        self._closed = True
        self._lot.unpark_all()
        with trio.move_on_after(bound, shield=True):
            await self._ended.wait()
        if not self._ended.is_set():
            log.error(
                "%d verdicts could not be settled within %g s; their messages come back when the leases end",
                self._ledger.unsettled,
                bound,
            )
            self._scope.cancel()

    async def _let_more_come(self) -> None:
        """Wait as long as every turn brings many verdicts, until there are enough."""
        had = 0
        while had + MANY_PER_TURN <= len(self._pending) < WORTH_A_CALL:
            had = len(self._pending)
            # trio runs tasks that are due in any order: between these two each of the others has its turn.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()

    async def _settle_pending(self) -> None:
        batch = self._on_their_way = self._pending
        self._pending = []
        if self.set_aside:
            batch = self._on_their_way = self.set_aside.divert(batch)
            if not batch:
                return
        await self._carry_out(batch, self._note)
        self._on_their_way = []

    async def _carry_out(self, batch: list[Settlement], note: Note) -> None:
        """Settle them. `note` takes the answers as they come, with what was written in the end in the place of each."""
        for part in [batch] if self._is_local else map(list, in_parts(batch, _size_of)):
            try:
                verdicts = await self._settle(part)
            except Exception as error:  # noqa: BLE001  whatever is wrong with one of them, the others are settled
                if len(part) > 1:
                    log.warning(
                        "%d verdicts could not be settled together, each is settled alone: %s", len(part), error
                    )
            else:
                note(part, verdicts)
                continue
            # outside of the handler, where each error that follows would be shown with this one as its context
            for settlement in part:
                written, verdict = await self._settle_alone(settlement)
                note([written], [verdict])

    async def _settle_alone(self, settlement: Settlement) -> tuple[Settlement, Verdict]:
        """Settle it; where that can never be done, what was wrong becomes the failure of the message."""
        try:
            return settlement, (await self._settle([settlement]))[0]
        except Exception as error:
            for instead in _instead_of(settlement, error):
                try:
                    [verdict] = await self._settle([instead])
                except Exception:  # noqa: BLE001, S112  the first error says more
                    continue
                kind = type(settlement.disposition).__name__
                self._tell_waiting(settlement.delivery, error)
                log.about(about(settlement.delivery)).error(
                    "verdict %s on message %r cannot be written: %s",
                    kind,
                    settlement.delivery.envelope.id,
                    error,
                    exc_info=None if isinstance(error, RepidError) else error,  # whose text says all
                )
                return instead, verdict
            raise

    async def _settle(self, batch: list[Settlement]) -> list[Verdict]:
        for delay in backoff():
            try:
                if self._result_store is not None:
                    batch = await store_apart(self._result_store, batch)
                return await self._consumer.settle(batch)
            except BrokerUnavailable as error:
                log_unavailable(error, "cannot settle %d verdicts, again in %.1f s", len(batch), delay)
                await self._consumer.wait_link(delay)
        raise AssertionError  # backoff has no end

    def _note(self, batch: list[Settlement], verdicts: list[Verdict]) -> None:
        """Take the broker's answers: what has no room is set aside, the ledger counts all others, who waits is told."""
        are_settled = verdicts.count(SETTLED) == len(verdicts)
        if not are_settled and (full := without_room(batch, verdicts)):
            batch = [one for one, verdict in zip(batch, verdicts, strict=True) if verdict.full is None]
            verdicts = [verdict for verdict in verdicts if verdict.full is None]
            for settlement, error in full:
                if not error.can_wait:
                    self._fail(settlement, error)
                elif not self.set_aside.add(settlement, error.queue):
                    self._put_instead(_released(settlement))
        self._ledger.settled(batch, verdicts)
        if not self._waiting and are_settled:
            return
        for settlement, verdict in zip(batch, verdicts, strict=True):
            if settlement.delivery in self._waiting:
                self._answer(settlement.delivery, verdict)
            if verdict.outcome != "settled":
                self._log_not_accepted(settlement, verdict)

    def _fail(self, settlement: Settlement, error: QueueFull) -> None:
        """The run has failed with this error, which came when its outbox was to be sent."""
        delivery = settlement.delivery
        holding = self._ledger.holdings.get(delivery)
        if holding is None or holding.runner is None:  # not ours any more: it will be refused
            self._put_instead(_released(settlement))
            return
        runner, failure = holding.runner, failure_of(error)
        event = Raised(failure, runner.error_word(error))
        disposition = disposition_on(Phase.RUNNING, event, runner.terms(delivery))
        result = runner.result(delivery.envelope, disposition)
        log_failure(runner.actor.name, delivery, disposition, error, failure)
        self._tell_waiting(delivery, error)
        self._put_instead(Settlement(delivery, disposition, (), result, settlement.survived))

    def _put_instead(self, settlement: Settlement) -> None:
        """Put a verdict in place of one that was handed over, and is counted, already."""
        self._pending.append(settlement)
        if self._parked:
            self._parked = False
            self._lot.unpark()

    def _tell_waiting(self, delivery: Delivery, error: Exception) -> None:
        """Another verdict takes the place of the one that is waited for, because of this error."""
        if delivery in self._waiting:
            self._waiting[delivery].error = error

    def _answer(self, delivery: Delivery, verdict: Verdict | None) -> None:
        answer = self._waiting.pop(delivery)
        answer.verdict = verdict
        answer.event.set()

    def _log_not_accepted(self, settlement: Settlement, verdict: Verdict) -> None:
        what, id_ = type(settlement.disposition).__name__, settlement.delivery.envelope.id
        told = log.about(about(settlement.delivery))
        if verdict.outcome == "unknown":
            told.warning(
                "verdict %s on message %r was sent and not answered, and now its lease is over: most likely the server "
                "had carried the verdict out; if not, the message is run again",
                what,
                id_,
            )
        else:
            told.warning(
                "verdict %s on message %r came too late: its lease had ended and it belongs to another worker",
                what,
                id_,
            )


def _released(settlement: Settlement) -> Settlement:
    """Give the message back in place of an outbox that cannot be sent before the worker ends."""
    delivery = settlement.delivery
    return Settlement(delivery, disposition_on(Phase.RUNNING, Stopping()), survived=settlement.survived)


def _instead_of(settlement: Settlement, error: Exception) -> Iterator[Settlement]:
    """What to settle where the broker does not take the verdict itself, the best first: without its outbox, as a
    failure.

    A retry stays one. The actor has ended: what it did is done, so the message is not run again for this alone.
    """
    disposition, result = settlement.disposition, settlement.result
    failure = getattr(disposition, "failure", None) or Failure(type(error).__name__, "")
    text = f"{failure.text} (the verdict {type(disposition).__name__} could not be written: {error})".lstrip()
    failure = Failure(_plain(failure.type), _plain(text), _plain(failure.traceback))
    instead = with_failure(disposition, failure)
    if result is not None:
        told = NewResult(id=result.id, state="failure", failure=failure, ttl=result.ttl)
        yield Settlement(settlement.delivery, instead, result=told)
    yield Settlement(settlement.delivery, instead)


def _plain(text: object) -> str:
    """The text, with an escape for whatever has no UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode()


class Answer:
    """The broker's answer to one verdict. `verdict` stays None where the worker ended before the broker answered.
    `error`: why another verdict was settled in its place.
    """

    __slots__ = ("delivery", "error", "event", "verdict")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.event = trio.Event()
        self.verdict: Verdict | None = None
        self.error: Exception | None = None

    async def wait(self) -> None:
        """Wait for it. Cancelling only ends the waiting.

        Raises `LeaseLost` if the verdict was refused, and only then: a verdict whose fate is unknown was carried out
        most likely. Raises the error because of which it could not be carried out, `QueueFull` say.
        """
        await self.event.wait()
        if self.verdict is None:
            raise BrokerUnavailable(
                f"the worker ended before the server had answered for {self.delivery.envelope.id!r}"
            )
        if self.verdict.outcome == "refused":
            raise LeaseLost(self.delivery.envelope.id)
        if self.error is not None:
            raise self.error


def _size_of(settlement: Settlement) -> int:
    """The bytes of payload that a verdict carries."""
    payloads: list[object] = [envelope.payload for envelope in settlement.outbox]
    if settlement.result is not None:
        payloads.append(settlement.result.payload)
    return sum(len(each) for each in payloads if isinstance(each, bytes))  # any other fails when it is written
