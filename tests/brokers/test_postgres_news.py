"""How a process says that it waits for news of PostgreSQL, without a server."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from repid.brokers.postgres.binding import Step
from repid.brokers.postgres.news import CHECK, NewsBox


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


async def test_who_is_woken_before_the_answer_that_it_is_asleep_says_so_again_at_once(
    autojump_clock: MockClock,
) -> None:
    answers: list[Step] = []

    async def ask(step: Step) -> list[tuple[int]]:
        await trio.sleep(0.001)
        answers.append(step)
        if len(answers) == 1:  # a publisher has removed the row, and its notification comes on another connection
            box.woken()
        return []

    box = NewsBox(1, "channel", set(), ask, listens=True)
    await box.next()
    with trio.fail_after(CHECK / 2):
        await box.next()
    assert len(answers) == 2
    with trio.move_on_after(CHECK / 2):
        await box.next()
    assert len(answers) == 2
