"""Whole fleets in virtual time: one seed is one history, and what breaks a promise is found, made small and told."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from random import Random
from threading import Thread
from typing import Any

import pytest
import trio
import trio._core._run as trio_run
from defects import DEFECTS

from repid import Bounds, Router
from repid.delivery import ACK, Delivery, Settlement, WhenFull
from repid.envelope import Envelope, Options
from repid.ports import ANYTHING, SETTLED, Claimed
from repid.testing.simulate import BadHistory, Scenario, Send, fleet, simulate
from repid.testing.simulate.__main__ import main
from repid.testing.simulate.account import Account, Disturbances, Violation
from repid.testing.simulate.clock import VirtualClock
from repid.testing.simulate.plan import FAULTS, Stage, draw_plan
from repid.testing.simulate.runs import RunRules, Runs
from repid.testing.simulate.seeding import seeded
from repid.testing.simulate.shrinking import shrink
from repid.testing.simulate.world import live

SEEDS = 30
"""As many as a busy machine lives through in some thirty seconds; `python -m repid.testing.simulate` takes any number."""


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_the_fleet_keeps_its_promises_whatever_goes_wrong(first: int) -> None:
    simulate(fleet, range(first, first + 10))


def test_without_faults_nothing_runs_twice() -> None:
    simulate(partial(fleet, faults=0), range(10))


def test_one_seed_is_one_history() -> None:
    histories = [live(fleet, seed).history.text() for seed in (1, 1, 2)]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


def test_one_seed_is_one_history_in_every_process() -> None:
    code = (
        "from repid.testing.simulate import fleet\n"
        "from repid.testing.simulate.world import live\n"
        "print([live(fleet, seed).history.fingerprint for seed in range(4)])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {f"{[live(fleet, seed).history.fingerprint for seed in range(4)]}\n"}


def test_what_is_private_to_trio_is_still_there() -> None:
    """`seeding` and `clock` cannot work without: should this fail, see what has taken the place of these names."""
    assert isinstance(trio_run._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(trio_run._r, Random)
    assert isinstance(trio.Cancelled._create(), trio.Cancelled)

    async def order() -> list[int]:
        ran: list[int] = []

        async def note(n: int) -> None:
            ran.append(n)

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(note, n)
        return ran

    def shuffled(seed: str) -> list[int]:
        with seeded(seed, lambda: 0.0, VirtualClock(fail)):
            return trio.run(order)

    assert shuffled("a") == shuffled("a") != shuffled("b")


def test_the_virtual_clock_wakes_each_task_at_its_moment_unless_it_is_cancelled_before() -> None:
    clock, woken = VirtualClock(fail), []

    async def sleep(moment: float) -> None:
        await clock.sleep_until(moment)
        woken.append((moment, trio.current_time()))

    async def live() -> None:
        async with trio.open_nursery() as nursery:
            for moment in (3.0, 1.0, 0.0, 2.0):
                nursery.start_soon(sleep, moment)
            with trio.move_on_at(1.5) as scope:
                await clock.sleep_until(2.5)
            assert scope.cancelled_caught
            assert trio.current_time() == 1.5

    trio.run(live, clock=clock)
    assert woken == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


def fail(violation: Violation) -> None:
    raise violation


def test_tasks_sleep_by_the_virtual_clock_as_they_do_by_trio() -> None:
    """Random sleeps, many of which end or are cut off at one moment: the same tasks wake in the same turns."""
    own_sleep = trio.sleep
    own_sleep_until = trio.sleep_until

    def lived(seed: int, *, by_trio: bool) -> list[tuple[str, float]]:
        clock, told = VirtualClock(fail), list[tuple[str, float]]()

        async def doze(chance: Random, name: str) -> None:
            for n in range(6):
                scopes.append(trio.CancelScope(deadline=trio.current_time() + chance.randint(0, 4)))
                with scopes[-1]:
                    if chance.random() < 0.5:
                        await trio.sleep(chance.randint(0, 4))
                    else:
                        await trio.sleep_until(chance.randint(0, 15))
                    told.append((f"{name} woke {n}", trio.current_time()))
                    if chance.random() < 0.3:
                        chance.choice(scopes).cancel()
                told.append((f"{name} ended {n}, {scopes[-1].cancelled_caught}", trio.current_time()))

        async def live() -> None:
            async with trio.open_nursery() as nursery:
                if by_trio:
                    patch.setattr(trio, "sleep", own_sleep)
                    patch.setattr(trio, "sleep_until", own_sleep_until)
                for n in range(5):
                    nursery.start_soon(doze, Random(f"{seed} {n}"), f"task {n}")

        scopes: list[trio.CancelScope] = []
        with seeded(f"{seed}", lambda: 0.0, clock), pytest.MonkeyPatch.context() as patch:
            trio.run(live, clock=clock)
        return told

    for seed in range(50):
        assert lived(seed, by_trio=False) == lived(seed, by_trio=True)
    assert (trio.sleep, trio.sleep_until) == (own_sleep, own_sleep_until)


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_the_virtual_clock_refuses_what_trio_refuses(seconds: float) -> None:
    clock = VirtualClock(fail)

    async def refuse() -> None:
        for sleep in (clock.sleep, trio.sleep):
            with pytest.raises(ValueError, match="must"):
                await sleep(seconds)
        for sleep_until in (clock.sleep_until, trio.sleep_until):
            with pytest.raises(ValueError, match="NaN"):
                await sleep_until(math.nan)

    trio.run(refuse, clock=clock)


def test_a_sleep_taken_from_trio_during_a_history_works_in_every_other_run() -> None:
    """As a module has it that an actor imports at its first call and that says `from trio import sleep`."""
    clock = VirtualClock(fail)
    woke: list[str] = []

    async def live() -> None:
        await trio.sleep(60)
        assert trio.current_time() == 60
        thread = Thread(target=trio.run, args=(nap, trio.sleep, trio.sleep_until, "another thread"))
        thread.start()
        thread.join()
        assert trio.current_time() == 60

    async def nap(sleep: Any, sleep_until: Any, where: str) -> None:
        with trio.fail_after(5):
            await sleep(0.001)
            await sleep_until(trio.current_time() + 0.001)
        woke.append(where)

    with seeded("a", lambda: 0.0, clock):
        kept = trio.sleep, trio.sleep_until
        trio.run(live, clock=clock)
    trio.run(nap, *kept, "later")
    assert woke == ["another thread", "later"]


def bank(_: Random) -> Scenario:
    """Deposits read the balance, wait and write it: not safe to run at once, nor twice."""
    balance = {"ann": 0}
    router = Router()

    @router.actor
    async def deposit(amount: int) -> None:
        seen = balance["ann"]
        await trio.sleep(0.01)
        balance["ann"] = seen + amount

    def check(sent: Sequence[Send]) -> None:
        assert balance["ann"] == len(sent)

    return Scenario(routers=[router], sends=[Send(actor="deposit", args={"amount": 1})] * 5, check=check)


def test_a_lost_update_of_an_actor_is_found_and_made_small() -> None:
    with pytest.raises(BadHistory, match="AssertionError") as caught:
        simulate(bank, range(50))
    told = str(caught.value)
    assert caught.value.faults == ()  # two deposits at the same time are enough
    assert f"seed {caught.value.seed}" in told
    assert "python -m repid.testing.simulate --scenario test_simulate:bank --seeds" in told


def one_by_one(_: Random) -> Scenario:
    """Deposits that are safe at once, and not twice: what is done twice needs a fault between the deed and the verdict."""
    deposits: list[int] = []
    router = Router()

    @router.actor
    async def deposit(n: int) -> None:
        deposits.append(n)
        await trio.sleep(0.5)  # a receipt is sent, say

    def check(_: Sequence[Send]) -> None:
        assert len(deposits) == len(set(deposits))

    return Scenario(
        routers=[router], sends=[Send(actor="deposit", args={"n": n}, at=n) for n in range(10)], check=check
    )


def test_an_actor_that_is_not_idempotent_is_found_with_the_few_faults_that_show_it() -> None:
    with pytest.raises(BadHistory) as caught:
        simulate(one_by_one, range(50))
    assert 1 <= len(caught.value.faults) <= 2


def crowded(when_full: WhenFull, _: Random) -> Scenario:
    """More than fits into a queue, at once."""
    router = Router()

    @router.actor
    async def slow(n: int) -> None:
        await trio.sleep(1.0)

    return Scenario(
        routers=[router],
        sends=[Send(actor="slow", args={"n": n}, at=n / 10) for n in range(12)],
        options={"tasks_limit": 1},
        bounds={"default": Bounds(max_size=2, when_full=when_full)},
    )


@pytest.mark.parametrize(
    ("when_full", "told"), [("wait", "QueueFull"), ("raise", "had no room"), ("drop_oldest", "max_size=2 drop_oldest")]
)
def test_bounded_queues_are_judged(when_full: WhenFull, told: str) -> None:
    make = partial(crowded, when_full)
    simulate(make, range(3))
    assert told in live(make, 0).history.text()


def test_a_message_that_comes_in_although_there_is_no_room_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    DEFECTS["ignores_bounds"](monkeypatch)
    with pytest.raises(BadHistory, match="refused for want of room"):
        simulate(partial(crowded, "raise"), range(3))


def test_a_plan_follows_from_its_seed() -> None:
    stage = Stage(["worker-1"], ["producer"], 10.0, 20.0)
    assert draw_plan(Random(1), stage, FAULTS, 5) == draw_plan(Random(1), stage, FAULTS, 5)
    assert len(draw_plan(Random(1), stage, FAULTS, 5)) == 5


def test_shrinking_leaves_what_is_needed() -> None:
    assert shrink(range(100), lambda kept: {17, 56} <= set(kept), most=1000) == (17, 56)
    assert shrink(range(8), lambda kept: True, most=1000) == ()
    assert shrink((1,), lambda kept: 1 in kept, most=1000) == (1,)


def test_the_command_shows_a_history_and_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--show"]) == 0
    assert "to see this again: python -m repid.testing.simulate --seeds 3 --faults 0,1,2" in capsys.readouterr().out
    assert main(["--seeds", "0:2"]) == 0
    assert "2 histories, all well" in capsys.readouterr().out


def test_the_command_searches_in_several_processes_for_a_time() -> None:
    command = [sys.executable, "-m", "repid.testing.simulate", "--seeds", "0:1000", "--processes", "2", "--within", "0"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("10 histories, all well, in ")


@pytest.mark.parametrize("wrong", [["--seeds", "x"], ["--scenario", "nothing:here"], ["--faults", "a"]])
def test_the_command_says_what_is_wrong(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(wrong)
    assert wrong[1] in capsys.readouterr().err


def test_dead_messages_are_revived_in_the_order_in_which_they_expired() -> None:
    """Nothing need be asked of the engine between two moments in which messages expire."""
    account = Account(60.0, Disturbances())
    long, short = (Envelope(f"{ttl}", "work", b"", options=Options(ttl=ttl)) for ttl in (2.0, 1.0))
    account.judge(0.0, "producer", "publish", ([long, short],), [None, None])
    account.judge(0.0, "worker", "subscribe", ("c", {"work": None}), None)
    account.judge(3.0, "producer", "revive", ("work", None), [None, None])
    first = Claimed([Delivery(short, 1, 0, b"token")])
    account.judge(3.0, "worker", "claim", ("c", 1, ANYTHING), first)
    with pytest.raises(Violation, match="was handed out although it is leased"):
        account.judge(3.0, "worker", "claim", ("c", 1, ANYTHING), first)


def test_a_verdict_that_comes_when_its_worker_has_been_replaced_is_not_counted_for_the_new_one() -> None:
    account = Account(60.0, Disturbances())
    account.judge(0.0, "producer", "publish", ([Envelope("1", "work", b"")],), [None])
    account.judge(0.0, "worker", "subscribe", ("c", {"work": None}), None)
    delivery = Delivery(Envelope("1", "work", b""), 1, 0, b"token")
    account.judge(1.0, "worker", "claim", ("c", 1, ANYTHING), Claimed([delivery]))
    former, present = account.settled["worker"], Counter[str]()
    account.settled["worker"] = present
    account.judge(2.0, "worker", "settle", ("c", [Settlement(delivery, ACK)]), [SETTLED])
    assert (dict(former), dict(present)) == ({"leases": 1, "verdicts": 1, "succeeded": 1}, {})


def test_a_run_of_a_message_that_was_published_anew_when_it_was_acknowledged_is_no_second_run() -> None:
    """Its first run may begin after that of the second message, and nobody can tell them apart."""
    faults, violations = Disturbances(), list[Violation]()
    faults.add("producer", 0.0, 10.0)  # the answer to its call was lost
    account = Account(60.0, faults)
    runs = Runs(account, faults, violations.append)
    rules = RunRules(decides_early=True, once=True)
    account.judge(0.0, "worker", "subscribe", ("c", {"work": None}), None)
    for name in ("worker-1", "worker-2"):
        delivery = Delivery(Envelope("1", "work", b""), 1, 0, name)
        account.judge(1.0, "producer", "publish", ([delivery.envelope],), [None])
        account.judge(1.0, name, "claim", ("c", 1, ANYTHING), Claimed([delivery]))
        account.judge(1.0, name, "settle", ("c", [Settlement(delivery, ACK)]), [SETTLED])
    for name in ("worker-2", "worker-1"):
        runs.begin("1", "actor", name, 2.0, rules)
    assert violations == []
