"""The account: whatever happens to workers, every message is in exactly one place, and no message runs twice at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import msgspec
import pytest
import trio
from aids import UnreliableServer, run_virtual, seed_scheduler, send, total
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repid import Counts, Envelope, Handle, Message, Repid, Report, Router, catch_all_routing_strategy
from repid.delivery import ACK, Delivery, Settlement
from repid.ports import REFUSED, SETTLED, Verdict
from repid.runtime.ledger import Ledger

Behaviour: TypeAlias = Literal[
    "quick", "yields", "sleeps", "fails", "hangs", "acks", "nacks", "rejects", "retries", "snoozes", "replies",
    "forgets", "chains", "stubborn", "acks_then_fails", "limited",
]  # fmt: skip
BEHAVIOURS: tuple[Behaviour, ...] = (
    "quick", "yields", "sleeps", "fails", "hangs", "acks", "nacks", "rejects", "retries", "snoozes", "replies",
    "forgets", "chains", "stubborn", "acks_then_fails", "limited",
)  # fmt: skip
How: TypeAlias = Literal["stop", "cancel", "cut_short", "burst", "limit"]


class Spell(msgspec.Struct, frozen=True):
    """One worker's life: how it ends, after how much virtual time and then how many checkpoints."""

    how: How
    after: float
    checkpoints: int
    tasks_limit: int
    trouble: str | None = None


class World:
    """A server, actors that behave in every way, and a watch on who runs what."""

    def __init__(self) -> None:
        self.server = UnreliableServer()
        self.app = Repid()
        self.app.servers.register_server("default", self.server)
        self.running: list[Message] = []
        self.overlaps: list[str] = []
        self.app.include_router(self._actors())

    def _actors(self) -> Router:
        router = Router(retries=2, retry_policy=lambda n: n / 2, timeout=7, middlewares=[self._watch])

        @router.actor
        async def quick() -> None: ...

        @router.actor
        async def yields() -> None:
            await trio.lowlevel.checkpoint()

        @router.actor
        async def sleeps() -> None:
            await trio.sleep(3)

        @router.actor
        async def fails() -> None:
            await trio.sleep(0.5)
            raise ValueError

        @router.actor
        async def hangs() -> None:
            await trio.sleep_forever()

        @router.actor
        async def acks(message: Message) -> None:
            await message.ack()
            await trio.sleep(1)

        @router.actor
        async def nacks(message: Message) -> None:
            await message.nack()

        @router.actor
        async def rejects(message: Message) -> None:
            await trio.sleep(1)
            await message.reject()

        @router.actor
        async def retries(message: Message) -> None:
            if message.attempt <= 2:
                await message.retry()

        @router.actor
        async def snoozes(message: Message) -> None:
            await message.snooze(2)

        @router.actor
        async def replies(message: Message) -> None:
            await message.reply(payload=b"", channel="replies")

        @router.actor(confirmation_mode="manual")
        async def forgets() -> None: ...

        @router.actor
        async def chains(message: Message) -> None:
            await message.outbox.send_message(channel="replies", payload=b"")
            await trio.sleep(1)

        @router.actor
        async def stubborn() -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)

        @router.actor
        async def acks_then_fails(message: Message) -> None:
            await message.ack()
            raise ValueError

        @router.actor(concurrency=2)
        async def limited() -> None:
            await trio.sleep(0.3)

        return router

    async def _watch(self, call_next: Callable[..., Any], message: Message, actor: Any) -> Any:
        for other in self.running:  # one that has given its verdict may take its time to end
            if other.message_id == message.message_id and not other.is_acted_on:
                self.overlaps.append(message.message_id)
        self.running.append(message)
        try:
            return await call_next(message, actor)
        finally:
            self.running.remove(message)

    async def live_through(self, spell: Spell) -> Report | None:
        """One worker, from its start to its end."""
        reports: list[Report] = []
        self.server.heal()
        if spell.trouble is not None:
            self.server.failures[spell.trouble] = 2
        options: dict[str, Any] = {"tasks_limit": spell.tasks_limit, "graceful_shutdown_time": 2}
        if spell.how == "burst":
            options["burst"] = True
        if spell.how == "limit":
            options["messages_limit"] = spell.checkpoints + 1

        async def work(task_status: trio.TaskStatus[Handle]) -> None:
            reports.append(await self.app.run_worker(task_status=task_status, **options))

        async with trio.open_nursery() as nursery:
            handle: Handle = await nursery.start(work)
            await trio.sleep(spell.after)
            for _ in range(spell.checkpoints):
                await trio.lowlevel.checkpoint()
            if spell.how == "cancel":
                nursery.cancel_scope.cancel()
            elif spell.how == "cut_short":
                handle.cut_short()
            else:
                handle.stop()
        return reports[0] if reports else None


spells = st.builds(
    Spell,
    how=st.sampled_from(["stop", "cancel", "cut_short", "burst", "limit"]),
    after=st.sampled_from([0.0, 0.0, 0.4, 0.5, 1.0, 3.0, 7.0, 9.5, 16.0]),
    checkpoints=st.integers(0, 25),
    tasks_limit=st.sampled_from([1, 2, 3, 8, 1000]),
    trouble=st.sampled_from([None, None, "receive", "settle", "extend", "rescue"]),
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(BEHAVIOURS), min_size=1, max_size=30),
    lives=st.lists(spells, min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_every_message_is_in_exactly_one_place_whatever_happens_to_workers(
    kinds: list[Behaviour], lives: list[Spell], seed: int
) -> None:
    async def main() -> None:
        world = World()
        async with world.app.magic():
            await world.server.declare(["default", "replies"])
            for kind in kinds:
                await send(world.app, kind)
            there = len(kinds)
            for spell in lives:
                before = await world.server.counts("default")
                report = await world.live_through(spell)
                counts = await world.server.counts("default")
                assert world.running == []
                assert counts.leased == 0
                if report is not None:
                    assert (report.refused, report.unsettled, report.abandoned) == (0, 0, 0)
                    acked = report.succeeded
                    assert total(before) == total(counts) + acked
                    assert counts.dead == before.dead + report.dead
                there = total(counts)
            world.server.heal()
            assert there == await self_controlled_end(world)
            assert world.overlaps == []

    seed_scheduler(seed)
    run_virtual(main)


async def self_controlled_end(world: World) -> int:
    """A worker whose actors all behave takes what is left, the dead included; how many that were."""
    done: list[str] = []
    app = Repid()
    app.servers.register_server("default", world.server)
    router = Router()
    app.include_router(router)
    for kind in BEHAVIOURS:

        async def behave(message: Message) -> None:
            done.append(message.message_id)

        router.actor(name=kind)(behave)
    await trio.sleep(100)
    await world.server.revive("default")
    report = await app.run_worker(burst=True)
    assert len(done) == len(set(done))
    assert await world.server.counts("default") == Counts()
    assert report == Report(processed=len(done), succeeded=len(done))
    return len(done)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(1, 60),
    limits=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    tasks_limit=st.sampled_from([1, 2, 5, 1000]),
    concurrency=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 2**32),
)
def test_messages_limit_is_exact(
    count: int, limits: list[int], tasks_limit: int, concurrency: int | None, seed: int
) -> None:
    """Several workers after one another, each with its own limit, on messages quick and slow."""

    async def main() -> None:
        server = UnreliableServer()
        app = Repid()
        app.servers.register_server("default", server)
        router = Router() if concurrency is None else Router(concurrency=concurrency)
        runs: list[int] = []

        @router.actor
        async def job(i: int) -> None:
            runs.append(i)
            if i % 3:
                await trio.sleep(i % 3)

        app.include_router(router)
        async with app.magic():
            for i in range(count):
                await send(app, "job", i=i)
            left = count
            for limit in limits:
                before = len(runs)
                with trio.move_on_after(1000):
                    report = await app.run_worker(messages_limit=limit, tasks_limit=tasks_limit)
                    assert (report.processed, report.succeeded) == (limit, limit)
                ran = len(runs) - before
                assert ran == min(limit, left)
                left -= ran
                if await server.counts("default") != Counts(ready=left):
                    raise AssertionError(await server.counts("default"), left)

    seed_scheduler(seed)
    run_virtual(main)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    workers=st.integers(2, 5),
    count=st.integers(1, 80),
    tasks_limit=st.sampled_from([1, 3, 1000]),
    deaths=st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=5),
    seed=st.integers(0, 2**32),
)
def test_several_workers_of_one_app_share_without_losing_or_doubling(
    workers: int, count: int, tasks_limit: int, deaths: list[tuple[int, bool]], seed: int
) -> None:
    """Some of them are stopped or cancelled in the middle; at least one goes on to the end."""

    async def main() -> None:
        world = World()
        completed: Counter[int] = Counter()
        router = Router()

        @router.actor
        async def job(i: int) -> None:
            await trio.sleep(i % 4 / 2)
            completed[i] += 1

        app = Repid()
        app.servers.register_server("default", world.server)
        app.include_router(router)

        async def work(scope: trio.CancelScope, task_status: trio.TaskStatus[Handle]) -> None:
            with scope:
                await app.run_worker(
                    tasks_limit=tasks_limit, graceful_shutdown_time=0.4, task_status=task_status, handle_signals=[]
                )

        async with app.magic(), trio.open_nursery() as nursery:
            await world.server.declare(["default"])
            for i in range(count):
                await send(app, "job", i=i)
            lives: list[tuple[Handle, trio.CancelScope]] = []
            for _ in range(workers):
                scope = trio.CancelScope()
                lives.append((await nursery.start(work, scope), scope))
            for (checkpoints, politely), (handle, scope) in zip(deaths, lives[1:], strict=False):
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                if politely:
                    handle.stop()
                else:
                    scope.cancel()
            await trio.sleep(500)
            for handle, _ in lives:
                handle.stop()
            await trio.sleep(30)
            assert await world.server.counts("default") == Counts()
        assert completed == Counter(range(count))

    seed_scheduler(seed)
    run_virtual(main)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("how", ["outbox", "retry", "reject_once", "send"])
def test_burst_leaves_nothing_ready_behind(seed: int, how: str) -> None:
    """What the last run itself has made ready is still handled, in whatever order things happen."""
    seed_scheduler(seed)

    async def main() -> None:
        server = UnreliableServer()
        app = Repid()
        app.servers.register_server("default", server)
        router = Router()
        app.include_router(router)
        seen: list[str] = []

        @router.actor(retries=1, retry_policy=lambda _: 0)
        async def first(message: Message) -> None:
            seen.append("first")
            await trio.lowlevel.checkpoint()
            again = len(seen) > 1
            if how == "outbox":
                await message.outbox.send_message(channel="default", payload=b"", headers={"topic": "second"})
            elif how == "send":
                await message.send_message(channel="default", payload=b"", headers={"topic": "second"})
            elif how == "retry" and not again:
                raise ValueError
            elif how == "reject_once" and not again:
                await message.reject()

        @router.actor
        async def second() -> None:
            await trio.lowlevel.checkpoint()
            seen.append("second")

        async with app.magic():
            await send(app, "first")
            await app.run_worker(burst=True)
            assert await server.counts("default") == Counts()
        assert seen == ["first", "first" if how in {"retry", "reject_once"} else "second"]

    run_virtual(main)


async def test_burst_comes_back_to_what_it_gave_back_because_too_much_waited_for_a_limit(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(concurrency=1, routing_strategy=catch_all_routing_strategy)  # claims cannot be limited to such a one
    async def quick() -> None:
        await trio.sleep(0.001)

    for _ in range(20):
        await send(app, "quick")
    report = await app.run_worker(burst=True)
    assert report.succeeded == 20
    assert report.released
    assert await server.counts("default") == Counts()


async def test_burst_waits_for_what_it_holds_and_not_for_what_is_scheduled(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(retries=1, retry_policy=lambda _: 1000)
    async def fails() -> None:
        await trio.sleep(5)
        raise ValueError

    await send(app, "fails")
    await app.send_message_json(channel="default", headers={"topic": "fails"}, delay=50)
    started = trio.current_time()
    assert await app.run_worker(burst=True) == Report(processed=1, retried=1)
    assert trio.current_time() - started == 5
    assert await server.counts("default") == Counts(scheduled=2)


async def test_a_run_in_burst_mode_may_wait_for_what_it_has_sent(app: Repid, router: Router) -> None:
    done = trio.Event()

    @router.actor
    async def asks() -> None:
        await trio.sleep(1)
        await send(app, "answers")
        await done.wait()

    @router.actor
    async def answers() -> None:
        done.set()

    await send(app, "asks")
    started = trio.current_time()
    assert await app.run_worker(burst=True) == Report(processed=2, succeeded=2)
    assert trio.current_time() - started == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_comes_in_burst_mode_at_the_moment_of_a_stop_is_released(seed: int) -> None:
    seed_scheduler(seed)

    async def main() -> None:
        app, server, router = Repid(), UnreliableServer(), Router()
        app.servers.register_server("default", server)
        app.include_router(router)

        @router.actor
        async def slow() -> None:
            await trio.sleep(10)

        async with app.magic(), trio.open_nursery() as nursery:
            await send(app, "slow")
            worker = await nursery.start(partial(app.run_worker, burst=True, graceful_shutdown_time=0))
            await trio.sleep(1)
            nursery.start_soon(send, app, "slow")
            await trio.lowlevel.checkpoint()
            worker.stop()
            await trio.sleep(1)
            assert await server.counts("default") == Counts(ready=2)

    run_virtual(main)


@pytest.mark.parametrize("seed", range(40))
def test_in_burst_mode_an_actor_at_its_limit_goes_on_while_others_run(seed: int) -> None:
    seed_scheduler(seed)
    started: list[float] = []

    async def main() -> None:
        app = Repid()
        app.servers.register_server("default", UnreliableServer())
        router = Router()
        app.include_router(router)

        @router.actor
        async def slow() -> None:
            await trio.sleep(100)

        @router.actor(concurrency=1)
        async def one_by_one(i: int) -> None:
            started.append(trio.current_time())
            if i % 3 == 0:
                await trio.sleep(0.01)

        async with app.magic():
            await send(app, "slow")
            for i in range(40):
                await send(app, "one_by_one", i=i)
            await app.run_worker(burst=True)

    run_virtual(main)
    assert len(started) == 40
    assert max(started) < 1


async def test_burst_with_nothing_to_do_returns_at_once(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None: ...

    started = trio.current_time()
    assert await app.run_worker(burst=True) == Report()
    assert trio.current_time() == started


async def test_a_limit_of_zero_runs_nothing(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def job() -> None: ...

    await send(app, "job")
    assert await app.run_worker(messages_limit=0) == Report()
    assert await server.counts("default") == Counts(ready=1)


async def test_the_limit_counts_runs_and_messages_that_did_not_fit(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    ran: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        ran.append(i)

    for i in range(6):
        await app.send_message(channel="default", payload=b"broken", headers={"topic": "job"})
        await send(app, "job", i=i)
    report = await app.run_worker(messages_limit=3)
    assert (ran, report.processed, report.succeeded, report.dead) == ([0], 1, 1, 2)
    counts = await server.counts("default")
    assert (counts.dead, counts.leased, total(counts)) == (report.dead, 0, 11)


async def test_a_limit_waits_for_the_runs_it_counted(app: Repid, router: Router) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(10)

    for _ in range(5):
        await send(app, "slow")
    started = trio.current_time()
    assert await app.run_worker(messages_limit=2) == Report(processed=2, succeeded=2)
    assert trio.current_time() - started == 10


async def test_one_executor_takes_messages_in_their_order(app: Repid, router: Router) -> None:
    order: list[int] = []

    @router.actor
    async def job(i: int) -> None:
        order.append(i)
        if i >= 30:
            await trio.sleep(1)

    for i in range(60):
        await send(app, "job", i=i)
    await app.run_worker(burst=True, tasks_limit=1)
    assert order == list(range(60))


async def test_as_many_run_at_once_as_allowed_and_not_more(app: Repid, router: Router) -> None:
    at_once: list[int] = []
    running: set[int] = set()

    @router.actor
    async def job(i: int) -> None:
        running.add(i)
        at_once.append(len(running))
        await trio.sleep(1)
        running.remove(i)

    for i in range(60):
        await send(app, "job", i=i)
    started = trio.current_time()
    await app.run_worker(burst=True, tasks_limit=20)
    assert (max(at_once), trio.current_time() - started) == (20, 3)


async def test_a_worker_hoards_nothing_that_another_could_run(app: Repid, router: Router) -> None:
    @router.actor
    async def slow() -> None:
        await trio.sleep(10)

    for _ in range(20):
        await send(app, "slow")
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(partial(app.run_worker, burst=True, tasks_limit=10))
    assert trio.current_time() - started == 10


@pytest.mark.parametrize("pause", [2, 10])
async def test_runs_that_end_while_a_worker_waits_for_messages_make_it_hoard_nothing(
    app: Repid, router: Router, pause: float
) -> None:
    started: list[float] = []

    @router.actor
    async def quick() -> None:
        await trio.sleep(1)

    @router.actor
    async def slow() -> None:
        started.append(trio.current_time())
        await trio.sleep(100)

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(app.run_worker, tasks_limit=10))
        for _ in range(5):
            await send(app, "quick")
            await trio.sleep(pause)
        await nursery.start(partial(app.run_worker, tasks_limit=10))
        await trio.sleep(3)
        zero = trio.current_time()
        await app.send_messages_json(channel="default", payloads=[{}] * 20, headers={"topic": "slow"})
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert [time - zero for time in started] == [0] * 20


async def test_free_executors_get_what_is_sent_while_others_run(app: Repid, router: Router) -> None:
    started: list[int] = []

    @router.actor
    async def slow(i: int) -> None:
        started.append(i)
        await trio.sleep(100)

    for i in range(6):
        await send(app, "slow", i=i)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(app.run_worker, tasks_limit=10))
        await trio.sleep(1)
        for i in range(6, 10):
            await send(app, "slow", i=i)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert sorted(started) == list(range(10))


async def test_a_verdict_that_is_accepted_after_its_lease_was_given_up_counts_once() -> None:
    """The broker did not answer in time, and then it did."""
    ledger = Ledger(tasks_limit=10, messages_limit=math.inf)
    deliveries = [Delivery(Envelope(id_, "default", b""), 1, 0, id_) for id_ in ("late", "refused")]
    late, refused = ledger.lease(deliveries, [None, None], trio.current_time(), 1.0)
    for holding, verdict in ((late, SETTLED), (refused, REFUSED)):
        ledger.lost(holding)
        ledger.handed_over(holding)
        ledger.settled([Settlement(holding.delivery, ACK)], [verdict])
    assert ledger.report() == Report(succeeded=1, refused=1)


@pytest.mark.parametrize(("verdict", "expected"), [(SETTLED, Report(succeeded=1)), (REFUSED, Report(refused=1))])
async def test_a_lease_that_is_lost_while_its_verdict_is_on_its_way_is_counted_by_the_answer(
    verdict: Verdict, expected: Report
) -> None:
    ledger = Ledger(tasks_limit=10, messages_limit=math.inf)
    [holding] = ledger.lease([Delivery(Envelope("1", "q", b""), 1, 0, "1")], [None], trio.current_time(), 1.0)
    ledger.handed_over(holding)
    ledger.lost(holding)
    assert ledger.report() == Report(unsettled=1)
    ledger.settled([Settlement(holding.delivery, ACK)], [verdict])
    assert ledger.report() == expected
