"""Verdicts → broker, in the batches that happen to gather while the one before is under way.

Theory. A verdict is final when `put` returns. `put` is synchronous, so nothing can be cancelled between the end of a
run and the handing over of its verdict.

* One task carries verdicts out, one batch at a time. What is put meanwhile is the next batch: batches grow with the
  load, and a single verdict never waits for others.
* The task is shielded, because a worker that is cancelled still has verdicts to settle. Whoever closes it bounds it;
  what is left then comes back when the leases end, and is counted as unsettled.
* A call without an answer is made again until it has one. What it had settled after all is answered as unknown, which
  is no lost lease.
* A verdict that the broker cannot write must not hold up its neighbours: the batch is settled one by one, and what was
  wrong becomes the failure of its own message.
* Every verdict that was put leaves `unsettled` in the ledger once, by `verdicts_returned`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import trio

from ..delivery import Delivery, Failure, NewResult, Settlement, with_failure
from ..errors import BrokerUnavailable, LeaseLost
from ..logs import Log
from ..ports import Consumer, ResultStore, Verdict
from .backoff import backoff, log_unavailable
from .ledger import Ledger
from .postponed import Postponed

log = Log("repid.worker")


class Settler:
    """Takes verdicts synchronously, so that nothing can come between "ended" and "handed over", and carries them out.

    `result_store` is given where results live elsewhere than the messages. `can_delay`: whether the server can make a
    message ready later; otherwise `postponed` holds such verdicts back. `run` is shielded: it ends when `close` was called and everything is settled. Whoever closes it bounds it.
    """

    def __init__(
        self, consumer: Consumer, ledger: Ledger, result_store: ResultStore | None = None, *, can_delay: bool = True
    ) -> None:
        self.postponed = Postponed(self._put)
        self._can_delay = can_delay
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
        return [settlement.delivery for settlement in [*self._on_their_way, *self._pending]]

    def put(self, settlement: Settlement) -> None:
        """Hand a verdict over: from here on it is final."""
        if self._can_delay or not self.postponed.hold_back(settlement):
            self._put(settlement)

    def _put(self, settlement: Settlement) -> None:
        self._pending.append(settlement)
        self._ledger.handed_over(settlement.delivery)
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
                while self._pending or not self._closed:
                    if self._pending:
                        await self._settle_pending()
                    else:
                        self._parked = True
                        await self._lot.park()
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

    async def _settle_pending(self) -> None:
        batch = self._on_their_way = self._pending
        self._pending = []
        try:
            verdicts = await self._settle(batch)
        except Exception as error:  # noqa: BLE001  whatever is wrong with one of them, the others are settled
            if len(batch) > 1:
                log.warning("%d verdicts could not be settled together, each is settled alone: %s", len(batch), error)
            for settlement in batch:
                written, verdict = await self._settle_alone(settlement)
                self._note([written], [verdict])
        else:
            self._note(batch, verdicts)
        self._on_their_way = []

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
                log.exception("verdict %s on message %r cannot be written", kind, settlement.delivery.envelope.id)
                return instead, verdict
            raise

    async def _settle(self, batch: list[Settlement]) -> list[Verdict]:
        for delay in backoff():
            try:
                if self._result_store is not None:
                    batch = await self._store_results(self._result_store, batch)
                return await self._consumer.settle(batch)
            except BrokerUnavailable as error:
                log_unavailable(log, error, "cannot settle %d verdicts, again in %.1f s", len(batch), delay)
                await trio.sleep(delay)
        raise AssertionError  # backoff has no end

    def _note(self, batch: list[Settlement], verdicts: list[Verdict]) -> None:
        settled, waiting = self._ledger.settled, self._waiting
        for settlement, verdict in zip(batch, verdicts, strict=True):
            settled(settlement.delivery, settlement.disposition, verdict)
            if waiting and settlement.delivery in waiting:
                self._answer(settlement.delivery, verdict)
            if verdict.outcome != "settled":
                self._log_not_accepted(settlement, verdict)
        self._ledger.verdicts_returned(len(batch))

    async def _store_results(self, store: ResultStore, batch: list[Settlement]) -> list[Settlement]:
        """Results that live elsewhere are stored before the messages are settled: after a crash they are stored again."""
        results = [settlement.result for settlement in batch if settlement.result is not None]
        if results:
            await store.store_results(results)
        return [msgspec.structs.replace(settlement, result=None) for settlement in batch]

    def _answer(self, delivery: Delivery, verdict: Verdict | None) -> None:
        answer = self._waiting.pop(delivery)
        answer.verdict = verdict
        answer.event.set()

    def _log_not_accepted(self, settlement: Settlement, verdict: Verdict) -> None:
        what, id_ = type(settlement.disposition).__name__, settlement.delivery.envelope.id
        if verdict.outcome == "unknown":
            log.warning(
                "verdict %s on message %r was sent and not answered, and now its lease is over: most likely the broker "
                "had carried the verdict out; if not, the message is run again",
                what,
                id_,
            )
        else:
            log.warning(
                "verdict %s on message %r came too late: its lease had ended and it belongs to another worker",
                what,
                id_,
            )


def _instead_of(settlement: Settlement, error: Exception) -> Iterator[Settlement]:
    """What to settle where the broker does not take the verdict itself, the best first: without its outbox, as a failure.

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
    """The broker's answer to one verdict. `verdict` stays None where the worker ended before the broker answered."""

    __slots__ = ("delivery", "event", "verdict")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.event = trio.Event()
        self.verdict: Verdict | None = None

    async def wait(self) -> None:
        """Wait for it. Cancelling only ends the waiting.

        Raises `LeaseLost` if the verdict was refused, and only then: a verdict whose fate is unknown was carried out
        most likely.
        """
        await self.event.wait()
        if self.verdict is None:
            raise BrokerUnavailable(
                f"the worker ended before the broker had answered for {self.delivery.envelope.id!r}"
            )
        if self.verdict.outcome == "refused":
            raise LeaseLost(self.delivery.envelope.id)
