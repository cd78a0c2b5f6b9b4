"""The fleet that repid itself is judged with: actors that do all that actors may do, and some that they should not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Literal

import trio

from ...actors import Router
from ...inject import Message
from .plan import FAULTS, FaultKind
from .scenario import Scenario, Send, running


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
    with running(f"job-{n}", "narrow", at_most=2):
        await trio.sleep(0.7)


@router.actor(retries=2)
async def failing(n: int, message: Message) -> int:
    """Fail at first."""
    with running(f"job-{n}", "failing"):
        await trio.sleep(0.1)
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
    with running(f"job-{n}", "overdue"):
        await trio.sleep_forever()


@router.actor(timeout=1.0)
async def stubborn(n: int) -> None:
    """Swallow the cancellation, and take a little longer."""
    with running(f"job-{n}", "stubborn"), suppress(BaseException):
        await trio.sleep(3)


@router.actor(store_result=True)
async def unspeakable(n: int) -> object:
    """Return what cannot be encoded."""
    with running(f"job-{n}", "unspeakable"):
        await trio.lowlevel.checkpoint()
    return object()


@router.actor
async def chaining(n: int, message: Message) -> None:
    """Send another message in the same step as the acknowledgement."""
    with running(f"job-{n}", "chaining"):
        await message.outbox.send_message_json(
            channel="work", payload={"n": n}, headers={"topic": "chained"}, message_id=f"job-{n}-next"
        )
        await trio.sleep(0.2)


@router.actor
async def chained(n: int) -> None:
    """Be sent by another."""
    with running(f"job-{n}-next", "chained"):
        await trio.sleep(0.1)


@router.actor(confirmation_mode="ack_first")
async def at_most_once(n: int) -> None:
    """Be acknowledged before the start."""
    with running(f"job-{n}", "at_most_once", decides_early=True):
        await trio.sleep(0.3)


@router.actor(confirmation_mode="always_ack")
async def indulgent(n: int) -> None:
    """Fail, and be acknowledged all the same."""
    with running(f"job-{n}", "indulgent"):
        await trio.sleep(0.3)
        raise ValueError("it does not matter")


@router.actor(confirmation_mode="manual")
async def by_hand(n: int, message: Message) -> None:
    """Acknowledge before the end."""
    with running(f"job-{n}", "by_hand", decides_early=True):
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
    with running(f"job-{n}", "refusing", decides_early=True):
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
    "at_most_once": "success",
    "indulgent": "failure",
    "by_hand": "success",
    "by_word": "success",
    "refusing": "failure",
    "retrying": "success",
    "telling": "success",
}
"""The actors that jobs are sent to, and how their messages end."""

ACTORS = [*ENDS]


KINDS: Sequence[FaultKind] = (*FAULTS, "deploy", "deploy", "kill")
"""Deploys and deaths come more often than the rest: most of what a worker can do wrong, it does at its end."""

THEN: Sequence[Literal["", "wait", "watch", "cancel"]] = ("", "", "", "wait", "watch", "cancel")


def fleet(
    chance: Random, *, jobs: int = 20, workers: int = 2, faults: int = 3, kinds: Sequence[FaultKind] = KINDS
) -> Scenario:
    """A small fleet: 20 jobs of every kind, two workers, three faults."""
    return Scenario(
        routers=[router],
        sends=list(_sends(chance, jobs)),
        workers=workers,
        options={"graceful_shutdown_time": 3.0, "tasks_limit": chance.choice((2, 5, 50))},
        faults=faults,
        kinds=kinds,
    )


def _sends(chance: Random, jobs: int) -> Iterator[Send]:
    lasts = chance.choice((0.5, 5.0))  # all at once, or bit by bit
    for n in range(jobs):
        options: dict[str, Any] = {}
        if chance.random() < 0.2:
            options["delay"] = round(chance.uniform(0.1, 3.0), 3)
        if chance.random() < 0.1:
            options["ttl"] = round(chance.uniform(0.2, 5.0), 3)
        actor = chance.choice(ACTORS)
        if chance.random() < 0.5 and actor != "at_most_once":
            options["store_result"] = True
        fits = chance.random() < 0.97
        args: dict[str, Any] = {"n": n} if fits else {"n": "not a number"}
        if actor == "slow" and chance.random() < 0.2:
            args["seconds"] = 45.0
        then = chance.choice(THEN)
        yield Send(
            actor=actor,
            args=args,
            queue="work",
            at=round(chance.uniform(0, lasts), 3),
            options=options,
            then=then,
            after=round(chance.uniform(0, 3.0), 3),
            ends=ENDS[actor] if fits else "failure",
            leads_to=[f"job-{n}-next"] if actor == "chaining" else (),
        )
