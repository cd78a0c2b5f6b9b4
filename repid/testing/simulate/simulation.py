"""Many seeds, one after another; the first history that fails is made small and told."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from .account import Violation
from .fleet import fleet
from .history import History
from .plan import Fault
from .scenario import MakeScenario
from .shrinking import shrink
from .world import Outcome, live

TRIES = 150
"""How many histories making one smaller may take, each for the faults and for the messages."""


class BadHistory(AssertionError):  # noqa: N818  it is what was found
    """A seed whose history breaks a promise. Its text is the timeline; the rest is for programs."""

    def __init__(self, outcome: Outcome, command: str) -> None:
        self.seed: int = outcome.seed
        self.faults: tuple[Fault, ...] = outcome.faults
        self.history: History = outcome.history
        super().__init__(tell(outcome, command))


def simulate(make: MakeScenario = fleet, seeds: Iterable[int] = range(100)) -> None:
    """Live through one history for each seed; raises `BadHistory` for the first that fails, with its timeline.

    What failed is made smaller first: the fewest faults and messages that still fail in the same way. Runs trio itself,
    on a virtual clock, so call it from a function that is not async. One thread of a process may simulate at a time.
    """
    for seed in seeds:
        outcome = live(make, seed)
        if outcome.error is not None:
            small = smaller(make, outcome)
            raise BadHistory(small, command_for(make, small)) from small.error


def search(make: MakeScenario, seeds: Iterable[int]) -> int | None:
    """The first of these seeds whose history fails; None: all are well."""
    return next((seed for seed in seeds if live(make, seed).error is not None), None)


def smaller(make: MakeScenario, outcome: Outcome) -> Outcome:
    """The outcome of this seed with the fewest faults and messages with which the same kind of thing is found."""
    wanted = _kind(outcome)

    def fails(faults: tuple[int, ...], sends: tuple[int, ...]) -> bool:
        return _kind(live(make, outcome.seed, faults, sends)) == wanted

    faults = shrink(outcome.kept, lambda kept: fails(kept, outcome.sends), TRIES)
    sends = shrink(outcome.sends, partial(fails, faults), TRIES)
    return live(make, outcome.seed, faults, sends)


def _kind(outcome: Outcome) -> object:
    """What was found, without the names and numbers of this history."""
    error = _innermost(outcome.error)
    return re.sub(r"\S*\d\S*", "", str(error)) if isinstance(error, Violation) else type(error)


def _innermost(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def command_for(make: MakeScenario, outcome: Outcome) -> str:
    """What to type to see this history again."""
    named = f"{make.__module__}:{make.__qualname__}" if hasattr(make, "__qualname__") else "MODULE:FUNCTION"
    name = "" if make is fleet else f" --scenario {named}"
    faults = ",".join(map(str, outcome.kept)) or "none"
    sends = ",".join(map(str, outcome.sends)) or "none"
    return f"python -m repid.testing.simulate{name} --seeds {outcome.seed} --faults {faults} --messages {sends}"


def tell(outcome: Outcome, command: str) -> str:
    """The timeline of a history, what was found in it, and the command that shows it again."""
    faults = "\n".join(f"  {fault}" for fault in outcome.faults) or "  none"
    found = "nothing was found" if outcome.error is None else _words(outcome.error)
    return (
        f"seed {outcome.seed}: {found}\n\nfaults:\n{faults}\n\n{outcome.history.text()}\n\n"
        f"seed {outcome.seed}: {found}\nto see this again: {command}"
    )


def _words(error: BaseException) -> str:
    error = _innermost(error) or error
    return str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
