"""Connections: opening, closing, and what is there afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from ...delivery import ACK, DeadLetter, NewResult
from ...envelope import Options
from ...errors import DuplicateId, NotConnected, UsageError
from ...ports import SETTLED, Broker, Consumer, Counts, Role, Schedule, StoredSchedule
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message, messages
from .cancelling import cancelled


@check()
async def connections_nest(lab: Lab) -> None:
    """Blocks of `connection()` nest; the broker stays connected until the outermost one is left."""
    expect("whether it is connected", lab.broker.is_connected, expected=True)
    async with lab.broker.connection() as same:
        await same.publish([message("1")])
    expect("whether it is still connected", lab.broker.is_connected, expected=True)
    await lab.counted("the counts", "q", Counts(ready=1))
    await lab.close()
    expect("whether it is connected in the end", lab.broker.is_connected, expected=False)


Calls: TypeAlias = dict[str, Callable[[], Awaitable[object]]]


def calls_of(broker: Broker) -> dict[Role, Calls]:
    """The calls of each role, in an order in which a connected server can answer them."""
    schedule = Schedule(name="s", envelope=message("s"), every=1)
    return {
        "tracking": {
            "watch": lambda: broker.watch("1", "1"),
            "cancel": lambda: broker.cancel("1"),
            "cancel_each": lambda: broker.cancel_each(["1"]),
        },
        "results": {
            "store_results": lambda: broker.store_results([NewResult(id="1", state="success")]),
            "fetch_results": lambda: broker.fetch_results(["1"]),
        },
        "schedules": {
            "now": broker.now,
            "put_schedule": lambda: broker.put_schedule(schedule, 1),
            "replace_schedule": lambda: broker.replace_schedule(None, StoredSchedule(schedule=schedule, next_at=1)),
            "replace_schedules": lambda: broker.replace_schedules(
                [(None, StoredSchedule(schedule=schedule, next_at=1))]
            ),
            "schedules": broker.schedules,
            "due_schedules": lambda: broker.due_schedules(1),
            "tick": lambda: broker.tick("s", 1, 2, message("1")),
            "remove_schedule": lambda: broker.remove_schedule("s"),
        },
        "queue_admin": {
            "queues": broker.queues,
            "counts": lambda: broker.counts("q"),
            "counts_of": lambda: broker.counts_of(["q"]),
            "paused_of": lambda: broker.paused_of(["q"]),
            "find": lambda: broker.find(["1"]),
            "browse": lambda: broker.browse("q", "ready"),
            "pause": lambda: broker.pause("q"),
            "resume": lambda: broker.resume("q"),
            "flush": lambda: broker.flush("q"),
            "revive": lambda: broker.revive("q"),
            "delete_messages": lambda: broker.delete_messages("q"),
            "delete": lambda: broker.delete("q"),
        },
    }


def _calls(lab: Lab) -> Calls:
    """Every call that the server claims, but those that open something."""
    broker = lab.broker
    calls: Calls = {
        "declare": lambda: broker.declare(["q"]),
        "publish": lambda: broker.publish([message("1")]),
    }
    if lab.capabilities.readers:
        calls["readers"] = broker.readers
    for role, its_calls in calls_of(broker).items():
        if lab.capabilities.has(role):
            calls |= its_calls
    return calls


@check()
async def every_call_outside_a_connection_is_refused(lab: Lab) -> None:
    """Outside `connection()` every call of the broker raises `NotConnected`."""
    await lab.close()

    async def consume() -> None:
        async with lab.broker.consume({"q": None}):
            pass

    for name, call in {**_calls(lab), "consume": consume}.items():
        try:
            with trio.fail_after(lab.time.patience):
                answer = await call()
        except NotConnected:
            continue
        expect(f"what {name} does", answer, NotConnected)


@check()
async def every_call_may_be_made_under_asyncio(lab: Lab) -> None:
    """In an asyncio task `connection()` and every call of the broker work as in a trio task; `consume` is the
    exception.
    """
    await lab.close()
    errors: dict[str, BaseException] = {}

    async def program() -> None:
        async with asyncio.timeout(lab.time.patience), lab.broker.connection() as same, same.connection():
            for name, call in _calls(lab).items():
                try:
                    await call()
                except Exception as error:  # noqa: BLE001  told below, and the others are tried too
                    errors[name] = error

    def run() -> None:
        try:
            asyncio.run(program())
        except Exception as error:  # noqa: BLE001  as above
            errors["connection"] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()  # this trio run stands still meanwhile, and its clock with it
    expect("what was raised by which call", errors, {})
    expect("whether it is connected in the end", lab.broker.is_connected, expected=False)


@check("queue_admin", "delays", "unique_ids")
async def messages_outlive_a_connection(lab: Lab) -> None:
    """When the connection is opened again, every message is in its place, and time has gone on."""
    await lab.kill(message("dead"))
    async with lab.consumer() as consumer:
        await lab.publish(message("leased"))
        await lab.take(consumer, 1)
    await lab.publish(
        message("late", options=Options(delay=4 * lab.moment)), message("never", options=Options(delay=1e6))
    )
    await lab.publish(*messages(2))
    await lab.broker.pause("r")
    before = {
        "dead": "dead",
        "leased": "leased",
        "late": "scheduled",
        "never": "scheduled",
        "m0": "ready",
        "m1": "ready",
    }
    expect("the places before", await lab.places(), before)
    await lab.reopen()
    expect("the places after", await lab.places(), before)
    expect("the counts of a paused queue", await lab.broker.counts("r"), Counts(paused=True))
    [outcome] = await lab.broker.publish([message("leased")])
    expect("the outcome of publishing a live id", type(outcome), DuplicateId)
    await lab.advance(5 * lab.moment)
    async with lab.consumer() as consumer:
        expect("what is received", sorted(ids(await lab.take(consumer, 3))), ["late", "m0", "m1"])
        expect("the answers to revive", await lab.broker.revive("q"), [None])


@check("results", "schedules")
async def results_and_schedules_outlive_a_connection(lab: Lab) -> None:
    """Stored results and schedules are there when the connection is opened again."""
    await lab.broker.store_results([NewResult(id="1", state="success", payload=b"1")])
    await lab.broker.put_schedule(Schedule(name="s", envelope=message("s"), every=5), 1234.5)
    results, schedules = await lab.broker.fetch_results(["1"]), await lab.broker.schedules()
    await lab.reopen()
    expect("the results", await lab.broker.fetch_results(["1"]), results)
    expect("the schedules", await lab.broker.schedules(), schedules)


@check("leases=timed")
async def leases_of_a_closed_connection_come_back(lab: Lab) -> None:
    """What was leased when the connection closed is rescued when its lease has ended."""
    async with lab.consumer() as consumer:
        await lab.publish(*messages(2))
        stale = (await lab.take(consumer, 2))[0]
    await lab.reopen()
    async with lab.consumer() as consumer:
        expect("what is received at once", await lab.drain(consumer), [])
        await lab.outlive(consumer)
        expect("how many are rescued", await consumer.rescue(), 2)
        again = await lab.take(consumer, 2)
        expect("what is received then", [(d.envelope.id, d.lost) for d in again], [("m0", 1), ("m1", 1)])
        verdict = await lab.settle(consumer, stale, DeadLetter("failed"))
        expect("whether the old verdict is accepted", verdict.accepted, expected=False)
        verdicts = await lab.settle_all(consumer, again, ACK)
        expect("whether the new ones are", [verdict.accepted for verdict in verdicts], [True, True])


@check()
async def closing_ends_all_waiting(lab: Lab) -> None:
    """Who waits in `receive` when the outermost connection is left is told so, and does not wait for ever."""
    raised: list[BaseException] = []
    waiting, told = trio.Event(), trio.Event()

    async def wait() -> None:
        try:
            async with lab.consumer() as consumer:
                waiting.set()
                await consumer.receive(1)
        except UsageError as error:
            raised.append(error)
            told.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await waiting.wait()
        await lab.idle()
        nursery.start_soon(lab.close)
        with trio.move_on_after(lab.time.patience):
            await told.wait()
        nursery.cancel_scope.cancel()
    expect("how many were told", len(raised), 1)


@check("queue_admin", "results", "schedules", "delays", "durable", "another")
async def what_was_accepted_outlives_the_client(lab: Lab) -> None:
    """Another client of the same storage finds everything when the first one has gone."""
    await lab.kill(message("dead"))
    await lab.publish(*messages(2), message("late", options=Options(delay=1e6)))
    await lab.broker.store_results([NewResult(id="1", state="success", payload=b"1")])
    await lab.broker.put_schedule(Schedule(name="s", envelope=message("s"), every=5), 1234.5)
    results, schedules = await lab.broker.fetch_results(["1"]), await lab.broker.schedules()
    await lab.close()
    async with lab.another() as other:
        counts = Counts(ready=2, scheduled=1, dead=1)
        expect("the counts", await other.counts("q"), counts)
        expect("the results", await other.fetch_results(["1"]), results)
        expect("the schedules", await other.schedules(), schedules)


@check("queue_admin", "tracking", "unique_ids", "shared", "another")
async def two_clients_share_one_broker(lab: Lab) -> None:
    """What one client publishes, leases, pauses or cancels holds for another at the same time."""
    async with lab.another() as other, lab.consumer() as here, other.consume({"q": None}) as there:
        await lab.publish(message("1"), message("2"))
        [outcome] = await other.publish([message("1", "r")])
        expect("the outcome of a live id", type(outcome), DuplicateId)
        one, two = await lab.take_one(here), await lab.take_one(there)
        expect("what each received", (ids([one]), ids([two])), (["1"], ["2"]))
        expect("the verdict", await lab.settle(here, one, ACK), SETTLED)
        expect("what cancel says of the other's", await lab.broker.cancel("2"), "requested")
        with trio.fail_after(lab.time.patience):
            expect("the cancellation", cancelled(await there.events()), [two.token])
        await other.pause("q")
        expect("the counts", await lab.broker.counts("q"), Counts(leased=1, paused=True))
        await lab.broker.resume("q")
        woken = await lab.woken(there, lambda: lab.publish(message("3")))
        expect("what wakes the other client", woken, ["3"])


@check("queue_admin", "schedules", "shared", "another")
async def a_queue_that_another_client_has_deleted_is_declared_anew(lab: Lab) -> None:
    """The outbox of a settlement and a tick declare the queue that they go to, also if this client knew it until just
    now.
    """
    async with lab.another() as other, lab.consumer() as consumer:
        await lab.publish(message("1"), message("former", "r"))
        await lab.broker.put_schedule(Schedule(name="s", envelope=message("tick", "r"), every=1), 1)
        delivery = await lab.take_one(consumer)
        await other.delete("r")
        expect("the verdict", await lab.settle(consumer, delivery, ACK, message("sent", "r")), SETTLED)
        expect("what was sent", await _ready(lab, "r"), ["sent"])
        await other.delete("r")
        expect("the tick", await lab.broker.tick("s", 1, 2, message("tick", "r")), "fired")
        expect("what has ticked", await _ready(lab, "r"), ["tick"])


async def _ready(lab: Lab, queue: str) -> list[str]:
    return [found.envelope.id for found in await lab.broker.browse(queue, "ready")]


@check("shared", "another")
async def two_clients_never_get_the_same_message(lab: Lab) -> None:
    """Messages that two clients receive at the same time go to one of them each."""
    await lab.publish(*messages(200))
    received: list[str] = []
    async with lab.another() as other, lab.consumer() as here, other.consume({"q": None}) as there:

        async def receive(consumer: Consumer) -> None:
            while deliveries := await lab.drain(consumer):
                received.extend(ids(deliveries))

        async with trio.open_nursery() as nursery:
            for consumer in (here, there):
                nursery.start_soon(receive, consumer)
    expect("how many were received", (len(received), len(set(received))), (200, 200))
