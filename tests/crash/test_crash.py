"""The short form of the crash run, and the checker held against journals that are wrong on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engines.postgres import Postgres
from engines.postgres import running as running_postgres
from engines.redis import WANTED, Redis, embedded, running

from .checker import Life, check
from .failover import NAME, group_of_two
from .harness import ROOT, Harness, Plan
from .journal import (
    Claimed,
    Confirmed,
    Extended,
    Finished,
    Intended,
    Journal,
    Judged,
    Kind,
    Lease,
    Line,
    Linked,
    Proved,
    Settled,
    Settling,
    Started,
    Told,
    now,
    read_journal,
)
from .network import CUTS, Outage
from .outages import check_outages
from .stores import Store, in_file, in_postgres, in_redis, in_redis_group

SEED = int(os.environ.get("REPID_TEST_SEED", "0"))

LEASE = 1.0

LARGE = 1500
"""Of so many jobs some have a verdict refused as stale, whatever the seed."""

ON_THE_WAY = ("half publish", "after publish", "after claim", "half settle", "after settle", "stop run", "stop settle")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="children are tied to the harness by prctl")

PUBLISHED = Life("p0", [Intended(at=0, ids=["a"]), Confirmed(at=0.1, ids=["a"])])


def lease(at: float, token: int, *, attempt: int = 1, lost: int = 0, id_: str = "a") -> list[Line]:
    """One message is leased and its actor begins."""
    claimed = Claimed(at=at, asked=at - 0.01, leases=[Lease(id_, token, attempt, lost)])
    return [claimed, Started(at=at + 0.01, id=id_, token=token)]


def verdict(
    at: float, token: int, *, accepted: bool | None = True, kind: Kind = "Ack", outbox: tuple[str, ...] = ()
) -> list[Line]:
    """The actor ends; the broker is told a verdict, and answers or (None) does not."""
    asked: list[Line] = [Settling(at=at, verdicts=[Judged("a", token, kind, outbox)])]
    if kind == "Ack":
        asked.insert(0, Finished(at=at, id="a", token=token))
    if accepted is None:
        return asked
    tokens = [token]
    return [*asked, Settled(at=at + 0.01, accepted=tokens if accepted else [], refused=[] if accepted else tokens)]


def rules(*lives: Life, final: dict[str, list[str]] | None = None) -> list[str]:
    """Which rules the checker finds broken."""
    return [fault.rule for fault in check([PUBLISHED, *lives], final or {}, LEASE).faults]


def test_a_message_that_was_run_and_acknowledged_once_is_fine() -> None:
    assert rules(Life("w1", [*lease(1, 1), *verdict(1.5, 1)])) == []


def test_a_message_that_is_still_there_or_dead_is_fine() -> None:
    assert rules(final={"a": ["ready"]}) == []
    assert rules(Life("w1", [*lease(1, 1), *verdict(1.5, 1, kind="DeadLetter")]), final={"a": ["dead"]}) == []


def test_a_confirmed_message_that_is_nowhere_is_lost() -> None:
    assert rules() == ["lost"]


def test_a_message_that_went_with_its_killed_worker_is_lost() -> None:
    assert rules(Life("w1", lease(1, 1), killed_at=1.2)) == ["lost"]


def test_a_message_whose_worker_was_killed_before_the_answer_may_be_gone() -> None:
    assert rules(Life("w1", [*lease(1, 1), *verdict(1.1, 1, accepted=None)], killed_at=1.2)) == []


def test_a_message_whose_worker_ended_well_without_an_answer_is_lost() -> None:
    assert rules(Life("w1", [*lease(1, 1), *verdict(1.1, 1, accepted=None)])) == ["lost"]


def test_a_message_whose_verdict_was_not_answered_may_be_gone() -> None:
    told_later = Settled(at=2, accepted=[], refused=[], unanswered=[1])
    account = check([PUBLISHED, Life("w1", [*lease(1, 1), *verdict(1.1, 1, accepted=None), told_later])], {}, LEASE)
    assert account.faults == []
    assert account.figures["verdicts without an answer"] == 1


def test_an_unconfirmed_message_may_exist_or_not() -> None:
    unsure = Life("p1", [Intended(at=0, ids=["b"])], killed_at=0.1)
    done = Life("w1", [*lease(1, 1), *verdict(1.5, 1)])
    assert rules(unsure, done) == []
    assert rules(unsure, done, final={"b": ["ready"]}) == []


def test_half_of_a_call_is_noticed() -> None:
    unsure = Life("p1", [Intended(at=0, ids=["b", "c"])], killed_at=0.1)
    assert rules(unsure, Life("w1", [*lease(1, 1), *verdict(1.5, 1)]), final={"b": ["ready"]}) == ["half"]


def test_a_message_in_two_places_is_noticed() -> None:
    assert rules(final={"a": ["ready", "leased"]}) == ["twice"]


def test_a_message_that_is_there_after_its_acknowledgement_is_noticed() -> None:
    assert rules(Life("w1", [*lease(1, 1), *verdict(1.5, 1)]), final={"a": ["ready"]}) == ["twice"]


def test_a_run_after_the_lease_of_a_killed_worker_is_explained() -> None:
    killed = Life("w1", lease(1, 1), killed_at=1.2)
    account = check([PUBLISHED, killed, Life("w2", [*lease(2.1, 2, lost=1), *verdict(2.5, 2)])], {}, LEASE)
    assert account.faults == []
    assert account.figures["run again: its process was killed"] == 1


def test_a_run_before_the_former_lease_was_over_is_unexplained() -> None:
    killed = Life("w1", lease(1, 1), killed_at=1.2)
    assert rules(killed, Life("w2", [*lease(1.9, 2, lost=1), *verdict(2.5, 2)])) == ["unexplained"]


def test_a_run_while_the_former_one_extends_its_lease_is_unexplained() -> None:
    first = Life("w1", [*lease(1, 1), Extended(at=1.81, asked=1.8, tokens=[1])])
    assert rules(first, Life("w2", [*lease(2.1, 2, lost=1), *verdict(2.5, 2)])) == ["unexplained"]


def test_a_run_after_a_retry_is_explained_and_has_the_next_attempt() -> None:
    first = Life("w1", [*lease(1, 1), *verdict(1.1, 1, kind="Retry")])
    assert rules(first, Life("w2", [*lease(1.2, 2, attempt=2), *verdict(1.3, 2)])) == []
    assert rules(first, Life("w2", [*lease(1.2, 2), *verdict(1.3, 2)])) == ["unexplained"]


def test_a_release_uses_no_attempt() -> None:
    first = Life("w1", [*lease(1, 1), *verdict(1.1, 1, kind="Release")])
    assert rules(first, Life("w2", [*lease(1.2, 2, attempt=2), *verdict(1.3, 2)])) == ["unexplained"]


def test_two_accepted_acknowledgements_are_noticed() -> None:
    stale = Life("w1", [*lease(1, 1), *verdict(3, 1)], stops=[(1.1, 2.9)])
    assert "stale" in rules(stale, Life("w2", [*lease(2.1, 2, lost=1), *verdict(2.5, 2)]))


def test_a_stale_acknowledgement_that_is_accepted_is_noticed_even_if_it_is_the_only_one() -> None:
    stale = Life("w1", [*lease(1, 1), *verdict(2.5, 1)], stops=[(1.1, 2.4)])
    assert "stale" in rules(stale, Life("w2", [*lease(2.1, 2, lost=1), *verdict(2.6, 2, accepted=False)]))


def test_a_stale_release_that_is_accepted_is_noticed() -> None:
    stale = Life("w1", [*lease(1, 1), *verdict(2.5, 1, kind="Release")], stops=[(1.1, 2.4)])
    assert rules(stale, Life("w2", [*lease(2.1, 2, lost=1), *verdict(2.6, 2)])) == ["stale"]


def test_a_stale_verdict_that_is_refused_is_fine() -> None:
    stale = Life("w1", [*lease(1, 1), *verdict(2.5, 1, accepted=False)], stops=[(1.1, 2.4)])
    account = check([PUBLISHED, stale, Life("w2", [*lease(2.1, 2, lost=1), *verdict(2.6, 2)])], {}, LEASE)
    assert account.faults == []
    assert account.figures["verdicts refused as stale"] == 1


def test_a_good_verdict_that_is_refused_is_noticed() -> None:
    assert rules(Life("w1", [*lease(1, 1), *verdict(1.5, 1, accepted=False)]), final={"a": ["ready"]}) == ["refused"]


def test_an_acknowledgement_of_what_was_not_finished_is_noticed() -> None:
    assert rules(Life("w1", [*lease(1, 1), *verdict(1.5, 1)[1:]])) == ["unearned"]


def test_a_message_nobody_sent_is_noticed() -> None:
    done = Life("w1", [*lease(1, 1), *verdict(1.5, 1)])
    assert rules(done, final={"x": ["ready"]}) == ["stranger"]


def test_what_an_acknowledgement_sends_must_exist() -> None:
    sent = Life("w1", [*lease(1, 1), *verdict(1.5, 1, outbox=("a+",))])
    assert rules(sent, final={"a+": ["ready"]}) == []
    assert rules(sent) == ["lost"]


def test_what_an_unanswered_acknowledgement_sends_exists_if_its_message_is_gone() -> None:
    unsure = Life("w1", [*lease(1, 1), *verdict(1.5, 1, accepted=None, outbox=("a+",))], killed_at=1.6)
    assert rules(unsure, final={"a+": ["ready"]}) == []
    assert rules(unsure, final={"a": ["ready"]}) == []
    assert rules(unsure) == ["lost"]


def test_an_id_that_may_have_been_published_twice_may_end_twice() -> None:
    again = Life("p1", [Proved(at=1.6, existed=[], anew=["a"])])
    twice = [*lease(1, 1), *verdict(1.5, 1), *lease(1.7, 2), *verdict(1.8, 2)]
    assert rules(again, Life("w1", twice)) == []
    existed = Life("p1", [Proved(at=1.6, existed=["a"], anew=[])])
    assert "twice" in rules(existed, Life("w1", twice))
    thrice = [*twice, *lease(1.9, 3), *verdict(2, 3)]
    assert "stale" in rules(again, Life("w1", thrice))


def test_a_claim_just_before_the_server_was_killed_may_be_forgotten() -> None:
    lives = [PUBLISHED, Life("w1", lease(1, 1)), Life("w2", [*lease(1.5, 2), *verdict(1.6, 2)])]
    assert [fault.rule for fault in check(lives, {}, LEASE).faults] == ["unexplained"]
    assert check(lives, {}, LEASE, crashes=[1.2]).faults == []
    assert [fault.rule for fault in check(lives, {}, LEASE, crashes=[1.55]).faults] == ["unexplained"]


def test_what_a_primary_had_not_handed_on_when_it_was_killed_is_told_apart() -> None:
    def account(*lives: Life, killed: float) -> tuple[list[str], dict[str, int]]:
        told = check([PUBLISHED, *lives], {}, LEASE, failovers=[killed])
        lost = {name: count for name, count in told.figures.items() if name.startswith("lost with a primary")}
        return [fault.rule for fault in told.faults], lost

    assert account(killed=0.5) == ([], {"lost with a primary: publishes": 1})
    assert account(killed=1.5) == (["lost"], {})
    twice = Life("w1", [*lease(2, 1), *verdict(2.1, 1), *lease(3, 2), *verdict(3.1, 2)])
    faults, lost = account(twice, killed=2.5)
    assert (faults, set(lost)) == ([], {"lost with a primary: verdicts"})
    assert set(account(twice, killed=1.5)[0]) == {"twice", "stale"}


def worker_in_an_outage(*lines: Line) -> Life:
    """It has its link before the outage, and is there long after."""
    return Life("w1", [Linked(at=0, up=True), *lines, Extended(at=99, asked=99, tokens=[])])


def test_a_worker_says_that_the_server_is_away_once_and_comes_back_with_it() -> None:
    outage, told = Outage(1, 5), Told(at=1.1, text="the server lost its link")
    down, up = Linked(at=1.1, up=False), Linked(at=5.5, up=True)

    def faults(*lines: Line) -> int:
        return len(check_outages([worker_in_an_outage(*lines)], [outage]).faults)

    assert faults(told, down, up) == 0
    assert faults(down, up) == 1
    assert faults(told, down, told, up) == 1
    assert faults(told, up) == 1
    assert faults(told, down) == 1
    assert faults(told, down, *[Told(at=2, text="cannot do this or that")] * 6, up) == 1
    account = check_outages([worker_in_an_outage(told, down, up)], [outage])
    assert account.figures["link after the return, ms: slowest"] == 500


def test_a_worker_whose_link_was_cut_just_before_an_outage_does_not_say_so_again() -> None:
    told, down, up = Told(at=0.99, text="the server lost its link"), Linked(at=1.01, up=False), Linked(at=5.5, up=True)
    assert check_outages([worker_in_an_outage(told, down, up)], [Outage(1, 5)]).faults == []
    again = [Linked(at=0.5, up=False), Linked(at=0.8, up=True)]
    silent = worker_in_an_outage(Told(at=0.49, text=told.text), *again, down, up)
    assert [fault.rule for fault in check_outages([silent], [Outage(1, 5)]).faults] == ["link"]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).write(Intended(at=1, ids=["a"]))
    with path.open("ab") as file:
        file.write(b'{"type":"Confi')
    assert read_journal(path) == [Intended(at=1, ids=["a"])]


@pytest.fixture(scope="module", params=WANTED)
def redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    with running(request.param) as server:
        yield server


def figures_of(plan: Plan, folder: Path, store: Store) -> Counter[str]:
    """What a run told in figures, in which every id is accounted for and everything was done in the end."""
    harness = Harness(plan, folder, store)
    account = harness.run()
    assert (account.faults, harness.troubles) == ([], [])
    figures = account.figures
    assert figures["published, confirmed"] >= plan.jobs
    assert figures["alive at the end"] == 0
    return figures


def hold(plan: Plan, folder: Path, store: Store) -> None:
    """Every id is accounted for, and every step was taken."""
    figures = figures_of(plan, folder, store)
    assert figures["killed"] >= plan.kills
    assert figures["leases recovered from the dead"] > 0
    assert {step for step in plan.steps if not figures[f"at step {step}"]} == set()
    if plan.jobs >= LARGE:
        assert figures["stops"] > 0  # whether a verdict was refused since then depends on where that was


def short(seed: int) -> Plan:
    """The steps at which a server knows what its client does not, or the reverse. Few are leased at once: what a dead worker had is run alone afterwards."""
    return Plan(
        jobs=150,
        kills=5,
        seed=seed,
        steps=ON_THE_WAY,
        rate=100,
        lease=1.0,
        tasks=8,
        strike_every=60,
        time_limit=120,
        drain_time=90,
    )


@pytest.mark.real_time
@linux_only
def test_nothing_is_lost_when_processes_are_killed_and_stopped_at_every_step(tmp_path: Path) -> None:
    plan = Plan(jobs=LARGE, kills=12, seed=SEED, rate=150, time_limit=120, drain_time=90)
    hold(plan, tmp_path, in_file(tmp_path))


@pytest.mark.real_time
@linux_only
def test_nothing_is_lost_in_postgresql_either(tmp_path: Path, postgres: Postgres) -> None:
    with in_postgres(postgres) as store:
        hold(short(SEED), tmp_path, store)


@pytest.mark.real_time
@linux_only
def test_nothing_is_lost_in_redis_either(tmp_path: Path, redis: Redis) -> None:
    with in_redis(redis) as store:
        hold(short(SEED), tmp_path, store)


def harmed(seed: int) -> Plan:
    """Each kind of cut once, and the server killed and stopped; nobody is killed."""
    return Plan(
        jobs=300,
        kills=0,
        cuts=len(CUTS),
        restarts=2,
        seed=seed,
        steps=(),
        rate=100,
        workers=2,
        tasks=8,
        strike_every=1e9,
        time_limit=120,
        drain_time=90,
    )


def bear(plan: Plan, folder: Path, store: Store) -> None:
    """Every id is accounted for although connections and the server failed."""
    figures = figures_of(plan, folder, store)
    assert [figures[f"cut: {kind}"] for kind in CUTS] == [1] * len(CUTS)
    assert (figures["server killed"], figures["server stopped"]) == (1, 1)


@pytest.mark.real_time
@linux_only
def test_nothing_is_lost_when_postgresql_and_the_way_to_it_fail(tmp_path: Path) -> None:
    with running_postgres("embedded") as postgres, in_postgres(postgres) as store:
        bear(harmed(SEED), tmp_path, store)


@pytest.mark.real_time
@linux_only
def test_nothing_is_lost_when_redis_and_the_way_to_it_fail(tmp_path: Path) -> None:
    with embedded("--appendonly", "yes", "--appendfsync", "always") as redis, in_redis(redis) as store:
        bear(harmed(SEED), tmp_path, store)


@pytest.mark.real_time
@linux_only
def test_nothing_is_lost_when_a_replica_takes_over_that_was_waited_for(tmp_path: Path) -> None:
    with in_redis_group(wait_replicas=1) as store:
        figures = figures_of(replace(harmed(SEED), cuts=0), tmp_path, store)
    assert (figures["server killed"], figures["server stopped"]) == (1, 1)


@pytest.mark.real_time
@linux_only
def test_it_is_noticed_when_a_replica_takes_over_although_nobody_ended_its_primary() -> None:
    with group_of_two(wait_replicas=0) as group:
        group.tend()
        group.sentinel.execute("SENTINEL", "FAILOVER", NAME)
        deadline = now() + 20
        while not group.astray and now() < deadline:
            group.tend()
            time.sleep(0.02)
        assert len(group.astray) == 1


@pytest.mark.real_time
@linux_only
def test_no_child_outlives_a_harness_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.crash", "--folder", str(tmp_path), "--jobs", "1000"]
    harness = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = now() + 60
        while not list(tmp_path.glob("w*.jsonl")) and now() < deadline:
            time.sleep(0.02)
    finally:
        harness.kill()
        harness.wait()
    assert list(tmp_path.glob("w*.jsonl")), "no child was ever started"
    deadline = now() + 30
    while children_on(tmp_path) and now() < deadline:
        time.sleep(0.02)
    assert children_on(tmp_path) == []


def children_on(folder: Path) -> list[str]:
    """The processes that have been given orders about this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if b"tests.crash." in command and bytes(folder) in command:
            found.append(process.parent.name)
    return found
