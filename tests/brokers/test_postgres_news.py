"""How a process says that it waits for news of PostgreSQL, without a server."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from repid.brokers.postgres.binding import Step
from repid.brokers.postgres.news import NewsBox


@pytest.mark.parametrize(("listens", "asked"), [(True, 1), (False, 2)], ids=["falling asleep", "polling"])
async def test_a_wait_that_is_cancelled_cuts_off_no_request_which_would_cost_the_connection(
    autojump_clock: MockClock, listens: bool, asked: int
) -> None:
    answers: list[Step] = []

    async def ask(step: Step) -> list[tuple[int]]:
        if len(answers) + 1 == asked:
            wait.cancel()
        await trio.sleep(1)
        answers.append(step)
        return [(1,)]

    box = NewsBox(1, "channel", set(), ask, listens=listens)
    with trio.CancelScope() as wait:
        while True:
            await box.next()
    assert len(answers) == asked
