"""What a fleet is made of, as a test describes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from random import Random
from typing import Any, TypeAlias

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
    wait for its end, watch it, or cancel it some time after it was sent.
    """

    actor: str
    args: Mapping[str, Any] = {}
    queue: str = "default"
    at: float = 0.0
    options: Mapping[str, Any] = {}
    then: str = ""
    after: float = 0.0


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
def running(id_: str, actor: str, *, at_most: float = math.inf) -> Iterator[None]:
    """Around the body of an actor: a run of the message with this id. Runs that no fault explains are violations.

    `at_most`: as many runs of this actor may be under way in one worker. Outside a simulated fleet nothing is judged.
    """
    runs = runs_of.get(None)
    if runs is None:
        yield
        return
    name = process.get()
    run = runs.begin(id_, actor, name, trio.current_time(), at_most)
    note(f"runs {id_}")
    try:
        yield
    finally:
        run.ended = trio.current_time()
        note(f"ends {id_}")
