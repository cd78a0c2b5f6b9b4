"""Histories that one core lives through in a second: `python -m benchmarks.simulating`.

Told by the processor's time, for each seed the best of three turns. `docs/simulate.md` says what a history consists of.
"""

from __future__ import annotations

import time
from random import Random

import trio

from repid import Router
from repid.testing.simulate import MakeScenario, Scenario, Send, fleet
from repid.testing.simulate.world import live

TURNS = 3
SEEDS = range(60)

router = Router()


@router.actor
async def quick(n: int) -> None:
    """Nothing to do."""


@router.actor
async def slow(n: int) -> None:  # noqa: ARG001  which of them it is
    """Wait for something."""
    await trio.sleep(0.5)


def small(chance: Random) -> Scenario:
    """20 jobs within half a second, two workers, three faults, and nobody who looks on."""
    sends = [
        Send(actor=chance.choice(("quick", "slow")), args={"n": n}, at=chance.randint(0, 5) / 10) for n in range(20)
    ]
    return Scenario(routers=[router], sends=sends, lasts=2.0, lease_timeout=8.0, without=["schedules"])


def best_of(make: MakeScenario) -> float:
    """Histories a second."""
    best: dict[int, float] = {}
    for seed in [*SEEDS] * TURNS:
        began = time.process_time()
        live(make, seed)
        best[seed] = min(time.process_time() - began, best.get(seed, 1.0))
    return len(best) / sum(best.values())


def main() -> None:
    """Print both."""
    for name, make in (("a small world", small), ("repid's own fleet", fleet)):
        print(f"{name}: {best_of(make):.0f} histories a second")


if __name__ == "__main__":
    main()
