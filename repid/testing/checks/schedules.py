"""Schedules: kept, paused and removed; and ticks, of which each is one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import trio

from ...delivery import ACK, DeadLetter, Release, Retry
from ...envelope import Envelope, Options, PrioritiesT
from ...errors import BrokerUnavailable
from ...ports import Broker, Declaration, Schedule, StoredSchedule, TickOutcome
from ..expecting import expect, expect_between
from ..judging import check
from ..lab import Lab, ids, message

AT = 1234567890.123456789
"""A time that survives only where numbers are kept exactly."""

TICKERS = 20


def every(name: str = "s", **changes: object) -> Schedule:
    """A schedule as most checks need it."""
    return Schedule(**{"name": name, "envelope": message(name), "every": 60.0, **changes})  # type: ignore[arg-type]  # they fit


async def stored(lab: Lab, name: str = "s") -> StoredSchedule:
    """The schedule of this name."""
    [found] = [stored for stored in await lab.broker.schedules() if stored.schedule.name == name]
    return found


async def pause(lab: Lab, name: str = "s", *, paused: bool = True) -> None:
    """Stop the ticks of a schedule, or let them go on."""
    old = await stored(lab, name)
    new = msgspec.structs.replace(old, paused=paused)
    expect("whether it was replaced", await lab.broker.replace_schedule(old, new), expected=True)


async def hears(lab: Lab, broker: Broker, cause: Callable[[], Awaitable[object]]) -> None:
    """Expect that who has looked at the schedules of this client, and waits for changes, hears soon of `cause`."""
    with broker.schedule_changes() as wait_for_change:
        await broker.due_schedules(1)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with trio.move_on_after(lab.time.patience):
                    await wait_for_change(math.inf)
                    return
                expect("what who waits has heard of", actual="nothing", expected="a change")

            nursery.start_soon(wait)
            await lab.idle()
            await cause()


async def tick(lab: Lab, at: float, id_: str | None, name: str = "s") -> TickOutcome:
    """Tick once; the next tick is a minute later."""
    return await lab.broker.tick(name, at, at + 60, None if id_ is None else message(id_))


@check("schedules")
async def the_clock_goes_on(lab: Lab) -> None:
    """`now` is the broker's clock in seconds since 1970, and goes on as time passes."""
    before = await lab.broker.now()
    expect("whether it is later than 2020", before > 1.577e9, expected=True)
    await lab.advance(3 * lab.moment)
    after = await lab.broker.now()
    expect_between("what has passed", after - before, 3 * lab.moment - 0.01, 3 * lab.moment + lab.slack)


@check("schedules", "priorities")
async def a_schedule_is_kept_as_it_was_put(lab: Lab) -> None:
    """Every field of a schedule and of its envelope is given back; schedules come by name."""
    envelope = Envelope(
        "model",
        "q",
        b"\x00\xff",
        "text/plain",
        {"topic": "ü"},
        "r",
        Options(timeout=float("inf"), priority=PrioritiesT.LOW),
        {"key": [1, None]},
    )
    cron = Schedule(
        name="a ü", envelope=envelope, cron="*/5 * * * *", timezone="Europe/Paris", overlap="allow", missed="none"
    )
    await lab.broker.put_schedule(every("b"), AT)
    await lab.broker.put_schedule(cron, AT + 1)
    expected = [StoredSchedule(schedule=cron, next_at=AT + 1), StoredSchedule(schedule=every("b"), next_at=AT)]
    expect("the schedules", await lab.broker.schedules(), expected)


@check("schedules")
async def a_tick_publishes_its_message(lab: Lab) -> None:
    """A tick at the expected time moves the schedule and publishes, declaring the queue, in one step."""
    await lab.broker.put_schedule(every(), AT)
    envelope = message("tick", "new", topic="t")
    expect("the outcome", await lab.broker.tick("s", AT, AT + 60, envelope), "fired")
    found = await stored(lab)
    expect("the next time", found.next_at, AT + 60)
    expect("fired, skipped, last id", (found.fired, found.skipped, found.last_id), (1, 0, "tick"))
    async with lab.consumer(None, "new") as consumer:
        expect("what is received", (await lab.take_one(consumer)).envelope, envelope)


@check("schedules")
async def a_tick_wakes_a_waiting_receive(lab: Lab) -> None:
    """Who waits for messages gets that of a tick."""
    await lab.broker.put_schedule(every(), AT)
    async with lab.consumer() as consumer:
        expect("what is received", await lab.woken(consumer, lambda: tick(lab, AT, "tick")), ["tick"])


@check("schedules")
async def a_new_schedule_wakes_who_follows_them(lab: Lab) -> None:
    """Who waits for changes of schedules goes on when one is stored that is due soon, also one that was stored before
    and is due earlier now, or is not paused any more.
    """
    now = await lab.broker.now()
    await hears(lab, lab.broker, lambda: lab.broker.put_schedule(every(), now + 5))
    await hears(lab, lab.broker, lambda: lab.broker.put_schedule(every(every=3.0), now + 3))
    await pause(lab)
    await hears(lab, lab.broker, lambda: pause(lab, paused=False))


@check("schedules", "shared", "another")
async def a_new_schedule_wakes_another_client_that_follows_them(lab: Lab) -> None:
    """The same holds where another client stores the schedule, however often; and of many only one has to be heard."""
    now = await lab.broker.now()
    async with lab.another() as other:
        await hears(lab, other, lambda: lab.broker.put_schedule(every(), now + 5))
        await hears(lab, other, lambda: lab.broker.put_schedule(every(every=3.0), now + 3))
        await pause(lab)
        await hears(lab, other, lambda: pause(lab, paused=False))
        changes = [(None, StoredSchedule(schedule=every(str(n)), next_at=now + 4 + n)) for n in range(20)]
        await hears(lab, other, lambda: lab.broker.replace_schedules(changes))
        await hears(lab, lab.broker, lambda: other.put_schedule(every("back"), now + 5))


@check("schedules", "cut")
async def who_follows_schedules_looks_again_when_the_link_is_back(lab: Lab) -> None:
    """A link that was cut may have lost news: when it is up again, that is news."""

    async def cut_off() -> None:
        lab.cut.go_down()
        with suppress(BrokerUnavailable):
            await lab.broker.now()
        lab.cut.come_back()

    await hears(lab, lab.broker, cut_off)


@check("queue_admin", "schedules")
async def one_of_many_tickers_fires(lab: Lab) -> None:
    """Any number of workers that tick at once yield one message per tick; the others have lost."""
    await lab.broker.put_schedule(every(overlap="allow"), AT)
    outcomes: Counter[str] = Counter()

    async def one(at: float, number: int) -> None:
        outcomes[await tick(lab, at, f"{at} {number}")] += 1

    for round_ in range(3):
        async with trio.open_nursery() as nursery:
            for number in range(TICKERS):
                nursery.start_soon(one, AT + 60 * round_, number)
    expect("the outcomes", dict(outcomes), {"fired": 3, "lost": 3 * (TICKERS - 1)})
    expect("how many messages there are", len(await lab.places()), 3)
    found = await stored(lab)
    expect("fired and skipped", (found.fired, found.skipped), (3, 0))


@check("queue_admin", "schedules")
async def a_tick_at_another_time_is_lost(lab: Lab) -> None:
    """A tick that expects another time, or a schedule that is not there, changes nothing and publishes nothing."""
    expect("of no schedule", await tick(lab, AT, "1"), "lost")
    await lab.broker.put_schedule(every(), AT)
    for wrong in (AT + 0.001, AT - 60, AT + 60):
        expect("at another time", await tick(lab, wrong, "1"), "lost")
    expect("the schedule", await stored(lab), StoredSchedule(schedule=every(), next_at=AT))
    expect("the places", await lab.places(), {})


@check("queue_admin", "schedules", "delays", "tracking")
async def a_tick_is_skipped_while_the_former_message_lives(lab: Lab) -> None:
    """With overlap "skip", ready, leased, released and retried count as live; acknowledged and dead do not."""
    await lab.broker.put_schedule(every(), AT)
    outcomes: list[TickOutcome] = []

    async def next_tick() -> None:
        outcomes.append(await tick(lab, AT + 60 * len(outcomes), f"tick{len(outcomes)}"))

    async with lab.consumer() as consumer:
        await next_tick()
        await next_tick()
        delivery = await lab.take_one(consumer)
        await next_tick()
        await lab.settle(consumer, delivery, Retry(lab.moment))
        await next_tick()
        await lab.advance(2 * lab.moment)
        await lab.settle(consumer, await lab.take_one(consumer), Release())
        await next_tick()
        await lab.settle(consumer, await lab.take_one(consumer), ACK)
        await next_tick()
        await lab.settle(consumer, await lab.take_one(consumer), DeadLetter("failed"))
        await next_tick()
    expect("the outcomes", outcomes, ["fired", *["skipped"] * 4, "fired", "fired"])
    found = await stored(lab)
    what = (found.fired, found.skipped, found.last_id, found.next_at)
    expect("fired, skipped, last id, next time", what, (3, 4, "tick6", AT + 60 * 7))
    expect("the places", await lab.places(), {"tick5": "dead", "tick6": "ready"})


@check("queue_admin", "schedules", "unique_ids")
async def an_overlap_may_be_allowed(lab: Lab) -> None:
    """With overlap "allow" every tick publishes; an envelope whose id is live is counted as skipped all the same."""
    await lab.broker.put_schedule(every(overlap="allow"), AT)
    outcomes = [await tick(lab, AT + 60 * n, id_) for n, id_ in enumerate(("a", "b", "a", None, "c"))]
    expect("the outcomes", outcomes, ["fired", "fired", "skipped", "skipped", "fired"])
    found = await stored(lab)
    what = (found.fired, found.skipped, found.last_id, found.next_at)
    expect("fired, skipped, last id, next time", what, (3, 2, "c", AT + 300))
    expect("the places", await lab.places(), dict.fromkeys("abc", "ready"))


@check("queue_admin", "schedules")
async def a_tick_may_be_passed_over(lab: Lab) -> None:
    """Without an envelope a tick moves the schedule, is counted as skipped and publishes nothing."""
    await lab.broker.put_schedule(every(), AT)
    expect("the outcome", await tick(lab, AT, None), "skipped")
    expect("the schedule", await stored(lab), StoredSchedule(schedule=every(), next_at=AT + 60, skipped=1))
    expect("the places", await lab.places(), {})


@check("queue_admin", "schedules")
async def a_paused_schedule_does_not_tick(lab: Lab) -> None:
    """While a schedule is paused its ticks are lost; afterwards they go on."""
    await lab.broker.put_schedule(every(), AT)
    await lab.broker.put_schedule(every("other"), AT)
    await pause(lab)
    expect("a tick of the paused one", await tick(lab, AT, "1"), "lost")
    expect("a tick of another", await tick(lab, AT, "2", "other"), "fired")
    expect("the paused one", await stored(lab), StoredSchedule(schedule=every(), next_at=AT, paused=True))
    await pause(lab, paused=False)
    expect("a tick afterwards", await tick(lab, AT, "3"), "fired")
    expect("the places", await lab.places(), {"2": "ready", "3": "ready"})


@check("schedules")
async def putting_a_schedule_again_keeps_its_counts_and_pause(lab: Lab) -> None:
    """A schedule put in place of another has a new plan and next time; counts and pause stay."""
    await lab.broker.put_schedule(every(), AT)
    await tick(lab, AT, "1")
    await tick(lab, AT + 60, None)
    await pause(lab)
    changed = every(every=5.0, overlap="allow", envelope=message("other model", "r"))
    await lab.broker.put_schedule(changed, AT + 1000)
    found = await stored(lab)
    expect("the schedule", (found.schedule, found.next_at), (changed, AT + 1000))
    expect("fired, skipped, paused", (found.fired, found.skipped, found.paused), (1, 1, True))
    expect("a tick at the old time", await tick(lab, AT + 120, "2"), "lost")
    await pause(lab, paused=False)
    expect("a tick at the new time", await tick(lab, AT + 1000, "3"), "fired")


@check("schedules", "tracking")
async def putting_a_schedule_again_does_not_forget_its_message(lab: Lab) -> None:
    """The former tick's message still counts when the schedule is put again, as every start of a worker does."""
    await lab.broker.put_schedule(every(), AT)
    await tick(lab, AT, "1")
    await lab.broker.put_schedule(every(), AT + 60)
    expect("the last id", (await stored(lab)).last_id, "1")
    expect("a tick while its message lives", await tick(lab, AT + 60, "2"), "skipped")


@check("schedules")
async def a_schedule_is_replaced_only_if_nothing_has_changed(lab: Lab) -> None:
    """`replace_schedule` stores what it is given if the stored one is as expected, and else changes nothing."""
    declaration = Declaration("actor", "mark", ("former",), "former", AT, AT + 0.5, AT + 0.7)
    new = StoredSchedule(
        schedule=every(), next_at=AT, paused=True, fired=3, skipped=2, last_id="x", declaration=declaration
    )
    plain = StoredSchedule(schedule=every(), next_at=AT)
    expect("in place of what is not there", await lab.broker.replace_schedule(plain, new), expected=False)
    expect("the schedules", await lab.broker.schedules(), [])
    expect("where nothing is", await lab.broker.replace_schedule(None, new), expected=True)
    expect("where something is", await lab.broker.replace_schedule(None, plain), expected=False)
    expect("the schedules", await lab.broker.schedules(), [new])
    expect("in place of another", await lab.broker.replace_schedule(plain, plain), expected=False)
    expect("the schedules", await lab.broker.schedules(), [new])
    running = msgspec.structs.replace(new, paused=False, next_at=AT + 1)
    expect("in place of itself", await lab.broker.replace_schedule(new, running), expected=True)
    expect("a tick of it", await tick(lab, AT + 1, "1"), "fired")
    expect("after a tick", await lab.broker.replace_schedule(running, plain), expected=False)
    await lab.broker.put_schedule(every(every=5.0), AT + 2)
    found = await stored(lab)
    expect("fired, last id, declaration", (found.fired, found.last_id, found.declaration), (4, "1", declaration))


@check("schedules")
async def many_schedules_are_replaced_in_one_call(lab: Lab) -> None:
    """`replace_schedules` stores those whose former one is as expected, and tells which these were."""

    def at(name: str, moment: float) -> StoredSchedule:
        return StoredSchedule(schedule=every(name), next_at=moment)

    expect(
        "the first two", await lab.broker.replace_schedules([(None, at("a", AT)), (None, at("b", AT))]), [True, True]
    )
    changes = [
        (None, at("c", AT + 1)),
        (at("b", AT), at("b", AT + 1)),
        (None, at("a", AT + 1)),
        (at("d", AT), at("d", AT + 1)),
    ]
    expect("which were stored", await lab.broker.replace_schedules(changes), [True, True, False, False])
    expect("the schedules", await lab.broker.schedules(), [at("a", AT), at("b", AT + 1), at("c", AT + 1)])
    expect("none", await lab.broker.replace_schedules([]), [])


@check("schedules")
async def one_of_many_replacements_is_made(lab: Lab) -> None:
    """Of any number of clients that replace the same schedule at once, one does."""
    outcomes: Counter[bool] = Counter()

    async def one(number: int) -> None:
        new = StoredSchedule(schedule=every(every=float(number + 1)), next_at=AT)
        outcomes[await lab.broker.replace_schedule(None, new)] += 1

    async with trio.open_nursery() as nursery:
        for number in range(TICKERS):
            nursery.start_soon(one, number)
    expect("how many did", dict(outcomes), {True: 1, False: TICKERS - 1})


@check("schedules")
async def schedules_are_found_by_their_names(lab: Lab) -> None:
    """Asked for names, `schedules` gives those that are there, sorted by name."""
    for name in ("b", "a ü", "c"):
        await lab.broker.put_schedule(every(name), AT)
    found = await lab.broker.schedules(["c", "no such", "a ü"])
    expect("the names", [each.schedule.name for each in found], ["a ü", "c"])
    expect("of no names", await lab.broker.schedules([]), [])


@check("schedules")
async def what_is_due_is_given_with_the_time_of_what_is_next(lab: Lab) -> None:
    """`due_schedules` gives at most `limit` that are due and not paused, the oldest first, and the next time."""
    nothing = await lab.broker.due_schedules(10)
    expect("without schedules", (nothing.due, nothing.next_at), ([], float("inf")))
    now = nothing.now
    expect_between("the time", await lab.broker.now(), now, now + 3 * lab.moment)
    for name, at in (("a", now - 5), ("b", now - 9), ("c", now - 7), ("paused", now - 20)):
        await lab.broker.put_schedule(every(name), at)
    await pause(lab, "paused")
    expect("the next one, where all are due", (await lab.broker.due_schedules(10)).next_at, float("inf"))
    cron = every("cron", every=None, cron="0 0 1 1 *")
    await lab.broker.put_schedule(cron, now + 9000)
    await lab.broker.put_schedule(every("later"), now + 50)
    found = await lab.broker.due_schedules(10)
    expect("what is due", [each.schedule.name for each in found.due], ["b", "c", "a"])
    expect("as it is stored", found.due[0], await stored(lab, "b"))
    expect("when the next one is due", found.next_at, now + 50)
    found = await lab.broker.due_schedules(2)
    expect("the first two", [each.schedule.name for each in found.due], ["b", "c"])


@check("schedules")
async def an_interval_that_is_further_away_than_itself_is_due(lab: Lab) -> None:
    """After a step back of the clock, `due_schedules` gives the intervals whose next time is too far away, last."""
    now = await lab.broker.now()
    await lab.broker.put_schedule(every("far"), now + 4000)
    await lab.broker.put_schedule(every("near"), now + 60)
    await lab.broker.put_schedule(every("cron", every=None, cron="0 0 1 1 *"), now + 4000)
    await lab.broker.put_schedule(every("due"), now - 1)
    await lab.broker.put_schedule(every("paused"), now + 4000)
    await pause(lab, "paused")
    found = await lab.broker.due_schedules(10)
    expect("what is due", [each.schedule.name for each in found.due], ["due", "far"])
    found = await lab.broker.due_schedules(1)
    expect("the first one", [each.schedule.name for each in found.due], ["due"])


@check("queue_admin", "schedules")
async def a_removed_schedule_leaves_its_messages(lab: Lab) -> None:
    """Removing a schedule forgets it and its counts; what it published stays. Of no schedule the answer is False."""
    expect("of no schedule", await lab.broker.remove_schedule("s"), expected=False)
    await lab.broker.put_schedule(every(), AT)
    await tick(lab, AT, "1")
    expect("the answer", await lab.broker.remove_schedule("s"), expected=True)
    expect("the schedules", await lab.broker.schedules(), [])
    expect("a tick of it", await tick(lab, AT + 60, "2"), "lost")
    expect("the places", await lab.places(), {"1": "ready"})
    await lab.broker.put_schedule(every(), AT)
    expect("when it is put anew", await stored(lab), StoredSchedule(schedule=every(), next_at=AT))


@check("schedules")
async def a_late_ticker_doubles_nothing(lab: Lab) -> None:
    """A ticker whose clock is behind, and that ticks again, has lost: nothing is published twice."""
    await lab.broker.put_schedule(every(overlap="allow"), AT)
    times = [AT + 60 * n for n in range(3)]
    fired = [await tick(lab, at, f"{n}") for n, at in enumerate(times)]
    again = [await tick(lab, at, f"again{n}") for n, at in enumerate(times)]
    expect("the outcomes", (fired, again), (["fired"] * 3, ["lost"] * 3))
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), ["0", "1", "2"])


@check("schedules", "wall_clock")
async def a_step_back_of_the_clock_fires_nothing_twice(lab: Lab) -> None:
    """When the clock is stepped back, `now` follows it, the schedule stays where it was, and old ticks are lost."""
    now = await lab.broker.now()
    await lab.broker.put_schedule(every(overlap="allow"), now)
    expect("the first tick", await tick(lab, now, "1"), "fired")
    lab.time.step_wall(-3600)
    expect_between("the time", await lab.broker.now(), now - 3601, now - 3590)
    expect("when it is next", (await stored(lab)).next_at, now + 60)
    expect("the same tick again", await tick(lab, now, "2"), "lost")
    expect("the next tick", await tick(lab, now + 60, "3"), "fired")
    async with lab.consumer() as consumer:
        received = ids(await lab.drain(consumer))
        await lab.advance(4000)
        expect("what is received", sorted(received + ids(await lab.drain(consumer))), ["1", "3"])
