"""A defect that somebody puts into repid is found within few seeds, in the runtime and in the engine."""

from __future__ import annotations

import re

import pytest
from defects import DEFECTS
from seeds_of_defects import PAGE

from repid.testing.simulate import BadHistory, fleet, simulate
from repid.testing.simulate import simulation as module

WITHIN = 30
"""Seeds. Each of these takes fewer; `docs/simulate.md` has the others, which take more than a test should."""

QUICK = (
    "settles_before_the_end",
    "runs_a_delivery_twice",
    "loses_what_a_claim_brought",
    "ignores_concurrency",
    "settles_nothing_after_a_stop",
    "stores_no_results",
    "counts_what_was_not_settled",
    "keeps_what_it_has_settled",
    "snoozes_at_the_cost_of_an_attempt",
    "never_ticks",
    "hears_of_no_new_schedule",
    "ignores_timeouts",
    "accepts_duplicates",
    "accepts_before_it_stores",
    "publishes_backwards",
    "ignores_priorities",
    "hands_out_twice",
    "lies_about_extending",
    "loses_the_outbox",
    "pauses_in_name_only",
    "ticks_twice",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    DEFECTS[name](monkeypatch)
    monkeypatch.setattr(module, "TRIES", 0)  # found is enough here
    with pytest.raises(BadHistory):
        simulate(fleet, range(WITHIN))


@pytest.mark.parametrize("name", sorted(DEFECTS.keys() - set(QUICK)))
def test_a_defect_that_is_not_looked_for_here_can_be_put_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    DEFECTS[name](monkeypatch)


def test_the_table_in_the_documentation_has_every_defect() -> None:
    lines = re.findall(r"^\| ([a-z ]+) \| (?:more than )?\d+ \| (?:more than )?\d+ \|$", PAGE.read_text(), re.MULTILINE)
    assert lines == [name.replace("_", " ") for name in DEFECTS]
