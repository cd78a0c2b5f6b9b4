"""One verdict that cannot be written is that message's failure: its neighbours are settled, and the worker goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from aids import UnreliableServer, send

from repid import BrokerUnavailable, Envelope, Handle, InMemoryServer, Message, Repid, Router, SQLiteServer
from repid.delivery import ACK, Ack, DeadLetter, Delivery, Failure, NewResult, Progress, Release, Retry, Settlement
from repid.ports import Consumer
from repid.runtime.ledger import Ledger
from repid.runtime.progress import Reporter
from repid.runtime.settler import Settler

pytestmark = pytest.mark.real_time

BAD = "\udcff"


def no_actor(_: Envelope) -> None:
    """The routing of a worker that has none."""


@asynccontextmanager
async def leased(path: Path) -> AsyncGenerator[tuple[SQLiteServer, Consumer, list[Delivery]], None]:
    server = SQLiteServer(path)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([Envelope(id_, "q", b"") for id_ in ("before", "bad", "after")])
        async with server.consume({"q": None}) as consumer:
            yield server, consumer, await consumer.receive(3)


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
        ledger = Ledger(10, 10)
        ledger.lease([before, bad, after], no_actor, trio.current_time(), 60)
        settler = Settler(consumer, ledger)
        settler.put(Settlement(before, ACK))
        settler.put(Settlement(bad, **verdict))  # type: ignore[arg-type]
        settler.put(Settlement(after, ACK))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settler.run)
            await settler.close(10)
        report = ledger.report()
        assert (report.succeeded, report.unsettled) == (2, 0)
        counts = await server.counts("q")
        assert (counts.leased, counts.ready) == (0, 0)
        assert counts.dead == report.dead
        if counts.dead:
            [letter] = await server.browse("q", "dead")
            assert letter.envelope.id == "bad"
            assert letter.failure is not None
            letter.failure.text.encode()


async def test_a_retry_that_cannot_be_written_stays_a_retry(tmp_path: Path) -> None:
    async with leased(tmp_path / "repid.db") as (server, consumer, (before, bad, after)):
        ledger = Ledger(10, 10)
        ledger.lease([before, bad, after], no_actor, trio.current_time(), 60)
        settler = Settler(consumer, ledger)
        for settlement in (
            Settlement(before, ACK),
            Settlement(bad, Retry(0.0, Failure("E", "why")), outbox=(Envelope("1", BAD, b""),)),
            Settlement(after, ACK),
        ):
            settler.put(settlement)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settler.run)
            await settler.close(10)
        assert (ledger.report().succeeded, ledger.report().retried) == (2, 1)
        [again] = await consumer.receive(3)
        assert (again.envelope.id, again.attempt) == ("bad", 2)
        await consumer.settle([Settlement(again, Release())])
        [ready] = await server.browse("q", "ready")
        assert ready.failure is not None
        assert ready.failure.text.startswith("why (the verdict Retry could not be written: ")


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
        ledger = Ledger(10, 10)
        ledger.lease(deliveries, no_actor, trio.current_time(), 60)
        settler = Settler(consumer, ledger, store)
        results = [None, NewResult(id="kept", state="success", payload=b"1"), None]
        for delivery, result in zip(deliveries, results, strict=True):
            settler.put(Settlement(delivery, ACK, result=result))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settler.run)
            await settler.close(10)
        assert ledger.report().succeeded == 3
        [stored] = await store.fetch_results(["kept"])
        assert stored is not None
        assert stored.payload == b"1"
        assert await server.fetch_results(["kept"]) == [None]


async def test_whoever_awaits_a_verb_outside_of_the_worker_is_told_that_the_worker_gave_up(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    taken: list[Message] = []
    told: list[BrokerUnavailable] = []

    @router.actor(confirmation_mode="manual")
    async def job(message: Message) -> None:
        taken.append(message)

    async def acknowledge() -> None:
        try:
            await taken[0].ack()
        except BrokerUnavailable as error:
            told.append(error)

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        server.hanging.add("settle")
        nursery.start_soon(acknowledge)
        await trio.sleep(1)
        handle.stop()
    assert [str(error) for error in told] == [
        f"the worker ended before the broker had answered for {taken[0].message_id!r}"
    ]
