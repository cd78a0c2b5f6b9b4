"""The k-th statement of a scenario fails, or the commits after it, once for each k: every message is accounted for.

One consumer, in turn one that waits and one that asks again and again; publishers, a watcher and somebody who cancels
and looks, all at the same time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import trio

from repid import Envelope, SQLiteServer
from repid.envelope import Options
from repid.ports import Consumer

from .accounts import PATIENCE, Account, is_fault
from .injection import KINDS, Faults, Kind

MOST_STEPS = 600
"""More than a scenario takes, so that the last runs are without a fault."""


class Plan(NamedTuple):
    """Which step fails and how, or after which step some commits do; whether the consumer waits for messages."""

    kind: Kind
    undoes: bool
    waits: bool
    step: int
    commits: int = 0


def plans(seed: int, count: int | None) -> Iterator[Plan]:
    """So many plans chosen by the seed, or all of them in an order chosen by it."""
    every = [
        Plan(kind, undoes, waits, step, commits)
        for kind in KINDS
        for undoes in (False, True)
        for waits in (True, False)
        for step in range(MOST_STEPS)
        for commits in (0, 3)
    ]
    yield from random.Random(seed).sample(every, len(every) if count is None else count)


async def run_plan(plan: Plan, path: Path) -> list[str]:
    """Run the scenario on a new file; what does not add up afterwards."""
    faults = Faults(plan.kind, undoes=plan.undoes)
    with faults.injected():
        account = Account(SQLiteServer(path))
        if plan.commits:
            faults.fail_commits(plan.step, plan.commits)
        else:
            faults.fail_step(plan.step)
        async with AsyncExitStack() as stack:
            await account.insist(lambda: stack.enter_async_context(account.server.connection()))
            await account.insist(lambda: account.server.declare(["q"]))
            consumer = await account.insist(lambda: stack.enter_async_context(account.server.consume({"q": None})))
            with trio.move_on_after(PATIENCE) as scope:
                await _act(account, consumer, plan)
            if scope.cancelled_caught:
                account.troubles.append(f"not done after {PATIENCE} s: {account.confirmed - account.settled}")
            faults.heal()
            account.troubles += await _check_alive(account, consumer)
    return [f"{plan} ({faults.failed}): {trouble}" for trouble in account.close(path)]


async def _act(account: Account, consumer: Consumer, plan: Plan) -> None:
    server = account.server
    async with trio.open_nursery() as standing:

        async def take() -> None:
            deliveries = await consumer.receive(2, max_wait=float("inf") if plan.waits else 0)
            await account.settle(consumer, deliveries)
            if not deliveries:
                await trio.sleep(0.001)

        standing.start_soon(account.for_ever, take)
        standing.start_soon(account.for_ever, consumer.events)
        standing.start_soon(account.for_ever, lambda: _watch(account))
        async with trio.open_nursery() as senders:
            senders.start_soon(_send_singly, account)
            senders.start_soon(_send_together, account)
            senders.start_soon(account.insist, lambda: server.counts("q"))
            senders.start_soon(account.insist, lambda: server.fetch_results(["a0"]))
        await account.insist(consumer.rescue)
        await account.insist(lambda: server.browse("q", "ready"))
        while not account.is_done:
            await trio.sleep(0.001)
        standing.cancel_scope.cancel()


async def _send_singly(account: Account) -> None:
    for number in range(6):
        await account.publish([Envelope(f"a{number}", "q", b"x", headers={"topic": f"t{number % 3}"})])
        await trio.sleep(0.005 * (number % 2))  # sometimes everybody waits by then


async def _send_together(account: Account) -> None:
    await account.publish([Envelope(f"b{number}", "q", b"x") for number in range(3)])
    await account.publish([Envelope("late", "q", b"x", options=Options(delay=60.0))])
    await account.publish([Envelope("soon", "q", b"x", options=Options(delay=0.005))])
    await account.cancel("late")


async def _watch(account: Account) -> None:
    seen = await account.server.watch("b0", "b0")
    await account.server.watch("b0", "b0", seen)


async def _check_alive(account: Account, consumer: Consumer) -> list[str]:
    """Whether the server and the consumer still do what they are for."""
    try:
        with trio.fail_after(PATIENCE):
            while "last" not in account.confirmed:
                await account.publish([Envelope("last", "q", b"x")])
                account.refused.discard("last")
            await account.settle(consumer, await consumer.receive(10))
    except Exception as error:  # noqa: BLE001  told with everything else
        return [] if is_fault(error) else [f"afterwards the server is not alive: {error!r}"]
    return [] if "last" in account.settled else ["afterwards nothing is handed out"]
