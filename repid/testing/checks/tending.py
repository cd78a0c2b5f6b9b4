"""Looking at queues and tending them: counts, browse, flush, delete, revive, pause and resume."""

from __future__ import annotations

import trio

from ...delivery import ACK, DeadLetter, Release, Retry
from ...envelope import Options, PrioritiesT
from ...errors import BrokerRefused, DuplicateId, QueueNotDeclared
from ...ports import REFUSED, SETTLED, Category, Counts
from ..expecting import expect, expect_between
from ..judging import check
from ..lab import CATEGORIES, Lab, ids, message, messages
from ..timing import Skipped

LATE = Options(delay=1e6)


async def _fill(lab: Lab) -> None:
    """One dead, two leased, three scheduled and four ready messages in "q", one ready in "r"."""
    await lab.kill(message("dead"))
    async with lab.consumer() as consumer:
        await lab.publish(*messages(2, "leased"))
        await lab.take(consumer, 2)
    await lab.publish(*messages(4, "ready"), message("other", "r"))
    await lab.publish(*(message(f"scheduled{n}", options=LATE) for n in range(3)))


@check("queue_admin", "delays")
async def counts_tell_what_browse_shows(lab: Lab) -> None:
    """Every message is in exactly one place, and `counts` counts what `browse` shows there."""
    await _fill(lab)
    expect("the counts", await lab.broker.counts("q"), Counts(ready=4, scheduled=3, leased=2, dead=1))
    expect("the counts of another queue", await lab.broker.counts("r"), Counts(ready=1))
    shown = {category: len(await lab.broker.browse("q", category)) for category in CATEGORIES}
    expect("how many are shown", shown, {"ready": 4, "scheduled": 3, "leased": 2, "dead": 1})
    places = [place for place in (await lab.places("q")).values() if place not in CATEGORIES]
    expect("what is in two places", places, [])


@check("queue_admin", "delays")
async def looking_changes_nothing(lab: Lab) -> None:
    """Browsing and counting lease nothing and settle nothing."""
    await _fill(lab)
    before = await lab.places()
    for category in CATEGORIES:
        await lab.broker.browse("q", category, limit=2)
    await lab.broker.counts("q")
    expect("the places", await lab.places(), before)
    async with lab.consumer() as consumer:
        received = await lab.drain(consumer)
    expect("what is received", ids(received), [f"ready{n}" for n in range(4)])
    expect("the attempts", {(d.attempt, d.lost) for d in received}, {(1, 0)})


@check("queue_admin", "delays", "priorities")
async def browse_keeps_its_limit_and_the_order_of_handling(lab: Lab) -> None:
    """`browse` shows the next to be claimed, or to be due, first; at most `limit`, 100 if none is given."""
    await lab.publish(*messages(105, "medium"), message("high", options=Options(priority=PrioritiesT.HIGH)))
    expect("how many are shown", len(await lab.broker.browse("q", "ready")), 100)
    expect("the first two", (await lab.browsed("ready"))[:2], ["high", "medium0"])
    expect("of one", [b.envelope.id for b in await lab.broker.browse("q", "ready", limit=1)], ["high"])
    expect("how many of 200", len(await lab.broker.browse("q", "ready", limit=200)), 106)
    delays = {"b": 50.0, "a": 20.0, "c": 90.0}
    await lab.publish(*(message(id_, options=Options(delay=delay)) for id_, delay in delays.items()))
    shown = await lab.broker.browse("q", "scheduled", limit=2)
    expect("the scheduled ones", [browsed.envelope.id for browsed in shown], ["a", "b"])


@check("queue_admin", "delays")
async def browse_shows_all_there_is_to_know(lab: Lab) -> None:
    """What is browsed names its place; only what is scheduled or leased is due, only what is dead has a reason."""
    await _fill(lab)
    for category in CATEGORIES:
        for browsed in await lab.broker.browse("q", category):
            name = browsed.envelope.id
            expect(f"the category of {name}", browsed.category, category)
            expect(f"attempt and lost of {name}", (browsed.attempt, browsed.lost), (1, 0))
            expect(f"whether {name} is due", browsed.due_in is not None, category in ("scheduled", "leased"))
            expect(f"the reason of {name}", browsed.reason, "nacked" if category == "dead" else None)
    [leased, _] = await lab.broker.browse("q", "leased")
    expect_between("the end of a lease", leased.due_in, 0, 1e6)


@check("queue_admin")
async def browsed_messages_tell_since_when(lab: Lab) -> None:
    """What is browsed tells when it was enqueued, since when and by whom it is leased, and when it died."""

    async def ages(category: Category) -> dict[str, float | None]:
        """How long ago each of its times was; later ones are below 0."""
        [one] = await lab.broker.browse("q", category)
        expect("what `find` tells of it", [each.category for [each] in await lab.broker.find(["1"])], [category])
        expect(f"whether the worker is named of one that is {category}", bool(one.leased_by), category == "leased")
        times = {"enqueued": one.enqueued_at, "leased": one.leased_at, "died": one.died_at}
        return {name: None if time is None else one.seen_at - time for name, time in times.items()}

    def expect_age(what: str, age: float | None, moments: int) -> None:
        late = lab.slack if lab.time.jumps else lab.time.patience
        expect_between(f"how long ago it {what}", age, (moments - 0.5) * lab.moment, moments * lab.moment + late)

    await lab.publish(message("1"))
    await lab.advance(lab.moment)
    found = await ages("ready")
    expect_age("was enqueued", found["enqueued"], 1)
    expect("what else a ready one tells", (found["leased"], found["died"]), (None, None))
    async with lab.consumer() as consumer:
        delivery = await lab.take_one(consumer)
        await lab.advance(lab.moment)
        await consumer.extend([delivery])
        found = await ages("leased")
        expect_age("was enqueued", found["enqueued"], 2)
        expect_age("was leased, although the lease was extended", found["leased"], 1)
        await lab.settle(consumer, delivery, Release())
        expect_age("was enqueued, although it was released", (await ages("ready"))["enqueued"], 2)
        await lab.settle(consumer, await lab.take_one(consumer), DeadLetter("nacked"))
    await lab.advance(lab.moment)
    found = await ages("dead")
    expect_age("was enqueued", found["enqueued"], 3)
    expect_age("died", found["died"], 1)
    expect("since when a dead one is leased", found["leased"], None)
    await lab.broker.revive("q")
    expect_age("was enqueued, now that it is revived", (await ages("ready"))["enqueued"], 0)


@check("queue_admin", "dead_ttl")
async def dead_letters_go_when_their_time_is_over(lab: Lab) -> None:
    """What has been dead for `dead_ttl` seconds is removed, at the next rescue at the latest, and nothing else is."""
    ttl = lab.time.bearable(lab.capabilities.dead_ttl or 0.0)

    def check_pace(since: float) -> None:
        if trio.current_time() - since >= ttl:
            raise Skipped(f"this machine is too busy to look at dead letters within {ttl:g} s")

    began = trio.current_time()
    await lab.kill(message("old"), message("there", "r"))
    await lab.kill(message("revived"))
    await lab.publish(message("live"))
    await lab.advance(0.6 * ttl)
    async with lab.consumer() as consumer:
        await consumer.rescue()
        shown = await lab.places()
        check_pace(began)
        expect("before it is over", shown, {"old": "dead", "there": "dead", "revived": "dead", "live": "ready"})
        keys = [found.key for found in await lab.broker.browse("q", "dead") if found.envelope.id == "revived"]
        answers = await lab.broker.revive("q", keys)
        check_pace(began)
        expect("the answers to a revival", answers, [None])
        killed = trio.current_time()
        await lab.kill(message("young", "r"))
        await lab.advance(0.6 * ttl)
        await consumer.rescue()
        shown = await lab.places()
        check_pace(killed)
        expect("when it is over", shown, {"young": "dead", "revived": "ready", "live": "ready"})
        expect("what is found of one that is gone", await lab.broker.find(["old"]), [[]])
        expect("the answer to a revival of one that is gone", await lab.broker.revive("q"), [])
        await lab.advance(ttl)
        await consumer.rescue()
        await lab.placed("at last", {"revived": "ready", "live": "ready"})


@check("queue_admin", "not unique_ids=window")
async def keys_tell_the_dead_apart(lab: Lab) -> None:
    """Several dead messages may carry one id; each has its own key, and a revival by key is of that one."""
    for payload in (b"1", b"2", b"3"):
        await lab.kill(message("same", payload=payload))
    dead = {found.envelope.payload: found.key for found in await lab.broker.browse("q", "dead")}
    expect("the payloads", sorted(dead), [b"1", b"2", b"3"])
    expect("how many keys differ", len(set(dead.values())), 3)
    expect("the answers", await lab.broker.revive("q", [dead[b"2"]]), [None])
    async with lab.consumer() as consumer:
        expect("the payload", (await lab.take_one(consumer)).envelope.payload, b"2")
    left = sorted(found.envelope.payload for found in await lab.broker.browse("q", "dead"))
    expect("what is still dead", left, [b"1", b"3"])


@check("queue_admin", "leases=timed", "delays")
async def flush_removes_what_waits(lab: Lab) -> None:
    """`flush` removes and counts what is ready or scheduled; leased and dead ones stay, and other queues."""
    await _fill(lab)
    expect("how many were removed", await lab.broker.flush("q"), 7)
    expect("how many are removed again", await lab.broker.flush("q"), 0)
    places = {"dead": "dead", "leased0": "leased", "leased1": "leased", "other": "ready"}
    expect("the places", await lab.places(), places)
    async with lab.consumer() as consumer:
        expect("what is received", await lab.drain(consumer), [])
        await lab.outlive(consumer)
        expect("how many are rescued", await consumer.rescue(), 2)


@check("queue_admin", "delays=exact", "ttl", "not unique_ids=window")
async def what_was_flushed_does_not_come_back(lab: Lab) -> None:
    """A scheduled message that was flushed is never due, also if its id is used again."""
    await lab.publish(message("1", options=Options(delay=2 * lab.moment, ttl=3 * lab.moment)))
    expect("how many were removed", await lab.broker.flush("q"), 1)
    await lab.publish(message("1"))
    await lab.advance(8 * lab.moment)
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), ["1"])
        expect("the counts", await lab.broker.counts("q"), Counts(leased=1))


@check("queue_admin")
async def what_was_leased_during_a_flush_goes_on(lab: Lab) -> None:
    """A lease outlives a flush: its message may be released or retried as before."""
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        await lab.broker.flush("q")
        expect("the verdict", await lab.settle(consumer, delivery, Retry(0)), SETTLED)
        expect("what is received", ids(await lab.drain(consumer)), ["1"])


@check("queue_admin", "delays")
async def delete_removes_everything(lab: Lab) -> None:
    """A deleted queue is gone with everything in it; late verdicts are refused, and other queues are untouched."""
    async with lab.consumer() as consumer:
        await lab.publish(*messages(3))
        acked, released, extended = await lab.take(consumer, 3)
        await _fill(lab)
        await lab.broker.delete("q")
        await lab.broker.delete("q")
        expect("the verdict of an ack", await lab.settle(consumer, acked, ACK, message("out", "r")), REFUSED)
        expect("the verdict of a release", await lab.settle(consumer, released, Release()), REFUSED)
        expect("whether a lease is extended", await consumer.extend([extended]), [False])
        expect("the places elsewhere", await lab.places("r"), {"other": "ready"})
        [outcome] = await lab.broker.publish([message("1")])
        expect("the outcome of publishing to it", type(outcome), QueueNotDeclared)


@check("queue_admin", "delays=exact", "not unique_ids=window")
async def a_deleted_queue_can_be_declared_anew(lab: Lab) -> None:
    """Declared again it is empty, its ids are free, old leases stay refused, and nothing old is ever due."""
    async with lab.consumer() as consumer:
        await lab.publish(message("leased"))
        stale = await lab.take_one(consumer)
        await lab.publish(message("ready"), message("late", options=Options(delay=2 * lab.moment)))
        await lab.broker.pause("q")
        await lab.broker.delete("q")
        await lab.broker.declare(["q"])
        expect("the counts", await lab.broker.counts("q"), Counts())
        await lab.publish(message("leased"), message("ready"), message("late"))
        expect("the verdict", await lab.settle(consumer, stale, Release()), REFUSED)
        await lab.advance(3 * lab.moment)
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), ["leased", "ready", "late"])
        expect("the counts in the end", await lab.broker.counts("q"), Counts(leased=3))


@check("queue_admin")
async def a_consumer_outlives_its_queue(lab: Lab) -> None:
    """When one of its queues is deleted, a consumer goes on with the others, also if it waits; and with a new one."""
    async with lab.consumer(None, "q", "r") as consumer:
        await lab.publish(message("gone"), message("1", "r"))
        await lab.broker.delete("q")
        expect("what is received", ids(await lab.drain(consumer)), ["1"])
        expect("what wakes it", await lab.woken(consumer, lambda: lab.publish(message("2", "r"))), ["2"])
        await lab.broker.declare(["q"])
        await lab.publish(message("3"))
        expect("what is received of the new queue", ids(await lab.drain(consumer)), ["3"])


@check("queue_admin")
async def revived_messages_are_new(lab: Lab) -> None:
    """`revive` makes all of a queue's dead ready, with attempt 1 and nothing lost; other queues keep theirs."""
    async with lab.consumer(None, "q", "r") as consumer:
        await lab.publish(message("1"), message("2"), message("other", "r"))
        for delivery in await lab.take(consumer, 3):
            await lab.settle(consumer, delivery, Retry(0))
        await lab.settle_all(consumer, await lab.take(consumer, 3), DeadLetter("failed"))
        expect("the answers", await lab.broker.revive("q"), [None, None])
        expect("the places", await lab.places(), {"1": "ready", "2": "ready", "other": "dead"})
        expect("the answers for none", await lab.broker.revive("q"), [])
        received = await lab.take(consumer, 2)
        expect("attempt and lost", {(d.attempt, d.lost, d.unrouted_age) for d in received}, {(1, 0, None)})
        verdicts = await lab.settle_all(consumer, received, ACK)
        expect("the verdicts", verdicts, [SETTLED, SETTLED])


@check("queue_admin", "unique_ids", "not unique_ids=window")
async def reviving_never_doubles_an_id(lab: Lab) -> None:
    """Whose id is alive again is refused and stays dead; so does a key that is none. One answer for each, in order."""
    await lab.kill(message("alive"))
    await lab.kill(message("fine"))
    await lab.kill(message("fine"))
    await lab.publish(message("alive", "r"))
    keys: dict[str, list[str]] = {}
    for dead in await lab.broker.browse("q", "dead"):
        keys.setdefault(dead.envelope.id, []).append(dead.key)
    unknown = "999999"
    answers = await lab.broker.revive("q", [keys["fine"][0], unknown, *keys["alive"], keys["fine"][1]])
    kinds = [type(answer) for answer in answers]
    expect("the answers", [kinds[0], *kinds[2:]], [type(None), DuplicateId, DuplicateId])
    expect("whether the unknown key is refused", isinstance(answers[1], BrokerRefused), expected=True)
    expect("what is ready", (await lab.browsed("ready"), await lab.browsed("ready", "r")), (["fine"], ["alive"]))
    expect("what is dead", sorted(await lab.browsed("dead")), ["alive", "fine"])


@check("queue_admin", "not unique_ids=window")
async def dead_messages_can_be_removed_for_good(lab: Lab) -> None:
    """`delete_messages` removes and counts the dead with these keys, or all; nothing else, and not in other queues."""
    for name in ("1", "2", "3", "3"):
        await lab.kill(message(name))
    await lab.publish(message("3"), *messages(2), message("other", "r"))
    keys = {found.envelope.id: found.key for found in await lab.broker.browse("q", "dead")}
    unknown = "999999"
    chosen = [keys["3"], keys["1"], keys["1"], unknown]
    expect("how many of other queues were removed", await lab.broker.delete_messages("r", list(keys.values())), 0)
    expect("how many were removed", await lab.broker.delete_messages("q", chosen), 2)
    expect("how many are removed again", await lab.broker.delete_messages("q", chosen), 0)
    expect("what is dead", await lab.browsed("dead"), ["2", "3"])
    expect("the answers to revive", await lab.broker.revive("q", [keys["2"]]), [None])
    expect("how many of the others were removed", await lab.broker.delete_messages("q"), 1)
    expect("the counts", await lab.broker.counts("q"), Counts(ready=4))
    expect("the counts of the other queue", await lab.broker.counts("r"), Counts(ready=1))


@check("queue_admin", "ttl")
async def a_revived_message_lives_its_ttl_anew(lab: Lab) -> None:
    """What expired and is revived has its whole ttl before it again."""
    await lab.publish(message("1", options=Options(ttl=3 * lab.moment)))
    await lab.advance(4 * lab.moment)
    await lab.expired("1")
    expect("the answers", await lab.broker.revive("q"), [None])
    async with lab.consumer() as consumer:
        [delivery] = await lab.take(consumer, 1)
        expect_between("ttl_left", delivery.ttl_left, 3 * lab.moment - lab.slack, 3 * lab.moment + 0.001)


@check("queue_admin", "delays=exact")
async def a_paused_queue_hands_out_nothing(lab: Lab) -> None:
    """While a queue is paused no consumer gets its messages; publishing, leases and other queues go on."""
    async with lab.consumer(None, "q", "r") as one, lab.consumer() as two:
        await lab.publish(message("leased"), message("released"))
        leased, released = await lab.take(one, 2)
        await lab.publish(message("late", options=Options(delay=lab.moment)))
        await lab.broker.pause("q")
        await lab.broker.pause("q")
        await lab.publish(message("new"), message("other", "r"))
        expect("whether its lease is extended", await one.extend([leased]), [True])
        expect("the verdict", await lab.settle(one, leased, ACK), SETTLED)
        expect("the verdict of a release", await lab.settle(one, released, Release()), SETTLED)
        await lab.advance(2 * lab.moment)
        expect("what the one gets", ids(await lab.drain(one)), ["other"])
        expect("what the other gets", ids(await lab.drain(two)), [])
        expect("the counts", await lab.broker.counts("q"), Counts(ready=3, paused=True))
        expect("which of both are paused", await lab.broker.paused_of(["r", "q"]), [False, True])
        async with lab.consumer() as three:
            expect("what a new consumer gets", ids(await lab.drain(three)), [])


@check("queue_admin")
async def resume_wakes_those_who_wait(lab: Lab) -> None:
    """A `receive` that waits on a paused queue gets nothing until `resume`, and then at once."""
    async with lab.consumer() as consumer:
        await lab.broker.pause("q")
        await lab.publish(message("1"))
        expect("what a waiting receive gets", await lab.woken(consumer, lambda: lab.broker.resume("q")), ["1"])
        expect("the counts", await lab.broker.counts("q"), Counts(leased=1))
        await lab.broker.resume("q")


@check("queue_admin")
async def pausing_holds_for_those_who_wait(lab: Lab) -> None:
    """A `receive` that began to wait before the pause gets nothing of the queue either."""
    async with lab.consumer(None, "q", "r") as consumer:

        async def cause() -> None:
            await lab.broker.pause("q")
            await lab.publish(message("held"))
            await lab.idle()
            await lab.publish(message("other", "r"))

        expect("what a waiting receive gets", await lab.woken(consumer, cause, limit=5), ["other"])
        await lab.broker.resume("q")
        expect("what is received then", ids(await lab.drain(consumer)), ["held"])


@check("queue_admin", "leases=timed")
async def tending_a_paused_queue_is_possible(lab: Lab) -> None:
    """A paused queue can be browsed, flushed and revived, and its leases are rescued, into the queue."""
    async with lab.consumer() as consumer:
        await lab.kill(message("dead"))
        await lab.publish(message("leased"))
        await lab.take(consumer, 1)
        await lab.broker.pause("q")
        await lab.outlive(consumer)
        expect("how many are rescued", await consumer.rescue(), 1)
        expect("the answers to revive", await lab.broker.revive("q"), [None])
        expect("what is received", await lab.drain(consumer), [])
        expect("what is ready", sorted(await lab.browsed("ready")), ["dead", "leased"])
        expect("how many are flushed", await lab.broker.flush("q"), 2)
        expect("the counts", await lab.broker.counts("q"), Counts(paused=True))
