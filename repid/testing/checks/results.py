"""Results: stored with the settlement, kept until they expire."""

from __future__ import annotations

from ...delivery import ACK, DAY, Cancel, DeadLetter, Failure, NewResult, Release, ResultState, StoredResult
from ...envelope import Envelope, Options
from ...ports import REFUSED, SETTLED, Broker, Schedule
from ..expecting import expect, expect_between
from ..judging import check
from ..lab import Lab, message

FAILURE = Failure("ValueError", "ü is wrong", "Traceback:\n  line 1")
STATES: tuple[ResultState, ...] = ("success", "failure", "dead", "expired", "cancelled")


async def fetch(broker: Broker, id_: str) -> StoredResult | None:
    """The result under one id."""
    [result] = await broker.fetch_results([id_])
    return result


async def state_of(broker: Broker, id_: str) -> ResultState | None:
    """The state of the result under one id."""
    result = await fetch(broker, id_)
    return None if result is None else result.state


@check("results", "schedules")
async def a_stored_result_is_fetched_as_it_was(lab: Lab) -> None:
    """State, payload and failure come back as they were stored, with the time, in the order of the ids asked for."""
    payload = bytes(range(256)) * 64
    results = [NewResult(id=f"{state} ü", state=state, payload=payload, failure=FAILURE, ttl=500) for state in STATES]
    before = await lab.broker.now()
    await lab.broker.store_results([*results, NewResult(id="plain", state="success")])
    after = await lab.broker.now()
    asked = [result.id for result in reversed(results)]
    fetched = await lab.broker.fetch_results([asked[0], "unknown", *asked[1:], "plain", asked[0]])
    expect("the ids", [None if r is None else r.id for r in fetched], [asked[0], None, *asked[1:], "plain", asked[0]])
    for result in fetched:
        if result is not None and result.id != "plain":
            what = (f"{result.state} ü", result.payload, result.failure)
            expect("state, payload and failure", what, (result.id, payload, FAILURE))
            expect_between("finished_at", result.finished_at, before - 0.001, after + 0.001)
            expect_between("expires_at", result.expires_at - result.finished_at, 499.99, 500.01)
    plain = fetched[-2]
    if plain is not None:
        expect("the payload and failure of a plain one", (plain.payload, plain.failure), (b"", None))
        expect_between("how long it is kept", plain.expires_at - plain.finished_at, DAY - 0.01, DAY + 0.01)
    expect("of no ids", await lab.broker.fetch_results([]), [])


@check("results")
async def a_result_replaces_the_one_before(lab: Lab) -> None:
    """Storing under an id again replaces everything that was stored there."""
    await lab.broker.store_results([NewResult(id="1", state="failure", failure=FAILURE, ttl=lab.moment)])
    await lab.broker.store_results([NewResult(id="1", state="success", payload=b"2", ttl=1000)])
    await lab.advance(2 * lab.moment)
    result = await fetch(lab.broker, "1")
    what = None if result is None else (result.state, result.payload, result.failure)
    expect("the result", what, ("success", b"2", None))


@check("results")
async def a_result_expires(lab: Lab) -> None:
    """A result is there until its ttl has passed, and not after that."""
    await lab.broker.store_results([NewResult(id=str(n), state="success", ttl=n * lab.moment) for n in (2, 5)])
    await lab.advance(lab.moment)
    expect("before", [await state_of(lab.broker, id_) for id_ in "25"], ["success", "success"])
    await lab.advance(2 * lab.moment)
    expect("in between", [await state_of(lab.broker, id_) for id_ in "25"], [None, "success"])
    await lab.advance(3 * lab.moment)
    expect("in the end", [await state_of(lab.broker, id_) for id_ in "25"], [None, None])


@check("results")
async def a_settlement_stores_its_result(lab: Lab) -> None:
    """A result is stored with its settlement, with every disposition, under its own id."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"), message("2"), message("3"))
        one, two, three = await lab.take(consumer, 3)
        result = NewResult(id="other id", state="success", payload=b'"ok"')
        expect("the verdict", await lab.settle(consumer, one, ACK, result=result), SETTLED)
        result = NewResult(id="2", state="failure", failure=FAILURE)
        expect("the verdict", await lab.settle(consumer, two, DeadLetter("failed", FAILURE), result=result), SETTLED)
        await lab.settle(consumer, three, ACK)
    states = [await state_of(lab.broker, id_) for id_ in ("other id", "1", "2", "3")]
    expect("the results", states, ["success", None, "failure", None])


@check("results", "outbox=atomic")
async def a_refused_settlement_stores_no_result(lab: Lab) -> None:
    """A late verdict neither stores a result nor replaces the one that is there."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        await lab.settle(consumer, delivery, ACK, result=NewResult(id="1", state="success"))
        for id_ in ("1", "2"):
            late = NewResult(id=id_, state="failure")
            expect("the late verdict", await lab.settle(consumer, delivery, ACK, result=late), REFUSED)
    states = [await state_of(lab.broker, id_) for id_ in "12"]
    expect("the results", states, ["success", None])


@check("results", "unique_ids", "outbox=atomic")
async def publishing_an_id_again_removes_its_old_result(lab: Lab) -> None:
    """A result under an accepted message's result id is removed; a refused message removes none."""
    stored = ["1", "own id", "result id", "refused", "undeclared", "other"]
    await lab.publish(message("refused"))
    await lab.broker.store_results([NewResult(id=id_, state="success") for id_ in stored])
    batch = [
        message("1"),
        message("own id", options=Options(result_id="result id")),
        message("refused"),
        message("undeclared", "none"),
    ]
    await lab.broker.publish(batch)
    states = {id_: await state_of(lab.broker, id_) for id_ in stored}
    removed = {"1": None, "result id": None}
    expect("the results", states, {**dict.fromkeys(stored, "success"), **removed})


@check("results", "schedules", "outbox=atomic")
async def an_outbox_and_a_tick_remove_old_results_too(lab: Lab) -> None:
    """However a message is published, a result under its result id is removed: it was another message's."""
    await lab.broker.store_results([NewResult(id=id_, state="success") for id_ in ("outbox", "tick", "dropped")])
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        await lab.settle(consumer, delivery, ACK, message("outbox"))
    await lab.broker.put_schedule(Schedule(name="s", envelope=message("s"), every=1), 1.0)
    expect("the tick", await lab.broker.tick("s", 1.0, 2.0, message("tick")), "fired")
    states = [await state_of(lab.broker, id_) for id_ in ("outbox", "tick", "dropped")]
    expect("the results", states, [None, None, "success"])


@check("queue_admin", "results", "ttl", "outbox=atomic")
async def an_expired_message_leaves_a_result(lab: Lab) -> None:
    """The broker stores "expired" when it finds a ttl to be over, unless the sender wanted no result."""
    ttl = lab.moment
    await lab.publish(
        message("1", options=Options(ttl=ttl)),
        message("2", options=Options(ttl=ttl, result_id="other id", result_ttl=1000)),
        message("3", options=Options(ttl=ttl, store_result=False)),
    )
    await lab.advance(2 * lab.moment)
    await lab.expired("1", "2", "3")
    states = [await state_of(lab.broker, id_) for id_ in ("1", "2", "other id", "3")]
    expect("the results", states, ["expired", None, "expired", None])
    other = await fetch(lab.broker, "other id")
    if other is not None:
        expect_between("how long it is kept", other.expires_at - other.finished_at, 999.9, 1000.1)


@check("queue_admin", "results", "ttl", "outbox=atomic")
async def an_expiry_on_the_way_back_leaves_a_result(lab: Lab) -> None:
    """The same where a message comes back from a lease after its ttl."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1", options=Options(ttl=lab.moment)))
        delivery = await lab.take_one(consumer)
        await lab.advance(2 * lab.moment)
        expect("the verdict", await lab.settle(consumer, delivery, Release()), SETTLED)
    await lab.expired("1")
    expect("the result", await state_of(lab.broker, "1"), "expired")


@check("results", "leases=timed", "outbox=atomic")
async def a_poisonous_message_leaves_a_result(lab: Lab) -> None:
    """The broker stores "dead" when it finds a message to be poison, unless the sender wanted no result."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"), message("2", options=Options(store_result=False)))
        for _ in range(10):
            await lab.take(consumer, 2)
            await lab.outlive(consumer)
            expect("how many are rescued", await consumer.rescue(), 2)
    expect("the results", [await state_of(lab.broker, id_) for id_ in "12"], ["dead", None])


@check("tracking", "results", "delays", "outbox=atomic")
async def a_cancelled_message_leaves_a_result(lab: Lab) -> None:
    """`cancel` stores "cancelled" under the result id for as long as the sender said, unless it wanted no result."""
    none = Options(store_result=False, delay=1e6)
    batch: list[Envelope] = [
        message("1"),
        message("2", options=Options(result_id="other id", result_ttl=1000, delay=1e6)),
        message("3", options=none),
    ]
    await lab.publish(*batch)
    expect("the answers", [await lab.broker.cancel(id_) for id_ in "123"], ["cancelled"] * 3)
    states = [await state_of(lab.broker, id_) for id_ in ("1", "2", "other id", "3")]
    expect("the results", states, ["cancelled", None, "cancelled", None])
    other = await fetch(lab.broker, "other id")
    if other is not None:
        expect_between("how long it is kept", other.expires_at - other.finished_at, 999.9, 1000.1)


@check("tracking", "results", "outbox=atomic")
async def a_cancelled_run_leaves_a_result(lab: Lab) -> None:
    """A run that settles with Cancel as it was asked leaves "cancelled"; one that ended first, its own result."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"), message("2"), message("3", options=Options(store_result=False)))
        deliveries = await lab.take(consumer, 3)
        expect("the answers", [await lab.broker.cancel(id_) for id_ in "123"], ["requested"] * 3)
        expect("the results before", [await state_of(lab.broker, id_) for id_ in "123"], [None] * 3)
        result = NewResult(id="2", state="success")
        expect("the verdicts", await lab.settle(consumer, deliveries[0], Cancel()), SETTLED)
        expect("the verdicts", await lab.settle(consumer, deliveries[1], ACK, result=result), SETTLED)
        expect("the verdicts", await lab.settle(consumer, deliveries[2], Cancel()), SETTLED)
    expect("the results", [await state_of(lab.broker, id_) for id_ in "123"], ["cancelled", "success", None])
