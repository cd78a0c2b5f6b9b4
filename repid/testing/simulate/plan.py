"""What goes wrong in one history, and when. Pure: a plan is data that is drawn from a seed, shown, and made smaller."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal, TypeAlias, get_args

import msgspec

CallFault: TypeAlias = Literal["lose_request", "lose_answer", "late_request", "slow_request", "slow_answer"]
"""lose_request: the engine never sees the next such call. lose_answer: the engine does the work, and its answer is
lost. late_request: the caller is told that the link broke, and the engine does the work some time later. slow_request,
slow_answer: that way takes long, so calls overtake each other, or the caller stops waiting.
"""

ProcessFault: TypeAlias = Literal["partition", "slow", "kill", "freeze", "deploy"]
"""partition: nothing passes between the process and the engine. slow: every call takes long. kill: the process is gone
without a settlement, and starts again later. freeze: no task of the process runs for some time. deploy: the process is
stopped gracefully and another one starts."""

WorldFault: TypeAlias = Literal["restart", "step_clock", "step_engine_clock"]
"""restart: the engine is away for some time; links break, leases stay. step_clock, step_engine_clock: the
wall clock of all processes, or of the engine, jumps."""

FaultKind: TypeAlias = CallFault | ProcessFault | WorldFault

CALL_FAULTS: tuple[CallFault, ...] = get_args(CallFault)
PROCESS_FAULTS: tuple[ProcessFault, ...] = get_args(ProcessFault)
WORLD_FAULTS: tuple[WorldFault, ...] = get_args(WorldFault)
FAULTS: tuple[FaultKind, ...] = (*CALL_FAULTS, *PROCESS_FAULTS, *WORLD_FAULTS)

CALLS = ("settle", "claim", "extend", "publish", "settle", "claim", "publish", "rescue", "subscribe", "snapshots")
"""The calls that faults choose from; those that matter most come twice."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong `at` this moment, in seconds from the start of the history.

    `process`: the one it strikes; empty for the engine or the clock. `call`: the name of the driver's call that is
    struck, the first one from that moment on. `seconds`: how long it lasts; for a call 0 means that the link breaks at
    once, and more that nothing is heard.
    """

    kind: FaultKind
    at: float
    process: str = ""
    call: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        whom = self.process or "the world"
        call = f" {self.call}" if self.call else ""
        lasting = f" for {self.seconds:g} s" if self.seconds else ""
        return f"{self.at:.3f} {self.kind}{call} of {whom}{lasting}"


class Stage(msgspec.Struct, frozen=True):
    """What faults can strike: the names of the workers and of the other processes, and the seconds that it lasts."""

    workers: Sequence[str]
    others: Sequence[str]
    lasts: float
    lease_timeout: float


def draw_plan(chance: Random, stage: Stage, kinds: Sequence[FaultKind], count: int) -> tuple[Fault, ...]:
    """`count` faults of these kinds, in the order of their moments."""
    drawn = [_draw(chance, stage, chance.choice(kinds)) for _ in range(count)]
    return tuple(sorted(drawn, key=lambda fault: fault.at))


def _draw(chance: Random, stage: Stage, kind: FaultKind) -> Fault:
    at = round(chance.uniform(0, stage.lasts), 3)
    if kind in WORLD_FAULTS:
        seconds = chance.choice((-3600.0, -10.0, 10.0, 3600.0)) if "clock" in kind else chance.choice((0.5, 3.0, 8.0))
        return Fault(kind=kind, at=at, seconds=seconds)
    if kind in CALL_FAULTS:
        process, call = _draw_call(chance, stage)
        return Fault(kind=kind, at=at, process=process, call=call, seconds=_call_time(chance, kind))
    seconds = {
        "partition": stage.lease_timeout * chance.choice((0.2, 0.9, 1.1, 1.3, 1.5)),
        "slow": stage.lease_timeout * chance.choice((0.5, 1.5)),
        "kill": chance.choice((0.1, 2.0, stage.lease_timeout)),
        "freeze": stage.lease_timeout * chance.choice((0.3, 0.9, 1.1, 2.0)),
    }.get(kind, 0.0)
    return Fault(kind=kind, at=at, process=chance.choice(stage.workers), seconds=round(seconds, 3))


def _draw_call(chance: Random, stage: Stage) -> tuple[str, str]:
    call = chance.choice(CALLS)
    if call in {"publish", "snapshots"} and stage.others:
        return chance.choice(stage.others), call
    return chance.choice(stage.workers), call


def _call_time(chance: Random, kind: FaultKind) -> float:
    if kind in {"lose_request", "lose_answer"}:
        return chance.choice((0.0, 60.0))
    return round(chance.choice((0.05, 1.0, 4.9, 7.0)) * chance.uniform(0.9, 1.1), 3)
