"""What a fleet is made of, as a test describes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from random import Random
from typing import Any, Literal, TypeAlias

import msgspec
import trio

from ...actors import Router
from ...delivery import Bounds
from ...ports import Role
from ...worker import WorkerOptions
from .plan import FAULTS, FaultKind
from .runs import RunRules, Runs


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """One message that a producer sends; `at`: when, in seconds from the start.

    `actor` is its name and `queue` the queue that it reads; `args` are its parameters by name. `options` are those of
    `Job`: `retries`, `timeout`, `delay`, `ttl`, `priority`, `store_result`. `then`: what a caller does with it
    afterwards: "wait" for its end, "watch" it, "cancel" it, or send it "again" under the same id; `after`: how
    many seconds later.

    `ends`: how it must end, "success" or "failure", unless somebody cancels or removes it or its ttl passes.
    `leads_to`: the ids of messages that its run sends in the step of its acknowledgement; `never`: of those that must
    not be sent.
    """

    actor: str
    args: Mapping[str, Any] = {}
    queue: str = "default"
    at: float = 0.0
    options: Mapping[str, Any] = {}
    then: Literal["", "wait", "watch", "cancel", "again"] = ""
    after: float = 0.0
    ends: Literal["", "success", "failure"] = ""
    leads_to: Sequence[str] = ()
    never: Sequence[str] = ()


class Recurring(msgspec.Struct, frozen=True, kw_only=True):
    """A recurring job that a producer declares and removes; `at`, `until`: when, in seconds from the start; `every`:
    the seconds from one tick to the next.

    `pause_at`: when it is paused, for a second and a half. `options`: `overlap`, `missed`, and those of `Send`.
    """

    actor: str
    args: Mapping[str, Any] = {}
    queue: str = "default"
    at: float = 0.0
    until: float = 8.0
    every: float = 1.0
    pause_at: float | None = None
    options: Mapping[str, Any] = {}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody does to a queue; `at`: when, in seconds from the start.

    "pause" it for `seconds`; "requeue" its dead messages; "delete_dead" to remove them; "flush" what waits in
    it.
    """

    kind: Literal["pause", "requeue", "delete_dead", "flush"]
    queue: str = "default"
    at: float = 0.0
    seconds: float = 2.0


Step: TypeAlias = Send | Recurring | Operation


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet and its work. Actors must be async functions that wait with trio only: threads have no virtual clock.

    routers: the actors; later: those of the version that a deploy brings, if that is another one. sends: the messages,
    and what else is done from outside. workers: how many processes run the actors; options: of each worker. faults: how
    many things go wrong, of the `kinds`, within `lasts` seconds. check: called with the messages that were sent, when
    all is quiet; it raises where the actors have done something wrong. lease_timeout: of the engine, in seconds.
    latency: about how many seconds pass on each way between a process and the engine; some calls overtake others then.
    without: roles that the engine does not have; without "schedules" a history is quicker. bounds: of queues, which the
    producer stores before it sends; what has no room where `when_full="raise"` is not sent again.
    """

    routers: Sequence[Router]
    sends: Sequence[Step]
    later: Sequence[Router] = ()
    workers: int = 2
    options: WorkerOptions = {}
    faults: int = 3
    kinds: Sequence[FaultKind] = FAULTS
    lasts: float = 10.0
    lease_timeout: float = 20.0
    latency: float = 0.0
    without: Collection[Role] = ()
    bounds: Mapping[str, Bounds] = {}
    check: Callable[[list[Send]], None] | None = None


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


PLAIN = RunRules()


@contextmanager
def running(id_: str, actor: str, rules: RunRules = PLAIN) -> Iterator[None]:
    """Around the body of an actor: a run of the message with this id. Runs that no fault explains are violations.

    `rules`: what else holds for the runs of this actor. Outside a simulated fleet nothing is judged.
    """
    runs = runs_of.get(None)
    if runs is None:
        yield
        return
    run = runs.begin(id_, actor, process.get(), trio.current_time(), rules)
    note(f"runs {id_}")
    try:
        yield
    finally:
        runs.end(run, trio.current_time())
        note(f"ends {id_}")
