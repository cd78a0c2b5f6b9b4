"""One verdict that cannot be written is that message's failure: its neighbours are settled, and the worker goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from repid import Envelope, InMemoryServer, NotConnected, SQLiteServer
from repid.delivery import (
    ACK,
    Ack,
    Bounds,
    DeadLetter,
    Delivery,
    Failure,
    NewResult,
    Progress,
    Release,
    Retry,
    Settlement,
)
from repid.ports import LARGEST_CALL, LARGEST_PAYLOADS, Consumer, ResultStore, Verdict
from repid.runtime.ledger import Ledger
from repid.runtime.progress import Reporter
from repid.runtime.sending import Sending
from repid.runtime.settler import MANY_PER_TURN, WORTH_A_CALL, Settler

pytestmark = pytest.mark.real_time

BAD = "\udcff"


@asynccontextmanager
async def leased(path: Path) -> AsyncGenerator[tuple[SQLiteServer, Consumer, list[Delivery]], None]:
    server = SQLiteServer(path)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([Envelope(id_, "q", b"") for id_ in ("before", "bad", "after")])
        async with server.consume({"q": None}) as consumer:
            yield server, consumer, await consumer.receive(3)


def settler_of(
    consumer: Consumer, deliveries: Sequence[Delivery], result_store: ResultStore | None = None
) -> tuple[Ledger, Settler]:
    """The settler of a worker that has these deliveries, which no actor takes, and its ledger."""
    ledger = Ledger(10, 10)
    ledger.lease(deliveries, [None] * len(deliveries), trio.current_time(), 60)
    return ledger, Settler(consumer, ledger, Sending(()), result_store)


async def settle_all(settler: Settler, bound: float = 10) -> None:
    """Have it settle what was put, and end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(settler.run)
        await settler.close(bound)


@pytest.mark.parametrize(
    "verdict",
    [
        {"disposition": DeadLetter("nacked", Failure("E", f"text {BAD}"))},
        {"disposition": Ack(Failure(BAD, "text"))},
        {"disposition": ACK, "outbox": (Envelope("1", "q", b"", headers={"x": BAD}),)},
        {"disposition": ACK, "outbox": (Envelope("1", BAD, b""),)},
        {"disposition": ACK, "outbox": (Envelope("1", "q", "no bytes"),)},  # type: ignore[arg-type]
        {"disposition": ACK, "result": NewResult(id=BAD, state="success")},
        {"disposition": ACK, "result": NewResult(id="bad", state="success", payload=None)},  # type: ignore[arg-type]
        {"disposition": Release(delay="soon")},  # type: ignore[arg-type]
    ],
    ids=["failure", "acked failure", "header", "queue", "payload", "result's id", "result", "delay"],
)
async def test_a_verdict_that_cannot_be_written_becomes_a_failure(tmp_path: Path, verdict: dict[str, object]) -> None:
    async with leased(tmp_path / "repid.db") as (server, consumer, (before, bad, after)):
        ledger, settler = settler_of(consumer, [before, bad, after])
        settler.put(Settlement(before, ACK))
        settler.put(Settlement(bad, **verdict))  # type: ignore[arg-type]
        settler.put(Settlement(after, ACK))
        await settle_all(settler)
        report = ledger.report()
        assert (report.succeeded, report.failed, report.unsettled) == (2, 1, 0)
        counts = await server.counts("q")
        assert (counts.leased, counts.ready) == (0, 0)
        letters = await server.browse("q", "dead")
        assert [letter.envelope.id for letter in letters] == ["bad"] * report.dead
        for letter in letters:
            assert letter.failure is not None
            letter.failure.text.encode()


@pytest.mark.parametrize("neighbours", [0, 1])
async def test_a_verdict_that_cannot_be_written_is_logged_once_with_the_reason_and_no_traceback(
    tmp_path: Path, neighbours: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with leased(tmp_path / "repid.db") as (_, consumer, deliveries):
        _, settler = settler_of(consumer, deliveries)
        for delivery in deliveries[:neighbours]:
            settler.put(Settlement(delivery, ACK))
        settler.put(Settlement(deliveries[-1], ACK, result=NewResult(id=BAD, state="success")))
        await settle_all(settler)
    [text] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert text.startswith("verdict Ack on message 'after' cannot be written: the text '\\udcff' cannot be written to")
    assert "Traceback" not in caplog.text


async def test_a_verdict_whose_writing_fails_by_a_fault_of_ours_is_logged_with_one_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with leased(tmp_path / "repid.db") as (_, consumer, deliveries):
        _, settler = settler_of(consumer, deliveries)
        result = NewResult(id="1", state="success", payload=cast("bytes", object()))
        settler.put(Settlement(deliveries[0], ACK, result=result))
        await settle_all(settler)
    assert caplog.text.count("Traceback") == 1


def acknowledged(delivery: Delivery) -> Settlement:
    return Settlement(delivery, ACK)


async def calls_to_settle(
    turns: Sequence[int], settlement: Callable[[Delivery], Settlement] = acknowledged
) -> list[int]:
    """How many verdicts each call is about, if so many are put in each turn of the event loop."""
    calls: list[int] = []
    server = InMemoryServer(instruments=[lambda call: calls.append(call.count) if call.name == "settle" else None])
    async with server.connection():
        await server.declare(["q"])
        await server.publish([Envelope(str(number), "q", b"") for number in range(sum(turns))])
        async with server.consume({"q": None}) as consumer:
            left = iter(await consumer.receive(sum(turns)))
            _, settler = settler_of(consumer, [])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(settler.run)
                await trio.testing.wait_all_tasks_blocked()
                for count in turns:
                    for delivery in islice(left, count):
                        settler.put(settlement(delivery))
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                await settler.close(10)
    return calls


async def test_verdicts_that_come_in_every_turn_of_the_loop_are_settled_many_at_a_time() -> None:
    calls = await calls_to_settle([64] * 20)
    assert sum(calls) == 20 * 64
    assert min(calls[:-1]) >= WORTH_A_CALL


@pytest.mark.parametrize("count", [1, MANY_PER_TURN - 1, WORTH_A_CALL])
async def test_verdicts_that_are_few_or_enough_wait_for_no_others(count: int) -> None:
    assert (await calls_to_settle([count, 0, 0, 1]))[0] == count


async def test_more_verdicts_than_a_call_can_answer_in_time_are_settled_in_several() -> None:
    assert await calls_to_settle([2 * LARGEST_CALL + 1]) == [LARGEST_CALL, LARGEST_CALL, 1]


@pytest.mark.parametrize("where", ["results", "outboxes"])
async def test_verdicts_with_more_bytes_than_a_call_can_answer_in_time_are_settled_in_several(where: str) -> None:
    def settlement(delivery: Delivery) -> Settlement:
        value = b"x" * (LARGEST_PAYLOADS // 4)
        if where == "outboxes":
            return Settlement(delivery, ACK, (Envelope(f"of {delivery.envelope.id}", "q", value),))
        return Settlement(delivery, ACK, result=NewResult(id=delivery.envelope.id, state="success", payload=value))

    assert await calls_to_settle([10], settlement) == [4, 4, 2]


async def test_where_nothing_can_be_settled_the_first_error_is_raised(tmp_path: Path) -> None:
    async with leased(tmp_path / "repid.db") as (_, consumer, deliveries):
        pass
    _, settler = settler_of(consumer, deliveries)
    settler.put(Settlement(deliveries[0], ACK))
    with pytest.RaisesGroup(NotConnected):
        await settler.run()


async def test_a_retry_that_cannot_be_written_stays_a_retry(tmp_path: Path) -> None:
    async with leased(tmp_path / "repid.db") as (server, consumer, (before, bad, after)):
        ledger, settler = settler_of(consumer, [before, bad, after])
        for settlement in (
            Settlement(before, ACK),
            Settlement(bad, Retry(0.0, Failure("E", "why")), outbox=(Envelope("1", BAD, b""),)),
            Settlement(after, ACK),
        ):
            settler.put(settlement)
        await settle_all(settler)
        assert (ledger.report().succeeded, ledger.report().retried) == (2, 1)
        [again] = await consumer.receive(3)
        assert (again.envelope.id, again.attempt) == ("bad", 2)
        await consumer.settle([Settlement(again, Release())])
        [ready] = await server.browse("q", "ready")
        assert ready.failure is not None
        assert ready.failure.text.startswith("why (the verdict Retry could not be written: ")


async def test_what_is_settled_alone_counts_although_the_broker_does_not_answer_for_the_rest(tmp_path: Path) -> None:
    class Hanging:
        """Answers for one message, and never again."""

        async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
            if len(settlements) > 1 or settlements[0].delivery is before:
                return await consumer.settle(settlements)
            await trio.sleep_forever()
            raise AssertionError

        def __getattr__(self, name: str) -> Any:
            return getattr(consumer, name)

    async with leased(tmp_path / "repid.db") as (_, consumer, (before, bad, _)):
        ledger, settler = settler_of(cast("Consumer", Hanging()), [before, bad])
        settler.put(Settlement(before, ACK))
        settler.put(Settlement(bad, ACK, (Envelope("1", BAD, b""),)))
        await settle_all(settler, 1)
        assert (ledger.report().succeeded, ledger.report().unsettled) == (1, 1)


async def test_a_verdict_that_cannot_be_written_is_a_failure_too_when_it_has_waited_for_room(tmp_path: Path) -> None:
    async with leased(tmp_path / "repid.db") as (server, consumer, (before, bad, after)):
        await server.declare(["full"])
        await server.set_bounds({"full": Bounds(max_size=1)})
        await server.publish([Envelope("in the way", "full", b"")])
        ledger, settler = settler_of(consumer, [before, bad, after])
        for delivery, id_ in ((before, "before"), (bad, BAD), (after, "after")):
            outbox = (Envelope(f"sent {delivery.envelope.id}", "full", b""),)
            settler.put(Settlement(delivery, ACK, outbox, NewResult(id=id_, state="success")))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settler.run)
            while not settler.set_aside:
                await trio.sleep(0.01)
            await server.set_bounds({"full": Bounds(max_size=10)})
            while settler.set_aside:
                await trio.sleep(0.01)
            await settler.close(10)
        report = ledger.report()
        assert (report.succeeded, report.dead, report.unsettled) == (2, 1, 0)
        assert [each.envelope.id for each in await server.browse("full", "ready")] == [
            "in the way",
            "sent before",
            "sent after",
        ]
        [letter] = await server.browse("q", "dead")
        assert letter.envelope.id == "bad"


@pytest.mark.parametrize(
    "bad",
    [
        Progress(done=1, note=BAD),
        Progress(done=float("nan")),
        Progress(done=1, total=float("inf")),
        Progress(done="7"),  # type: ignore[arg-type]
        Progress(done=1, note=object()),  # type: ignore[arg-type]
    ],
    ids=["text", "nan", "infinity", "type", "object"],
)
async def test_progress_that_cannot_be_written_keeps_nobody_elses_back(tmp_path: Path, bad: Progress) -> None:
    async with leased(tmp_path / "repid.db") as (server, consumer, deliveries), trio.open_nursery() as nursery:
        reporter = Reporter(consumer)
        for delivery in deliveries:
            reporter.note(delivery, bad if delivery.envelope.id == "bad" else Progress(done=1))
        nursery.start_soon(reporter.run)
        for id_ in ("before", "after"):
            while (await server.watch(id_, id_)).progress is None:
                await trio.sleep(0.01)
        assert (await server.watch("bad", "bad")).progress is None
        nursery.cancel_scope.cancel()


async def test_verdicts_with_and_without_a_result_are_settled_together_where_results_live_elsewhere(
    tmp_path: Path,
) -> None:
    store = InMemoryServer()
    async with store.connection(), leased(tmp_path / "repid.db") as (server, consumer, deliveries):
        ledger, settler = settler_of(consumer, deliveries, store)
        results = [None, NewResult(id="kept", state="success", payload=b"1"), None]
        for delivery, result in zip(deliveries, results, strict=True):
            settler.put(Settlement(delivery, ACK, result=result))
        await settle_all(settler)
        assert ledger.report().succeeded == 3
        [stored] = await store.fetch_results(["kept"])
        assert stored is not None
        assert stored.payload == b"1"
        assert await server.fetch_results(["kept"]) == [None]


async def test_a_worker_whose_verdict_does_not_stand_in_line_yet_is_not_taken_for_one_that_only_waits() -> None:
    server = InMemoryServer()
    async with server.connection():
        await server.declare(["in", "out"])
        await server.set_bounds({"out": Bounds(max_size=1)})
        await server.publish([Envelope("1", "in", b""), Envelope("2", "out", b"")])
        async with server.consume({"in": None}) as consumer, trio.open_nursery() as nursery:
            [delivery] = await consumer.receive(1)
            sending = Sending(["in", "out"])
            ledger = Ledger(10, 10)
            ledger.lease([delivery], [None], trio.current_time(), 60)
            settler = Settler(consumer, ledger, sending, None)
            sending.can_start = lambda _: False
            nursery.start_soon(settler.run)
            await trio.testing.wait_all_tasks_blocked()
            settlement = Settlement(delivery, ACK, (Envelope("3", "out", b""),))
            assert sending.can_only_wait(frozenset(), 0)
            assert settler.set_aside.add(settlement, "out")
            assert not sending.can_only_wait(frozenset(), 0)
            assert sending.can_only_wait(frozenset({"out"}), 0)
            await settler.close(0)
