"""A peer on a server that is a program of its own: what is measured of every one of them, on asyncio, uvloop or trio.

A library's module says how it opens, sends and works (`Peer`), and names the workloads that it can do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import anyio

from ._servers import Watch
from ._shared import (
    LATENCY_WARM_UP,
    NAP,
    Arguments,
    Figures,
    Measurement,
    chunks,
    idle_pauses,
    latency,
    now,
    share_of_naps,
    typed_payloads,
)

A_TENTH = 10
"""Of as many parts of the messages a library gets one that goes to the server with each of them: its rates do not depend on how
many there are, and the run would take hours."""

REST = 1.0
"""Seconds in which a worker comes to rest before the first sample."""

Payload = dict[str, Any]


class Peer(Protocol):
    """A library that is connected to its server. It knows the tasks of this module by their names, and `first`."""

    async def send(self, task: str, payload: Payload) -> None:
        """One call."""

    async def send_many(self, task: str, payloads: Sequence[Payload]) -> None:
        """All of them, the fastest way that the library has."""

    async def drain(self, runs: int, executors: int) -> None:
        """Start a worker, and return when it has ended so many runs and acknowledged them."""

    def working(self, executors: int) -> AbstractAsyncContextManager[None]:
        """A worker as long as the block lasts; ready when it begins."""

    async def call(self, number: int) -> int:
        """What `answer` returns, when its job has run."""


OpenPeer = Callable[..., AbstractAsyncContextManager[Peer]]
"""Takes the arguments; and `results=True`, where results have to be kept."""

Host = Callable[[Callable[[Arguments], Awaitable[Figures]]], Measurement]
"""Runs what is async: `on_uvloop`, `on_trio`."""


class Runs:
    """What the tasks note of their runs."""

    def __init__(self) -> None:
        self.ended: list[None] = []
        """One for each: threads can add to a list at the same time."""
        self.started: list[float] = []
        self.arrived = anyio.Event()


runs = Runs()


async def noop() -> None:
    runs.ended.append(None)


async def typed(number: int, text: str) -> None:  # noqa: ARG001 - they are checked on the way here
    runs.ended.append(None)


async def doze() -> None:
    await anyio.sleep(NAP)
    runs.ended.append(None)


async def ping() -> None:
    runs.started.append(now())
    runs.arrived.set()


async def answer(number: int) -> int:
    return number


TASKS = (noop, typed, doze, ping, answer)


def behind_context(task: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A task for a library that hands its context, or the job, to each as the first argument."""

    async def run(_: object, **arguments: Any) -> Any:
        return await task(**arguments)

    return run


async def send_at_once(peer: Peer, task: str, payloads: Sequence[Payload], tasks: int = 50) -> None:
    """So many tasks; each awaits one call after the other."""

    async def send(part: Sequence[Payload]) -> None:
        for payload in part:
            await peer.send(task, payload)

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(send, payloads[number::tasks])


async def timed_drain(peer: Peer, count: int, arguments: Arguments) -> Figures:
    """Time a worker from just before it starts until so many runs are acknowledged."""
    watch = Watch(arguments)
    await peer.drain(count, arguments["executors"])
    figures = watch.rate(count)
    assert len(runs.ended) == count, f"{len(runs.ended)} of {count} ran"
    return figures


async def filled_drain(open_peer: OpenPeer, task: str, payloads: Sequence[Payload], arguments: Arguments) -> Figures:
    async with open_peer(arguments) as peer:
        await peer.send_many(task, payloads)
        return await timed_drain(peer, len(payloads), arguments)


async def measure_noop(open_peer: OpenPeer, arguments: Arguments) -> Figures:
    return await filled_drain(open_peer, "noop", [{}] * arguments["messages"], arguments)


async def measure_typed(open_peer: OpenPeer, arguments: Arguments) -> Figures:
    return await filled_drain(open_peer, "typed", typed_payloads(arguments["messages"]), arguments)


async def measure_sleep(open_peer: OpenPeer, arguments: Arguments) -> Figures:
    return share_of_naps(await filled_drain(open_peer, "doze", [{}] * arguments["messages"], arguments), arguments)


async def measure_chain(open_peer: OpenPeer, arguments: Arguments) -> Figures:
    """Each job sends another one from inside; both are counted."""
    count = arguments["messages"]
    async with open_peer(arguments) as peer:
        await peer.send_many("first", [{}] * count)
        return {"plain": (await timed_drain(peer, 2 * count, arguments))["rate"]}


async def measure_bulk(open_peer: OpenPeer, arguments: Arguments) -> Figures:
    payloads = typed_payloads(arguments["messages"])
    async with open_peer(arguments) as peer:
        watch = Watch(arguments)
        for part in chunks(payloads, arguments["batch"]):
            await peer.send_many("typed", part)
        return watch.rate(len(payloads))


async def measure_publishers(open_peer: OpenPeer, arguments: Arguments) -> Figures:
    payloads = typed_payloads(arguments["messages"])
    async with open_peer(arguments) as peer:
        watch = Watch(arguments)
        await send_at_once(peer, "typed", payloads, arguments["publishers"])
        return watch.rate(len(payloads))


async def measure_latency(open_peer: OpenPeer, arguments: Arguments) -> Figures:
    sent: list[float] = []
    async with at_rest(open_peer, arguments) as peer:
        for pause in idle_pauses(arguments["samples"]):
            runs.arrived = anyio.Event()
            sent.append(now())
            await peer.send("ping", {})
            await runs.arrived.wait()
            await anyio.sleep(pause)
    return latency([start - send for send, start in zip(sent, runs.started, strict=True)])


async def measure_result(open_peer: OpenPeer, arguments: Arguments) -> Figures:
    times: list[float] = []
    async with at_rest(partial(open_peer, results=True), arguments) as peer:
        for number in range(LATENCY_WARM_UP + arguments["samples"]):
            start = now()
            assert await peer.call(number) == number
            times.append(now() - start)
    return latency(times)


@asynccontextmanager
async def at_rest(open_peer: OpenPeer, arguments: Arguments) -> AsyncIterator[Peer]:
    """A peer whose worker, in this process, has nothing to do."""
    async with open_peer(arguments) as peer, peer.working(executors=10):
        await anyio.sleep(REST)
        yield peer


MEASURES = {
    "noop": measure_noop,
    "typed": measure_typed,
    "sleep": measure_sleep,
    "chain": measure_chain,
    "bulk": measure_bulk,
    "publishers": measure_publishers,
    "single": measure_publishers,
    "latency": measure_latency,
    "result": measure_result,
}


def measurements(
    host: Host, open_peer: OpenPeer, store: str, *, without: Collection[str] = (), parts: int = 1
) -> dict[str, Measurement]:
    """What is measured on a store, but for what the library cannot do, with one of so many parts of the messages."""
    return {
        f"{store}-{name}": partial(measure_part, host(partial(measure, open_peer)), parts)
        for name, measure in MEASURES.items()
        if name not in without
    }


def measure_part(measure: Measurement, parts: int, arguments: Arguments) -> Figures:
    messages = {"messages": arguments["messages"] // parts} if "messages" in arguments else {}
    return measure({**arguments, **messages})
