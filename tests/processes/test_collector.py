"""What `run` does to Python's garbage collector."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import pytest

from repid import InMemoryServer, Repid, Router

pytestmark = pytest.mark.real_time

Seen = tuple[int, bool]
Run = Callable[[int], Seen]


def look() -> Seen:
    """The threshold of the youngest, and whether anything is frozen."""
    return gc.get_threshold()[0], gc.get_freeze_count() > 0


@pytest.fixture(autouse=True)
def _nothing_is_frozen() -> Iterator[None]:
    """The suite freezes what it has collected: see `conftest`."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def seen_in_a_run() -> Run:
    app, router, seen = Repid(), Router(), list[Seen]()
    app.servers.register_server("default", InMemoryServer(), is_default=True)

    @router.actor
    async def job() -> None:
        seen.append(look())

    app.include_router(router)

    def run(tasks_limit: int) -> Seen:
        with app.sync() as client:
            client.send_message_json(channel="default", payload={}, headers={"topic": "job"})
        app.run(burst=True, tasks_limit=tasks_limit)
        return seen.pop()

    return run


def test_a_run_that_owns_its_process_spares_the_collector_and_leaves_it_as_it_was(
    seen_in_a_run: Run,
) -> None:
    before = look()
    assert seen_in_a_run(200) == (10_000, True)
    assert look() == before


def test_where_little_runs_at_once_nothing_changes_but_the_freeze(seen_in_a_run: Run) -> None:
    assert seen_in_a_run(10) == (gc.get_threshold()[0], True)


def test_who_has_set_the_collector_higher_or_off_or_frozen_keeps_that(seen_in_a_run: Run) -> None:
    thresholds = gc.get_threshold()
    gc.freeze()
    try:
        for mine in (20_000, 0):
            gc.set_threshold(mine)
            assert seen_in_a_run(200) == (mine, True)
            assert look() == (mine, True)
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def test_a_run_in_another_thread_does_not_touch_it(seen_in_a_run: Run) -> None:
    seen: list[Seen] = []
    thread = threading.Thread(target=lambda: seen.append(seen_in_a_run(200)))
    before = look()
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_limit_that_is_larger_than_any_threshold_is_no_error(seen_in_a_run: Run) -> None:
    threshold, _ = seen_in_a_run(10**9)
    assert threshold == 2**31 - 1
