"""Waiting for news: one leader asks the engine for all, whoever leaves."""

from __future__ import annotations

import math
from functools import partial

import pytest
import trio
from aids import run_virtual, seed_scheduler
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repid.brokers.shared.hub import LONGEST_WAIT, Hub, Topic
from repid.ports import News


class Engine:
    """Something that changes. `ask` is the driver's `news`, and complains of a second one at the same time."""

    def __init__(self) -> None:
        self.version = 0
        self.asked: list[float] = []
        self.is_asked = False
        self._told = 0
        self._changed = trio.Event()

    def change(self) -> None:
        self.version += 1
        self._changed.set()

    async def ask(self, wait: float) -> News | None:
        assert not self.is_asked, "two tasks lead"
        self.is_asked = True
        self.asked.append(wait)
        try:
            with trio.move_on_after(wait):
                while self._told == self.version:
                    self._changed = trio.Event()
                    await self._changed.wait()
                self._told = self.version
                return News()
            return None
        finally:
            self.is_asked = False


async def silence(wait: float) -> None:
    """An engine that has no news."""
    await trio.sleep(wait)


async def wait_for(hub: Hub, engine: Engine, version: int, until: float = math.inf) -> bool:
    """As consumers do: subscribe, look, wait, look again."""
    with hub.subscribed("ready") as subscription:
        while True:
            subscription.is_fresh = False
            if engine.version >= version:
                return True
            if trio.current_time() >= until:
                return False
            await hub.wait(subscription, until)


async def test_one_asks_for_all(autojump_clock: MockClock) -> None:
    engine = Engine()
    hub = Hub(engine.ask)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(wait_for, hub, engine, 1)
        await wait_all_tasks_blocked()
        assert len(engine.asked) == 1
        engine.change()
    assert len(engine.asked) <= 2


async def test_nobody_is_asked_while_nobody_waits(autojump_clock: MockClock) -> None:
    engine = Engine()
    hub = Hub(engine.ask)
    with hub.subscribed("ready"):
        await trio.sleep(100)
    assert engine.asked == []


@pytest.mark.parametrize("way", ["deadline", "cancelled"])
async def test_when_the_leader_leaves_another_leads(way: str, autojump_clock: MockClock) -> None:
    engine = Engine()
    hub = Hub(engine.ask)
    leader = trio.CancelScope()

    async def lead() -> None:
        with leader:
            assert not await wait_for(hub, engine, 1, until=1.0 if way == "deadline" else math.inf)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await wait_all_tasks_blocked()
        followers = [trio.CancelScope() for _ in range(3)]

        async def follow(scope: trio.CancelScope) -> None:
            with scope:
                await wait_for(hub, engine, 1)

        for scope in followers:
            nursery.start_soon(follow, scope)
        await wait_all_tasks_blocked()
        if way == "deadline":
            await trio.sleep(2)
        leader.cancel()
        followers[0].cancel()
        await wait_all_tasks_blocked()
        assert engine.is_asked
        engine.change()


async def test_one_that_is_cancelled_as_it_is_to_lead_makes_another_lead(autojump_clock: MockClock) -> None:
    engine = Engine()
    leader, next_one = trio.CancelScope(), trio.CancelScope()

    async def ask(wait: float) -> News | None:
        try:
            return await engine.ask(wait)
        finally:
            next_one.cancel()  # it wakes up cancelled, and does so after the leader has chosen it

    hub = Hub(ask)

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            await wait_for(hub, engine, 1)

    async with trio.open_nursery() as nursery:
        for scope in (leader, next_one, trio.CancelScope()):
            nursery.start_soon(wait, scope)
            await wait_all_tasks_blocked()
        leader.cancel()
        await wait_all_tasks_blocked()
        assert engine.is_asked
        engine.change()


async def test_whom_news_does_not_concern_goes_on_waiting(autojump_clock: MockClock) -> None:
    hub = Hub(silence)
    woken: list[str] = []

    async def wait(name: str, topic: Topic, ids: frozenset[str] = frozenset()) -> None:
        with hub.subscribed(topic, ids) as subscription:
            await hub.wait(subscription)
            woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "ready", "ready")
        nursery.start_soon(wait, "events", "events")
        nursery.start_soon(wait, "a", "ids", frozenset("a"))
        nursery.start_soon(wait, "b", "ids", frozenset("b"))
        await wait_all_tasks_blocked()
        hub.tell(News(ready=False, events=False, ids={"a"}))
        await wait_all_tasks_blocked()
        assert woken == ["a"]
        hub.tell(News(ready=True, events=False, ids=()))
        await wait_all_tasks_blocked()
        assert woken == ["a", "ready"]
        hub.tell(News(ready=False, events=False, ids=None))
        hub.tell(News(ready=False, events=True, ids=()))
    assert sorted(woken) == ["a", "b", "events", "ready"]


async def test_news_between_the_look_and_the_wait_is_not_lost(autojump_clock: MockClock) -> None:
    hub = Hub(silence)
    with hub.subscribed("ready") as subscription:
        hub.tell_all()
        await hub.wait(subscription)
        assert trio.current_time() < 1
        with trio.move_on_after(1) as scope:
            await hub.wait(subscription)
        assert scope.cancelled_caught  # it was told once


async def test_an_engine_that_is_silent_is_asked_again(autojump_clock: MockClock) -> None:
    engine = Engine()
    hub = Hub(engine.ask)
    with trio.move_on_after(3.5 * LONGEST_WAIT):
        await wait_for(hub, engine, 1)
    assert engine.asked == [LONGEST_WAIT] * 4


steps = st.lists(
    st.tuples(st.sampled_from(["wait", "wait a moment", "change", "cancel", "pause"]), st.integers(0, 9)), max_size=40
)


@given(steps, st.integers(0, 1000))
def test_no_wake_up_is_lost_whoever_comes_changes_and_leaves(plan: list[tuple[str, int]], seed: int) -> None:
    async def main() -> None:
        engine = Engine()
        hub = Hub(engine.ask)
        scopes: list[trio.CancelScope] = []
        served: list[bool] = []

        async def wait(version: int, until: float) -> None:
            scope = trio.CancelScope()
            scopes.append(scope)
            with scope:
                served.append(await wait_for(hub, engine, version, until))

        async with trio.open_nursery() as nursery:
            for step, number in plan:
                if step == "wait":
                    nursery.start_soon(wait, engine.version + 1 + number % 3, math.inf)
                elif step == "wait a moment":
                    nursery.start_soon(wait, engine.version + 1, trio.current_time() + number / 10)
                elif step == "change":
                    engine.change()
                elif step == "cancel" and scopes:
                    scopes[number % len(scopes)].cancel()
                else:
                    for _ in range(number):
                        await trio.lowlevel.checkpoint()
            for _ in range(3):
                await wait_all_tasks_blocked()
                engine.change()
            with trio.fail_after(1):  # and not after LONGEST_WAIT, when the engine is asked again
                while len(nursery.child_tasks):
                    await trio.sleep(0.01)
        assert not engine.is_asked

    seed_scheduler(seed)
    run_virtual(main)


async def test_news_that_is_told_at_once_wakes_whom_it_concerns_and_the_leader_only_by_its_own_call(
    autojump_clock: MockClock,
) -> None:
    woken: list[Topic] = []
    returns = trio.Semaphore(0)

    async def ask(wait: float) -> News:
        await returns.acquire()
        return News(ready=False, events=False, ids=(), room=False)

    hub = Hub(ask)

    async def wait_for_news(topic: Topic) -> None:
        with hub.subscribed(topic) as subscription:
            assert await hub.wait(subscription)
            woken.append(topic)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_news, "events")  # it leads
        await wait_all_tasks_blocked()
        nursery.start_soon(wait_for_news, "ready")
        nursery.start_soon(wait_for_news, "room")
        await wait_all_tasks_blocked()
        assert not hub.tell_at_once(News(events=False, ids=(), room=False))
        await wait_all_tasks_blocked()
        assert woken == ["ready"]
        assert hub.tell_at_once(News(ready=False, ids=(), room=False))
        await wait_all_tasks_blocked()
        assert woken == ["ready"]
        returns.release()
        await wait_all_tasks_blocked()
        assert woken == ["ready", "events"]
        hub.tell_all()
    assert woken == ["ready", "events", "room"]


async def test_news_that_is_told_at_once_between_the_look_and_the_wait_is_noted() -> None:
    hub = Hub(silence)
    with hub.subscribed("ready") as subscription:
        assert not hub.tell_at_once(News())
        with trio.fail_after(1):
            assert await hub.wait(subscription)


async def test_a_task_that_follows_looks_in_the_step_in_which_news_is_told_unless_it_was_cancelled_before() -> None:
    hub = Hub(silence)
    looked: list[str] = []

    async def wait_for_news(topic: Topic, name: str) -> None:
        with scopes[name], hub.subscribed(topic) as subscription:
            subscription.look = partial(looked.append, name)
            await hub.wait(subscription)

    scopes = {name: trio.CancelScope() for name in ("leader", "waiting", "cancelled", "other")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_news, "events", "leader")
        await wait_all_tasks_blocked()
        nursery.start_soon(wait_for_news, "ready", "waiting")
        nursery.start_soon(wait_for_news, "ready", "cancelled")
        nursery.start_soon(wait_for_news, "room", "other")
        await wait_all_tasks_blocked()
        scopes["cancelled"].cancel()
        hub.tell_at_once(News(ids=(), room=False))
        assert looked == ["waiting"]
        hub.tell_at_once(News(ids=(), room=False))
        assert looked == ["waiting"]  # it is awake
        nursery.cancel_scope.cancel()
