"""The counts of the ledger are those of its holdings, whatever happens to them in whatever order."""

from __future__ import annotations

import math

from aids import run_virtual
from hypothesis import given
from hypothesis import strategies as st

from repid import Envelope, Router
from repid.delivery import ACK, Delivery, Settlement
from repid.ports import REFUSED, SETTLED, UNKNOWN, Verdict
from repid.runtime.actor_runners import ActorRunners
from repid.runtime.backends import Backends, ThreadBackend
from repid.runtime.holding import Holding, State
from repid.runtime.ledger import Ledger

router = Router(queue="q")


@router.actor(concurrency=3)
async def job() -> None: ...


def step(ledger: Ledger, holding: Holding, what: str) -> None:
    """Make the transition, if the present state allows it."""
    limit = holding.actor_runner.limits[0]
    match what, holding.state:
        case "park", State.HELD:
            ledger.park(holding, limit)
        case "unpark", State.PARKED:
            ledger.unpark(holding)
        case "turn away", State.HELD:
            ledger.turn_away(holding)
        case "begin", State.HELD:
            ledger.begin(holding, holding.actor_runner)
        case "end", State.RUNNING:
            ledger.end(holding, holding.actor_runner)
        case "keep", State.RUNNING if not holding.is_kept:
            ledger.keep(holding)
        case "take up", _:
            ledger.take_up(holding)
        case "lose", _:
            ledger.lost(holding)
        case "settle", _ if not holding.has_verdict:
            ledger.handed_over(holding)


def check(ledger: Ledger, holdings: list[Holding]) -> None:
    states = [holding.state for holding in holdings]
    ours = [holding for holding in holdings if holding.is_ours]
    assert [ledger.held, ledger.parked, ledger.running] == [
        states.count(state) for state in (State.HELD, State.PARKED, State.RUNNING)
    ]
    assert list(ledger.holdings.values()) == ours
    assert ledger.kept == sum(holding.is_kept for holding in ours)
    assert ledger.size == sum(len(holding.delivery.envelope.payload) for holding in ours)
    limit = holdings[0].actor_runner.limits[0]
    assert limit.claimed == len(holdings) - states.count(State.ENDED)
    assert limit.busy == states.count(State.RUNNING)
    assert len(limit.parked) == states.count(State.PARKED)


STEPS = ("park", "unpark", "turn away", "begin", "end", "keep", "take up", "lose", "settle")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(STEPS)), max_size=40),
    st.sampled_from([SETTLED, REFUSED, UNKNOWN]),
)
def test_the_counts_are_those_of_the_holdings_after_every_transition(
    steps: list[tuple[int, str]], verdict: Verdict
) -> None:
    async def main() -> None:
        runners = ActorRunners(router.actors(), Backends(ThreadBackend(1), None), 10)
        ledger = Ledger(10, math.inf)
        deliveries = [Delivery(Envelope(str(n), "q", b"x" * n, headers={"topic": "job"}), 1, 0, n) for n in range(4)]
        holdings = ledger.lease(deliveries, runners.runners_for(deliveries), 0.0, 60.0)
        for index, what in steps:
            step(ledger, holdings[index], what)
            check(ledger, holdings)
        for holding in holdings:
            if not holding.has_verdict:
                ledger.handed_over(holding)
            ledger.settled([Settlement(holding.delivery, ACK)], [verdict])
        check(ledger, holdings)
        assert ledger.holdings == {}
        assert ledger.unsettled == 0

    run_virtual(main)


def test_each_cancellation_of_what_the_largest_claim_may_bring_is_remembered_until_it_comes() -> None:
    async def main() -> None:
        runners = ActorRunners(router.actors(), Backends(ThreadBackend(1), None), 10)
        ledger = Ledger(10, math.inf)
        deliveries = [Delivery(Envelope(str(n), "q", b"", headers={"topic": "job"}), 1, 0, n) for n in range(40)]
        for delivery in deliveries:
            ledger.cancelled_before_arrival(delivery.token)
        holdings = ledger.lease(deliveries, runners.runners_for(deliveries), 0.0, 60.0)
        assert all(holding.is_cancelled for holding in holdings)

    run_virtual(main)
