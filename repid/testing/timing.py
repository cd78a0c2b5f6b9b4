"""How time passes for the broker under test."""

from __future__ import annotations

from typing import Protocol

import trio
from trio.testing import MockClock


class Clock(Protocol):
    """Moves the time of a broker that does not follow trio's clock, for tests."""

    def advance(self, seconds: float) -> None:
        """Let this much time pass, for every clock that the broker reads."""
        ...

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or, below 0, back. No time passes."""
        ...


class Skipped(Exception):  # noqa: N818  no error
    """A check cannot be made on this broker; the text says why."""


class Time:
    """The broker's time: a clock that is moved by order, trio's virtual clock, or real time in short steps.

    `jumps`: passing time costs nothing. `cushion`: how long nothing must happen until all tasks count as waiting.
    `patience`: how soon "soon" is. `limit`: how long one check may take. In seconds of trio's clock.
    """

    def __init__(self, clock: Clock | None) -> None:
        virtual = clock is None and isinstance(trio.lowlevel.current_clock(), MockClock)
        self.clock = clock
        self.jumps = virtual or clock is not None
        self.moment = 1.0 if self.jumps else 0.1
        self.cushion = 0.0 if virtual else 0.02
        self.patience = 5.0
        self.limit = 1e6 if virtual else 60.0

    async def advance(self, seconds: float) -> None:
        """Let so much of the broker's time pass."""
        if self.clock is None:
            await trio.sleep(seconds)
        else:
            self.clock.advance(seconds)
            await trio.lowlevel.checkpoint()

    def step_wall(self, seconds: float) -> None:
        """Step the wall clock."""
        assert self.clock is not None
        self.clock.step_wall(seconds)

    def bearable(self, lease_timeout: float) -> float:
        """The same lease time-out. Raises `Skipped` if it is too long to wait for."""
        if not self.jumps and lease_timeout > 5:
            raise Skipped(
                f"leases of {lease_timeout} s outlast our patience: open the broker with at most 5, or a clock"
            )
        return lease_timeout
