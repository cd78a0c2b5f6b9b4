"""The fleet that repid itself is judged with: actors that do all that actors may do, and some that they should not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from random import Random
from typing import Any, Literal

import trio
from msgspec import Struct

from ...actors import Router
from ...delivery import WHEN_FULL, Bounds
from ...envelope import PrioritiesT
from ...inject import Message
from ...ports import Role
from ...worker import WorkerOptions
from .plan import FAULTS, FaultKind
from .runs import RunRules
from .scenario import Operation, Recurring, Scenario, Send, Step, running


def _policy(retry_number: int = 1) -> float:
    return 0.5 * retry_number


router = Router(queue="work", retry_policy=_policy)


@router.actor
async def plain(n: int) -> None:
    """Return at once."""
    with running(f"job-{n}", "plain"):
        pass


@router.actor
async def slow(n: int, seconds: float = 1.0) -> int:
    """Wait for something."""
    with running(f"job-{n}", "slow"):
        await trio.sleep(seconds)
    return n


@router.actor(concurrency=2)
async def narrow(n: int) -> None:
    """Two at a time in one worker."""
    with running(f"job-{n}", "narrow", RunRules(at_most=2)):
        await trio.sleep(0.7)


@router.actor(retries=2)
async def failing(n: int, message: Message, seconds: float = 0.1) -> int:
    """Fail at first."""
    with running(f"job-{n}", "failing"):
        await trio.sleep(seconds)
        if message.attempt < 3:
            raise ValueError(f"not yet: attempt {message.attempt}")
    return n


@router.actor
async def hopeless(n: int) -> None:
    """Fail for good."""
    with running(f"job-{n}", "hopeless"):
        raise ValueError("never")


@router.actor(timeout=1.0, retries=1)
async def overdue(n: int) -> None:
    """Run past the timeout."""
    with running(f"job-{n}", "overdue", RunRules(within=1.0)):
        await trio.sleep_forever()


@router.actor(timeout=1.0)
async def stubborn(n: int) -> None:
    """Swallow the cancellation, and take a little longer."""
    with running(f"job-{n}", "stubborn", RunRules(swallows=True)), suppress(BaseException):
        await trio.sleep(3)


@router.actor(store_result=True)
async def unspeakable(n: int) -> object:
    """Return what cannot be encoded."""
    with running(f"job-{n}", "unspeakable"):
        await trio.lowlevel.checkpoint()
    return object()


@router.actor
async def chaining(n: int, message: Message, seconds: float = 0.2) -> None:
    """Send another message in the same step as the acknowledgement."""
    with running(f"job-{n}", "chaining"):
        await message.outbox.send_message_json(
            channel="work", payload={"n": n}, headers={"topic": "chained"}, message_id=f"job-{n}-next"
        )
        await trio.sleep(seconds)


@router.actor
async def chained(n: int) -> None:
    """Be sent by another."""
    with running(f"job-{n}-next", "chained"):
        await trio.sleep(0.1)


@router.actor(retries=1)
async def unlucky(n: int, message: Message) -> None:
    """Fail with something in the outbox, which is not sent then."""
    with running(f"job-{n}", "unlucky"):
        await message.outbox.send_message_json(channel="work", payload={}, message_id=f"job-{n}-never")
        await trio.sleep(0.2)
        raise ValueError("too late")


@router.actor(confirmation_mode="ack_first")
async def at_most_once(n: int, seconds: float = 0.3) -> None:
    """Be acknowledged before the start."""
    with running(f"job-{n}", "at_most_once", RunRules(decides_early=True, once=True)):
        await trio.sleep(seconds)


@router.actor(confirmation_mode="always_ack")
async def indulgent(n: int) -> None:
    """Fail, and be acknowledged all the same."""
    with running(f"job-{n}", "indulgent"):
        await trio.sleep(0.3)
        raise ValueError("it does not matter")


@router.actor(confirmation_mode="manual")
async def by_hand(n: int, message: Message) -> None:
    """Acknowledge before the end."""
    with running(f"job-{n}", "by_hand", RunRules(decides_early=True)):
        await trio.sleep(0.2)
        await message.ack()
        await trio.sleep(0.2)


@router.actor(confirmation_mode="manual_explicit", retries=1)
async def by_word(n: int, message: Message) -> str:
    """Say by a word what is to be done."""
    with running(f"job-{n}", "by_word"):
        await trio.sleep(0.1)
    return "retry" if message.attempt == 1 else "ack"


@router.actor
async def refusing(n: int, message: Message) -> None:
    """Say no."""
    with running(f"job-{n}", "refusing", RunRules(decides_early=True)):
        await trio.sleep(0.1)
        await message.nack()


@router.actor(retries=1)
async def retrying(n: int, message: Message) -> None:
    """Ask for another attempt."""
    with running(f"job-{n}", "retrying"):
        await trio.sleep(0.1)
        if message.attempt == 1:
            await message.retry(1.0)


@router.actor
async def telling(n: int, message: Message) -> str:
    """Report progress."""
    with running(f"job-{n}", "telling"):
        for done in range(3):
            await message.progress(done, 3)
            await trio.sleep(0.8)
    return "told"


@router.actor
async def rejecting(n: int, until: float, message: Message) -> None:
    """Give the message back, for any worker, until some moment."""
    with running(f"job-{n}", "rejecting", RunRules(gives_back=True)):
        assert message.attempt == 1  # it costs none
        await trio.sleep(0.3)
        if trio.current_time() < until:
            await message.reject()


@router.actor
async def snoozing(n: int, until: float, message: Message) -> None:
    """Have the message come again later, until some moment."""
    with running(f"job-{n}", "snoozing", RunRules(gives_back=True)):
        assert message.attempt == 1  # as above
        await trio.lowlevel.checkpoint()
        if trio.current_time() < until:
            await message.snooze(0.7)


@router.actor
async def answering(n: int, message: Message) -> None:
    """Reply, which acknowledges."""
    with running(f"job-{n}", "answering", RunRules(decides_early=True)):
        await trio.sleep(0.1)
        await message.reply_json({"n": n}, channel="side", headers={"topic": "answered"})


class Row(Struct):
    """What one message of a batch is."""

    n: int


@router.actor(batch=4, batch_wait=0.4, retries=1)
async def gathered(rows: list[Row], messages: list[Message]) -> list[object]:
    """Take several at once; some of them fail at first, each by itself. A lost lease does not end the run of the
    others.
    """
    with ExitStack() as stack:
        for row in rows:
            stack.enter_context(running(f"job-{row.n}", "gathered", RunRules(at_most=4, swallows=True)))
        await trio.sleep(0.5)
    pairs = zip(rows, messages, strict=True)
    return [ValueError("not yet") if row.n % 3 == 0 and message.attempt == 1 else row.n for row, message in pairs]


aside = Router(queue="side", retry_policy=_policy)
"""Another queue, which operators pause."""


@aside.actor
async def answered(n: int) -> None:  # noqa: ARG001  an answer, of which there may be several
    """Take an answer."""
    await trio.sleep(0.1)


@aside.actor(concurrency=1)
async def alone(n: int) -> None:
    """One at a time in one worker."""
    with running(f"job-{n}", "alone", RunRules(at_most=1)):
        await trio.sleep(0.4)


@aside.actor
async def ticking(message: Message) -> None:
    """Be sent by a schedule."""
    with running(message.message_id, "ticking"):
        await trio.sleep(0.2)


modern = Router(queue="work", retry_policy=_policy)
"""What the next version of the program has besides."""


@modern.actor
async def novel(n: int) -> None:
    """Be known to the next version only."""
    with running(f"job-{n}", "novel"):
        await trio.sleep(0.2)


ENDS: Mapping[str, Literal["success", "failure"]] = {
    "plain": "success",
    "slow": "success",
    "narrow": "success",
    "failing": "success",
    "hopeless": "failure",
    "overdue": "failure",
    "stubborn": "success",
    "unspeakable": "failure",
    "chaining": "success",
    "unlucky": "failure",
    "at_most_once": "success",
    "indulgent": "failure",
    "by_hand": "success",
    "by_word": "success",
    "refusing": "failure",
    "retrying": "success",
    "telling": "success",
    "rejecting": "success",
    "snoozing": "success",
    "answering": "success",
    "gathered": "success",
    "alone": "success",
}
"""The actors that jobs are sent to, and how their messages end."""

SENDS_TO = {"chaining": "work", "answering": "side"}
"""The actors that send with their acknowledgement, and to which queue."""

ASIDE = frozenset({"alone", "ticking"})
"""Those on the queue `side`."""

KINDS: Sequence[FaultKind] = (*FAULTS, "deploy", "deploy", "kill", "partition", "lose_answer", "lose_answer")
"""Some come more often than the rest: most of what a worker can do wrong, it does at its end, or when it is not
answered.
"""

CLOCK_KINDS: Sequence[FaultKind] = ("step_engine_clock",) * 4
"""What goes wrong more often where there is a schedule: several workers want to move it at once then."""

CUT_OFF_KINDS: Sequence[FaultKind] = ("partition", "partition", "partition", "freeze", "slow", "kill")
"""What goes wrong where leases are lost while runs are under way and verdicts on their way."""

CUT_OFF_ACTORS = (*["chaining"] * 3, *["at_most_once"] * 3, *["failing"] * 2, *["slow"] * 2, "gathered")
"""Those whose runs or verdicts go wrong in ways of their own when their lease is lost."""

REPLACED_KINDS: Sequence[FaultKind] = ("deploy", "deploy", "deploy", "kill", "kill")
"""What goes wrong where workers are stopped again and again."""

REPLACED_ACTORS = (
    "plain",
    "slow",
    "narrow",
    "failing",
    "telling",
    "at_most_once",
    "at_most_once",
    "gathered",
    "chaining",
)
"""Those of which a stop finds some under way and others held."""

CUT_OFF_SECONDS: Mapping[str, Sequence[float]] = {
    **dict.fromkeys(("chaining", "failing", "at_most_once"), (1.0, 4.0)),
    "slow": (4.0, 15.0),
}
"""How long their runs take: some end while their worker is cut off, some go on for longer than a lease lasts."""

SECONDS: Mapping[str, Sequence[float]] = {"slow": (0.5, 2.0, 4.0, 15.0)}
"""How long runs take elsewhere, of those actors whose jobs say it."""

NO_SCHEDULES: frozenset[Role] = frozenset(("schedules",))
"""What an engine is without where nothing is scheduled: a worker looks at schedules every ten seconds."""

THEN: Sequence[Literal["", "wait", "watch", "cancel", "again"]] = ("", "", "", "", "wait", "watch", "cancel", "again")

OPERATIONS: Sequence[Literal["pause", "requeue", "delete_dead", "flush"]] = (
    "pause",
    "pause",
    "requeue",
    "requeue",
    "delete_dead",
    "flush",
)


def fleet(
    chance: Random, *, jobs: int = 20, workers: int = 2, faults: int = 3, kinds: Sequence[FaultKind] = KINDS
) -> Scenario:
    """A small fleet: 20 jobs of some of the kinds, two workers, three faults, perhaps a schedule and an operator.

    Each history has some of the actors only: what goes wrong between two jobs of one actor is seen soon then. In some
    histories workers are cut off for longer than a lease lasts, or stopped, again and again; in some, another version
    is deployed, or queues are bounded.
    """
    kind = chance.random()
    if kind < 0.3:
        return _cut_off(chance, jobs, workers, faults)
    if kind < 0.4:
        return _replaced(chance, jobs, workers, faults)
    options: WorkerOptions = {
        "graceful_shutdown_time": chance.choice((0.5, 3.0)),
        "tasks_limit": chance.choice((1, 2, 5, 50)),
    }
    if chance.random() < 0.2:
        options["messages_limit"] = chance.choice((3, 8))
        options["graceful_shutdown_time"] = 100.0  # the last of them take as long as they take
    elif chance.random() < 0.05:
        options["burst"] = True
    if chance.random() < 0.1:
        options["claim_bytes"] = 30
    actors = chance.sample([*ENDS], chance.randint(2, 6))
    if chance.random() < 0.2:
        actors.append("slow")  # which may lose its lease meanwhile
    lasts = chance.choice((0.5, 5.0))  # all at once, or bit by bit
    bounds = _bounds(chance) if chance.random() < 0.25 else {}
    if bounds:
        actors += SENDS_TO  # whose outboxes need room, too
    if {"messages_limit", "burst"} & options.keys():  # such a worker ends although its outboxes wait for room
        bounds = {queue: bound for queue, bound in bounds.items() if bound.when_full != "wait"}
    steps: list[Step] = [*_sends(chance, jobs, actors, lasts, bounds=bounds), *_others(chance)]
    has_schedules = any(isinstance(step, Recurring) for step in steps)
    if has_schedules:
        kinds = (*kinds, *CLOCK_KINDS)
    is_modern = chance.random() < 0.2
    if any(bound.when_full == "wait" for bound in bounds.values()):
        is_modern = False  # a message that no worker takes any more would keep its room for an hour
    if is_modern and jobs:
        deploys: list[FaultKind] = ["deploy"] * len(kinds)
        kinds = (*kinds, *deploys)  # so that for a time one worker has the actor and the other has not
        moments = [round(chance.uniform(0, 5.0), 3) for _ in range(3)]
        steps += [Send(actor="novel", args={"n": len(steps) + n}, queue="work", at=at) for n, at in enumerate(moments)]
    return Scenario(
        routers=[router, aside],
        later=[router, aside, modern] if is_modern else (),
        sends=steps,
        workers=workers,
        options=options,
        faults=faults,
        kinds=kinds,
        lasts=chance.choice((2.0, 6.0)),
        lease_timeout=chance.choice((8.0, 8.0, 20.0)),
        without=() if has_schedules else NO_SCHEDULES,
        bounds=bounds,
    )


def _bounds(chance: Random) -> dict[str, Bounds]:
    """Of one queue or both, such that they are full now and then."""
    queues = chance.choice((("work",), ("side",), ("work", "side")))
    return {queue: Bounds(max_size=chance.choice((1, 2, 5)), when_full=chance.choice(WHEN_FULL)) for queue in queues}


def _cut_off(chance: Random, jobs: int, workers: int, faults: int) -> Scenario:
    """Few actors, much to do at once, and workers that lose their leases meanwhile."""
    tasks_limit = chance.choice((1, 2, 3, 20))
    return Scenario(
        routers=[router, aside],
        sends=[*_sends(chance, jobs, chance.sample(CUT_OFF_ACTORS, chance.choice((1, 1, 2))), 0.5, CUT_OFF_SECONDS)],
        workers=workers,
        options={"graceful_shutdown_time": 3.0, "tasks_limit": tasks_limit},
        faults=2 * faults,
        kinds=CUT_OFF_KINDS,
        lasts=20.0 if tasks_limit < jobs else 6.0,  # as long as there is something to do
        lease_timeout=8.0,
        without=NO_SCHEDULES,
        latency=chance.choice((0.0, 0.3, 0.3)),
    )


def _replaced(chance: Random, jobs: int, workers: int, faults: int) -> Scenario:
    """Much to do at once, and workers that are stopped while they run some of it and hold more."""
    return Scenario(
        routers=[router, aside],
        sends=[*_sends(chance, jobs, chance.sample(REPLACED_ACTORS, 2), 0.5)],
        workers=workers,
        options={"graceful_shutdown_time": chance.choice((0.5, 3.0)), "tasks_limit": chance.choice((1, 2, 2, 5))},
        faults=faults,
        kinds=REPLACED_KINDS,
        lasts=6.0,
        lease_timeout=8.0,
        without=NO_SCHEDULES,
        latency=chance.choice((0.0, 0.1, 0.1)),  # they hold more where the engine is far away
    )


def _sends(
    chance: Random,
    jobs: int,
    actors: Sequence[str],
    lasts: float,
    seconds: Mapping[str, Sequence[float]] = SECONDS,
    bounds: Mapping[str, Bounds] = {},
) -> Iterator[Send]:
    """Jobs for these actors, sent within `lasts` seconds. `seconds`: how long those may take whose jobs say so. An
    outbox for which there is no room makes a failure of its run.
    """
    may_fail = {
        actor for actor, queue in SENDS_TO.items() if queue in bounds and bounds[queue].when_full != "drop_oldest"
    }
    for n in range(jobs):
        at = round(chance.uniform(0, lasts), 1)  # some at the same moment
        options: dict[str, Any] = {}
        if chance.random() < 0.2:
            options["delay"] = round(chance.uniform(0.1, 3.0), 3)
        if chance.random() < 0.1:
            options["ttl"] = round(chance.uniform(0.2, 3.0), 3)
        if chance.random() < 0.2:
            options["priority"] = chance.choice([*PrioritiesT])
        actor = chance.choice(actors)
        if chance.random() < 0.5 and actor != "at_most_once":
            options["store_result"] = True
        fits = chance.random() < 0.97
        args: dict[str, Any] = {"n": n} if fits else {"n": "not a number"}
        if actor in seconds:
            args["seconds"] = chance.choice(seconds[actor])
        if actor in {"rejecting", "snoozing"}:
            args["until"] = at + options.get("delay", 0.0) + 1.5
        yield Send(
            actor=actor,
            args=args,
            queue="side" if actor in ASIDE else "work",
            at=at,
            options=options,
            then=chance.choice(THEN),
            after=chance.choice((0.0, round(chance.uniform(0, 3.0), 1))),
            ends="failure" if not fits else "" if actor in may_fail else ENDS[actor],
            leads_to=[f"job-{n}-next"] if actor == "chaining" else (),
            never=[f"job-{n}-never"] if actor == "unlucky" else (),
        )


def _others(chance: Random) -> Iterator[Step]:
    if chance.random() < 0.3:
        yield Recurring(
            actor="ticking",
            queue="side",
            at=0.5,
            until=round(chance.uniform(4.0, 8.0), 3),
            every=chance.choice((0.5, 1.0, 1.7)),
            pause_at=chance.choice((None, None, 3.0)),
            options={"overlap": chance.choice(("skip", "allow"))},
        )
    if chance.random() < 0.3:
        for _ in range(2):
            queue = chance.choice(("work", "side"))
            at = round(chance.uniform(0.2, 8.0), 3)
            yield Operation(kind=chance.choice(OPERATIONS), queue=queue, at=at, seconds=2.0)
