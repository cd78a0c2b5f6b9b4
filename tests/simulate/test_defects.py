"""A defect that somebody puts into repid is found within few seeds, in the runtime and in the engine."""

from __future__ import annotations

import pytest
from defects import DEFECTS

from repid.testing.simulate import BadHistory, fleet, simulate
from repid.testing.simulate import simulation as module

WITHIN = 30
"""Seeds. Each of these takes one to three; `docs/simulate.md` has the others, which take more than a test should."""

QUICK = (
    "settles_before_the_end",
    "runs_a_delivery_twice",
    "extends_no_lease",
    "retries_nothing",
    "stores_no_results",
    "counts_what_was_not_settled",
    "forgets_consumers_when_the_link_breaks",
    "accepts_before_it_stores",
    "ignores_delays",
    "lies_about_extending",
    "loses_the_outbox",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    DEFECTS[name](monkeypatch)
    monkeypatch.setattr(module, "TRIES", 0)  # found is enough here
    with pytest.raises(BadHistory):
        simulate(fleet, range(WITHIN))
