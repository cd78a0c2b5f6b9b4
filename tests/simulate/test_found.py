"""What the simulation has found in repid, each as a small fleet that lives well since it was mended."""

from __future__ import annotations

from random import Random

import trio

from repid import Router
from repid.testing.simulate import Scenario, Send, fleet, running, simulate

router = Router()


@router.actor
async def lasting(n: int, seconds: float = 1.0) -> None:
    with running(f"job-{n}", "lasting"):
        await trio.sleep(seconds)


def of_burst_workers(_: Random) -> Scenario:
    """Workers that end as soon as there is nothing to do are gone before their keepers would look for ended leases."""
    sends = [Send(actor="lasting", args={"n": n}, at=n / 4, ends="success") for n in range(6)]
    return Scenario(routers=[router], sends=sends, options={"burst": True}, kinds=("kill",), lasts=3.0)


def test_burst_workers_take_over_from_one_that_died() -> None:
    simulate(of_burst_workers, range(5))


def of_workers_cut_off(_: Random) -> Scenario:
    """A lease ends while the call that should extend it waits for an answer."""
    sends = [Send(actor="lasting", args={"n": n, "seconds": 20.0}, at=n / 4) for n in range(6)]
    return Scenario(routers=[router], sends=sends, kinds=("partition",), lasts=6.0, lease_timeout=8.0)


def test_a_run_ends_with_its_lease_although_its_worker_waits_for_an_answer() -> None:
    simulate(of_workers_cut_off, range(10, 20))


def test_an_outbox_goes_on_waiting_for_room_after_a_restart() -> None:
    """When the link is back, a worker is the only reader for a moment, and must not think that it waits for itself."""
    simulate(fleet, [2876])
