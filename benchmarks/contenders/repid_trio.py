"""repid itself, on trio, in the environment that runs the harness."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from time import process_time
from typing import Any

import trio

from repid import InMemoryServer, Message, Repid, Router

from ._profiling import CallCounter, Sampler
from ._repid_on_a_server import CHANNEL, enqueue
from ._shared import (
    Arguments,
    Figures,
    Measurement,
    growth,
    idle_pauses,
    latency,
    later,
    now,
    on_trio,
    rate,
    ready_cost,
    resident_size,
    typed_payloads,
)

router = Router(channel=CHANNEL)
started: list[float] = []
arrivals: list[trio.Event] = []


@router.actor
async def noop() -> None: ...


@router.actor
async def numbered(number: int) -> None: ...


@router.actor
async def echo(number: int) -> int:
    return number


@router.actor(backend="trio")
async def noop_on_trio() -> None: ...


@router.actor
async def typed(number: int, text: str) -> None: ...


@router.actor
async def sleep(seconds: float) -> None:
    await trio.sleep(seconds)


@router.actor
async def first(message: Message) -> None:
    await message.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "noop"})


@router.actor
async def first_held_back(message: Message) -> None:
    await message.outbox.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "noop"})


@router.actor
async def ping() -> None:
    started.append(now())
    arrivals[-1].set()


def new_app() -> Repid:
    app = Repid(title="bench", version="1")
    app.servers.register_server("default", InMemoryServer(), is_default=True)
    app.include_router(router)
    return app


async def fill(app: Repid, topic: str, payloads: list[dict[str, Any]]) -> None:
    """Enqueue, and close the connection: what waits in memory is kept by the broker."""
    async with app.servers.default.connection():
        await enqueue(app, topic, payloads)


async def timed_worker(app: Repid, runs: int, executors: int) -> tuple[float, float]:
    """When a worker of so many runs started and when it had returned."""
    start = now()
    report = await app.run_worker(messages_limit=runs, tasks_limit=executors)
    end = now()
    assert report.processed == runs, f"{report.processed} of {runs} ran"
    return start, end


@dataclass(frozen=True, slots=True)
class Drain:
    """A queue full of messages for one actor, each of which leads to so many runs."""

    topic: str
    payloads: list[dict[str, Any]]
    runs_each: int = 1

    async def run(self, executors: int, profiler: AbstractContextManager[object] | None = None) -> Figures:
        """Fill the queue, then time a worker that empties it."""
        app = new_app()
        async with app.servers.default.connection():
            await enqueue(app, self.topic, self.payloads)
            with profiler or nullcontext():
                start, end = await timed_worker(app, self.runs_each * len(self.payloads), executors)
        return rate(len(self.payloads), start, end)


def drains(arguments: Arguments) -> dict[str, Drain]:
    empty: list[dict[str, Any]] = [{}] * arguments["messages"]
    return {
        "noop": Drain("noop", empty),
        "guest": Drain("noop_on_trio", empty),
        "typed": Drain("typed", typed_payloads(arguments["messages"])),
        "chain": Drain("first", empty, runs_each=2),
        "outbox": Drain("first_held_back", empty, runs_each=2),
        "sleep": Drain("sleep", [{"seconds": arguments.get("seconds", 0.1)}] * arguments["messages"]),
    }


def measure_drain(name: str) -> Callable[[Arguments], Awaitable[Figures]]:
    async def measure(arguments: Arguments) -> Figures:
        return await drains(arguments)[name].run(arguments["executors"])

    return measure


async def measure_chain(arguments: Arguments) -> Figures:
    """Job 1 sends job 2 at once; then the same with job 2 held back until job 1 is acknowledged."""
    sent = await measure_drain("chain")(arguments)
    held_back = await measure_drain("outbox")(arguments)
    return {**sent, "outbox": held_back["rate"]}


async def measure_guest(arguments: Arguments) -> Figures:
    """The no-op drains that are made as a guest, here with trio as the host."""
    guest = await measure_drain("guest")(arguments)
    return {**await measure_drain("noop")(arguments), "guest": guest["rate"]}


def measure_sleep(arguments: Arguments) -> Figures:
    """A worker that owns the process, from the call of `app.run` to its return; then one embedded in a run of trio."""
    app, payloads = new_app(), drains(arguments)["sleep"].payloads
    trio.run(fill, app, "sleep", payloads)
    start = now()
    report = app.run(messages_limit=len(payloads), tasks_limit=arguments["executors"])
    end = now()
    assert report.processed == len(payloads), f"{report.processed} of {len(payloads)} ran"
    embedded = trio.run(measure_drain("sleep"), arguments)
    return {**rate(len(payloads), start, end), "embedded": embedded["rate"]}


async def measure_enqueue_bulk(arguments: Arguments) -> Figures:
    app, payloads = new_app(), typed_payloads(arguments["messages"])
    async with app.servers.default.connection():
        start = now()
        await enqueue(app, "typed", payloads, arguments["batch"])
        return rate(len(payloads), start, now())


async def measure_enqueue_one(arguments: Arguments) -> Figures:
    app, payloads = new_app(), typed_payloads(arguments["messages"])
    headers = {"topic": "typed"}
    async with app.servers.default.connection():
        start = now()
        for payload in payloads:
            await app.send_message_json(channel=CHANNEL, payload=payload, headers=headers)
        return rate(len(payloads), start, now())


async def measure_latency(arguments: Arguments) -> Figures:
    app = new_app()
    sent: list[float] = []
    async with app.servers.default.connection(), trio.open_nursery() as nursery:
        worker = await nursery.start(partial(app.run_worker, tasks_limit=arguments["executors"]))
        for pause in idle_pauses(arguments["samples"]):
            arrivals.append(trio.Event())
            sent.append(now())
            await app.send_message_json(channel=CHANNEL, payload={}, headers={"topic": "ping"})
            await arrivals[-1].wait()
            await trio.sleep(pause)
        worker.stop()
    return latency([start - send for send, start in zip(sent, started, strict=True)])


async def measure_ready(arguments: Arguments) -> Figures:
    app = new_app()
    async with app.servers.default.connection():
        await enqueue(app, "typed", typed_payloads(100))
        before = resident_size()
        for _ in range(0, arguments["messages"], arguments["batch"]):
            await enqueue(app, "typed", typed_payloads(arguments["batch"]))
        return ready_cost(arguments["messages"], before, resident_size())


async def measure_processed(arguments: Arguments) -> Figures:
    app, batch = new_app(), arguments["messages"] // arguments["rounds"]
    sizes: list[int] = []
    async with app.servers.default.connection():
        for _ in range(arguments["rounds"]):
            await enqueue(app, "typed", typed_payloads(batch))
            await timed_worker(app, batch, arguments["executors"])
            sizes.append(resident_size())
    return growth(batch, sizes)


async def measure_profile(arguments: Arguments) -> Figures:
    """The same drain bare, sampled and under cProfile, so that what each profiler costs is known."""
    drain, executors = drains(arguments)[arguments["drain"]], arguments["executors"]
    sampler, counter = Sampler(arguments["interval"]), CallCounter()
    plain = [(await drain.run(executors))["seconds"] for _ in range(3)]
    sampled, counted = await drain.run(executors, sampler), await drain.run(executors, counter)
    seconds = {"plain": min(plain), "sampled": sampled["seconds"], "counted": counted["seconds"]}
    calls = counter.figures(arguments["messages"])
    return {"seconds": seconds, "messages": arguments["messages"], **sampler.figures(), "calls": calls}


async def measure_calls(arguments: Arguments) -> Figures:
    """What a call by the function costs over what it is made of."""
    best = await _best_of(arguments["messages"], {"send": _time_sends, "enqueue": _time_enqueues})
    return {"enqueue": best["enqueue"] / best["send"]}


async def measure_map(arguments: Arguments) -> Figures:
    """The rate of `app.map`; then what it costs over a drain of the same calls, and over sending and draining them."""
    app, count, limit = new_app(), arguments["messages"], arguments["limit"]
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        start = now()
        async with app.map(echo, range(count), limit=limit) as results:
            assert [number async for number in results] == list(range(count))
        end = now()
        worker.stop()
    times: dict[str, Callable[[int], Awaitable[float]]] = {
        "send": _time_bulk,
        "drain": _time_drain,
        "kept": partial(_time_drain, store_result=True),
        "map": partial(_time_map, limit=limit),
    }
    best = await _best_of(count, times)
    return {
        **rate(count, start, end),
        "drain": best["drain"] / best["map"],
        "both": (best["send"] + best["drain"]) / best["map"],
        "kept": best["drain"] / best["kept"],
    }


async def _best_of(count: int, times: Mapping[str, Callable[[int], Awaitable[float]]]) -> dict[str, float]:
    """The best of five of each; they take turns."""
    best: dict[str, float] = {}
    for _ in range(5):
        for name, time in times.items():
            best[name] = min(best.get(name, inf), await time(count))
    return best


async def _time_sends(count: int) -> float:
    app = new_app()
    async with app.magic():
        start = process_time()
        for number in range(count):
            await app.send_message_json(channel=CHANNEL, payload={"number": number}, headers={"topic": "numbered"})
        return process_time() - start


async def _time_enqueues(count: int) -> float:
    app = new_app()
    async with app.magic():
        start = process_time()
        for number in range(count):
            await app.enqueue(numbered, number)
        return process_time() - start


async def _time_bulk(count: int) -> float:
    app = new_app()
    async with app.magic():
        start = process_time()
        await app.enqueue_many(numbered, range(count))
        return process_time() - start


async def _time_drain(count: int, *, store_result: bool = False) -> float:
    app = new_app()
    async with app.magic():
        await app.using(store_result=store_result).enqueue_many(numbered, range(count))
        start = process_time()
        await app.run_worker(messages_limit=count)
        return process_time() - start


async def _time_map(count: int, *, limit: int) -> float:
    app = new_app()
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        start = process_time()
        async with app.map(numbered, range(count), limit=limit) as results:
            async for _ in results:
                pass
        worker.stop()
        return process_time() - start


MEASUREMENTS: dict[str, Measurement] = {
    "calls": on_trio(measure_calls),
    "map": on_trio(measure_map),
    "batch": on_trio(partial(later("_repid_batches", "measure_batches"), InMemoryServer)),
    "stages": on_trio(later("_repid_stages", "measure_stages")),
    "mixed": on_trio(later("_repid_mixed", "measure_mixed")),
    "noop": on_trio(measure_drain("noop")),
    "typed": on_trio(measure_drain("typed")),
    "enqueue-bulk": on_trio(measure_enqueue_bulk),
    "enqueue-one": on_trio(measure_enqueue_one),
    "chain": on_trio(measure_chain),
    "sleep": measure_sleep,
    "hosts-asyncio": on_trio(measure_guest),
    "hosts-uvloop": on_trio(measure_guest),
    "latency": on_trio(measure_latency),
    "memory-ready": on_trio(measure_ready),
    "memory-processed": on_trio(measure_processed),
    "profile": on_trio(measure_profile),
    "start": later("_repid_start", "measure_start"),
    "scaling-memory": on_trio(later("_repid_scaling", "measure_in_memory")),
}
DISTRIBUTIONS = ("repid-trio", "trio", "msgspec")
