"""repid where asyncio or uvloop is the host and trio its guest, in the environment that runs the harness."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ._repid_on_a_server import CHANNEL
from ._shared import Arguments, Figures, Measurement, idle_pauses, microseconds, now, run_on_uvloop, seconds_of
from .repid_trio import Drain, drains, measure_enqueue_one, new_app

Run = Callable[[Coroutine[Any, Any, Figures]], Figures]
"""Runs a coroutine on a loop of its own: `asyncio.run` or `run_on_uvloop`."""


def measure_noop(run: Run, arguments: Arguments) -> Figures:
    """The no-op drain with trio's own actors, then with actors that are tasks of the host; each on a fresh loop."""
    payloads: list[dict[str, Any]] = [{}] * arguments["messages"]
    in_guest = run(Drain("noop_on_trio", payloads).run(arguments["executors"]))
    on_host = run(Drain("noop", payloads).run(arguments["executors"]))
    return {**on_host, "guest": in_guest["rate"]}


def measure_sends(run: Run, arguments: Arguments) -> Figures:
    """One awaited send after another; then chains, whose first job is a task of the host and sends the second one."""
    chain = run(drains(arguments)["chain"].run(arguments["executors"]))
    return {**run(measure_enqueue_one(arguments)), "chain": chain["rate"]}


async def measure_crossing(arguments: Arguments) -> Figures:
    """How long a send takes: one after another, now and then after a rest, and many at once, round after round."""
    app, count = new_app(), arguments["at_once"]

    def send() -> Awaitable[object]:
        return app.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "noop"})

    many = []
    async with app.servers.default.connection():
        one = [await seconds_of(send()) for _ in range(arguments["samples"])]
        rested = [await seconds_of(send(), pause) for pause in idle_pauses(arguments["samples"])]
        for _ in range(arguments["rounds"]):
            start = now()
            await asyncio.gather(*(send() for _ in range(count)))
            many.append((now() - start) / count)
    return {"one": microseconds(one), "rested": microseconds(rested), "many": microseconds(many)}


def noop_on(run: Run) -> Measurement:
    return lambda arguments: measure_noop(run, arguments)


def sends_on(run: Run) -> Measurement:
    return lambda arguments: measure_sends(run, arguments)


def crossing_on(run: Run) -> Measurement:
    return lambda arguments: run(measure_crossing(arguments))


MEASUREMENTS: dict[str, Measurement] = {
    "hosts-asyncio": noop_on(asyncio.run),
    "hosts-uvloop": noop_on(run_on_uvloop),
    "sends-asyncio": sends_on(asyncio.run),
    "sends-uvloop": sends_on(run_on_uvloop),
    "crossing-asyncio": crossing_on(asyncio.run),
    "crossing-uvloop": crossing_on(run_on_uvloop),
}
DISTRIBUTIONS = ("repid-trio", "trio", "msgspec")
