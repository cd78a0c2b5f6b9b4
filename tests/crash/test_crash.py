"""The short form of the crash run, and the checker held against journals that are wrong on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .checker import Account, Life, check
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
    Settled,
    Settling,
    Started,
    now,
    read_journal,
)
from .steps import PRODUCER_STEPS, WORKER_STEPS

LEASE = 1.0

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


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).write(Intended(at=1, ids=["a"]))
    with path.open("ab") as file:
        file.write(b'{"type":"Confi')
    assert read_journal(path) == [Intended(at=1, ids=["a"])]


def run(plan: Plan, folder: Path) -> tuple[Account, list[str]]:
    harness = Harness(plan, folder)
    return harness.run(), harness.troubles


@pytest.mark.real_time
@pytest.mark.skipif(sys.platform != "linux", reason="children are tied to the harness by prctl")
def test_nothing_is_lost_when_processes_are_killed_and_stopped_at_every_step(tmp_path: Path) -> None:
    seed = int(os.environ.get("REPID_TEST_SEED", "0"))
    plan = Plan(jobs=1500, kills=12, seed=seed, rate=150, time_limit=35, drain_time=12)
    account, troubles = run(plan, tmp_path)
    assert (account.faults, troubles) == ([], [])
    figures = account.figures
    assert figures["published, confirmed"] >= 1500
    assert figures["alive at the end"] == 0
    assert figures["killed"] >= 12
    assert figures["verdicts refused as stale"] > 0
    assert {step for step in (*PRODUCER_STEPS, *WORKER_STEPS) if not figures[f"at step {step}"]} == set()


@pytest.mark.real_time
@pytest.mark.skipif(sys.platform != "linux", reason="children are tied to the harness by prctl")
def test_no_child_outlives_a_harness_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.crash", "--folder", str(tmp_path), "--jobs", "1000"]
    harness = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = now() + 20
        while not list(tmp_path.glob("w*.jsonl")) and now() < deadline:
            time.sleep(0.02)
    finally:
        harness.kill()
        harness.wait()
    assert list(tmp_path.glob("w*.jsonl")), "no child was ever started"
    deadline = now() + 5
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
