"""What a fleet is made of, as a test describes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from random import Random
from typing import Any, Literal, TypeAlias

import msgspec
import trio

from ...actors import Router
from ...worker import WorkerOptions
from .plan import FAULTS, FaultKind
from .runs import Runs


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """One message that a producer sends, `at` so many seconds from the start.

    `actor` is its name and `queue` the queue that it reads; `args` are its parameters by name. `options` are those of
    `Job`: `retries`, `timeout`, `delay`, `ttl`, `priority`, `store_result`. `then`: what a caller does with it afterwards:
    "wait" for its end, "watch" it, or "cancel" it, `after` so many seconds.

    `ends`: how it must end, "success" or "failure", unless somebody cancels it or its ttl passes. `leads_to`: the ids of
    messages that its run sends in the step of its acknowledgement.
    """

    actor: str
    args: Mapping[str, Any] = {}
    queue: str = "default"
    at: float = 0.0
    options: Mapping[str, Any] = {}
    then: Literal["", "wait", "watch", "cancel"] = ""
    after: float = 0.0
    ends: Literal["", "success", "failure"] = ""
    leads_to: Sequence[str] = ()


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet and its work. Actors must be async functions that wait with trio only: threads have no virtual clock.

    routers: the actors. sends: the messages. workers: how many processes run the actors; options: of each worker.
    faults: how many things go wrong, of the `kinds`, within `lasts` seconds. check: called with the
    messages that were sent, when all is quiet; it raises where the actors have done something wrong. lease_timeout: of the engine, in seconds.
    """

    routers: Sequence[Router]
    sends: Sequence[Send]
    workers: int = 2
    options: WorkerOptions = {}
    faults: int = 3
    kinds: Sequence[FaultKind] = FAULTS
    lasts: float = 10.0
    lease_timeout: float = 20.0
    check: Callable[[Sequence[Send]], None] | None = None


MakeScenario: TypeAlias = Callable[[Random], Scenario]
"""Called anew for each history, so that nothing is shared; what it draws from the generator follows from the seed."""

process: ContextVar[str] = ContextVar("process", default="")
"""The process whose task this is."""

note_in: ContextVar[Callable[[str], None]] = ContextVar("note_in")

runs_of: ContextVar[Runs] = ContextVar("runs_of")


def note(text: str) -> None:
    """Write a line into the history, from an actor that runs in a simulated fleet. Elsewhere nothing happens."""
    write = note_in.get(None)
    if write is not None:
        write(text)


@contextmanager
def running(id_: str, actor: str, *, at_most: float = math.inf, decides_early: bool = False) -> Iterator[None]:
    """Around the body of an actor: a run of the message with this id. Runs that no fault explains are violations.

    `at_most`: as many runs of this actor may be under way in one worker. `decides_early`: its verdict may come before its end,
    by a verb or by its confirmation mode; any other actor has ended before the engine hears of it. Outside a simulated fleet nothing is judged.
    """
    runs = runs_of.get(None)
    if runs is None:
        yield
        return
    name = process.get()
    run = runs.begin(id_, actor, name, trio.current_time(), at_most)
    run.decides_early = decides_early
    note(f"runs {id_}")
    try:
        yield
    finally:
        run.ended = trio.current_time()
        note(f"ends {id_}")
