"""What a check is, and how it says what differed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from ..errors import made_again
from .expecting import differences
from .lab import Lab

Need: TypeAlias = str
"""What a check cannot do without. `name` or `name=value`: a capability that the server claims ("ttl", "leases=timed");
the name of a role; a clock that jumps ("clock") or can be stepped ("wall_clock"); a second client of the same storage
("another"); a way to cut the link ("cut"). "not" before it: the server must not claim it ("not queue_admin")."""


class BrokerFailure(AssertionError):  # noqa: N818  named for what happened, as in repid.errors
    """One check failed. `check` is its name; `expected` and `actual` are None where the broker raised instead."""

    def __init__(self, check: Check, error: BaseException) -> None:
        difference = next(differences(error), None)
        self.check = check.name
        leaf = _leaf(error)
        self.what = difference.what if difference else f"{type(leaf).__name__}: {leaf}"
        self.expected = difference.expected if difference else None
        self.actual = difference.actual if difference else None
        super().__init__(f"{check.name} ({check.sentence})\n  {difference or self.what}")

    def __reduce__(self) -> tuple[Callable[..., BrokerFailure], tuple[Any, ...], dict[str, Any]]:
        return made_again, (type(self), *self.args), self.__dict__


class Check(msgspec.Struct, frozen=True):
    """One promise of the broker port, and the function that tries a broker for it."""

    name: str
    sentence: str
    needs: frozenset[Need]
    function: Callable[[Lab], Awaitable[None]]

    async def __call__(self, lab: Lab) -> None:
        """Raise where the lab's broker breaks the promise."""
        await self.function(lab)

    def __str__(self) -> str:
        return self.name


def check(*needs: Need) -> Callable[[Callable[[Lab], Awaitable[None]]], Check]:
    """Make a check of a function: its name is the check's, its docstring the sentence."""

    def make(function: Callable[[Lab], Awaitable[None]]) -> Check:
        sentence = " ".join((function.__doc__ or "").split())
        return Check(function.__name__, sentence, frozenset(needs), function)

    return make


def _leaf(error: BaseException) -> BaseException:
    """The error itself, or the first one of a group."""
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
