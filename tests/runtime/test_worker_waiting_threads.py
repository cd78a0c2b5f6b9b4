"""Sync actors that wait for jobs in their threads are told when no thread is left for these. Real time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

import pytest
import trio

from repid import Connection, Depends, InMemoryServer, Job, Repid, Router

pytestmark = pytest.mark.real_time

Wait = Callable[[Repid], object]


def wait_with_client(app: Repid) -> object:
    with app.sync() as client:
        return client.wait(Job("child", id_="c", app=app), timeout=0.2)


def call_with_client(app: Repid) -> object:
    handle = Job("child", id_="c", app=app)
    with app.sync() as client:
        return client.run(lambda: handle.wait_as(int, timeout=0.2))


def wait_in_trio(app: Repid) -> object:
    return trio.from_thread.run(Job("child", id_="c", app=app).wait, 0.2)


async def warnings_of(
    caplog: pytest.LogCaptureFixture, declare: Callable[[Repid, Router], None], parents: int = 1, **options: Any
) -> list[str]:
    """What a worker with these actors warns of, while so many parents wait for one child."""
    app, router = Repid(Connection(InMemoryServer())), Router()
    declare(app, router)
    app.include_router(router)
    async with app.magic():
        await app.server().declare(["default"])
        for _ in range(parents):
            await Job("parent").enqueue()
        await Job("child", id_="c").enqueue()
        with caplog.at_level(logging.WARNING, "repid.worker"):
            await app.run_worker(burst=True, handle_signals=[], **options)
    return [record.getMessage() for record in caplog.records if "threads_limit" in record.getMessage()]


def declare_parent(app: Repid, router: Router, wait: Wait) -> None:
    @router.actor
    def parent() -> None:
        try:
            wait(app)
        except TimeoutError:
            return


def declare_child(router: Router) -> None:
    @router.actor(store_result=True)
    def child() -> int:
        return 1


@pytest.mark.parametrize("wait", [wait_with_client, call_with_client, wait_in_trio])
async def test_an_actor_that_waits_for_a_job_without_a_thread_for_it_is_named(
    caplog: pytest.LogCaptureFixture, wait: Wait
) -> None:
    def declare(app: Repid, router: Router) -> None:
        declare_parent(app, router, wait)
        declare_child(router)

    found = await warnings_of(caplog, declare, parents=5, threads_limit=2)
    assert len(found) == 1  # once, however many wait
    assert found[0].startswith(
        "actor 'parent' waits for job 'c' of actor 'child', which needs a thread as well, but all "
    )
    assert "(threads_limit=2)" in found[0]


async def test_where_a_thread_is_left_or_the_job_needs_none_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def with_sync_child(app: Repid, router: Router) -> None:
        declare_parent(app, router, wait_with_client)
        declare_child(router)

    def with_async_child(app: Repid, router: Router) -> None:
        declare_parent(app, router, wait_with_client)

        @router.actor(store_result=True)
        async def child() -> int:
            return 1

    def with_child_elsewhere(app: Repid, router: Router) -> None:
        declare_parent(app, router, wait_with_client)

    def with_async_parent(app: Repid, router: Router) -> None:
        @router.actor
        async def parent() -> None:
            assert (await Job("child", id_="c", app=app).wait(timeout=30)).value == 1

        declare_child(router)

    assert await warnings_of(caplog, with_sync_child, threads_limit=2) == []
    assert await warnings_of(caplog, with_async_child, threads_limit=1) == []
    assert await warnings_of(caplog, with_async_parent, threads_limit=1) == []
    with trio.move_on_after(1):
        assert await warnings_of(caplog, with_child_elsewhere, threads_limit=1) == []
    assert not [record for record in caplog.records if "threads_limit" in record.getMessage()]


async def test_an_actor_with_dependencies_is_named_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    def declare(app: Repid, router: Router) -> None:
        @router.actor(name="parent")
        def in_a_thread(_: Annotated[None, Depends(lambda: None)]) -> None:
            with pytest.raises(TimeoutError):
                wait_with_client(app)

        declare_child(router)

    [found] = await warnings_of(caplog, declare, threads_limit=1)
    assert found.startswith("actor 'parent' waits")
