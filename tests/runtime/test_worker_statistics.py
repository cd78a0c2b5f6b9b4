"""A worker can be asked what it is doing, and what it has done when it has ended."""

from __future__ import annotations

import pytest
import trio
from aids import UnreliableServer, send

from repid import Handle, Message, Repid, Report, Router, UsageError, Worker, catch_all_routing_strategy
from repid.runtime import Control


async def test_a_handle_counts_what_runs_and_what_waits_for_room(app: Repid, router: Router) -> None:
    @router.actor(concurrency=2)
    async def job() -> None:
        await trio.sleep(10)

    @router.actor
    async def other() -> None:
        await trio.sleep(10)

    for actor in ("job", "job", "other"):
        await send(app, actor)
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        now = handle.statistics()
        assert (now.state, now.running, now.held, now.waiting_for_room) == ("running", 3, 0, 0)
        assert now.claimed_bytes == 3 * len(b"{}")
        handle.stop()
        assert handle.statistics().state == "stopping"
    assert handle.statistics().report == handle.report == Report(processed=3, succeeded=3)


async def test_messages_that_wait_for_the_concurrency_of_their_actor_are_counted(app: Repid, router: Router) -> None:
    @router.actor(concurrency=1, routing_strategy=catch_all_routing_strategy)
    async def job() -> None:
        await trio.sleep(10)

    for _ in range(3):
        await send(app, "anything")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(5)
        now = handle.statistics()
        assert (now.running, now.waiting_for_room, now.waiting_for_threads) == (1, 1, 0)
        handle.cut_short()


async def test_verdicts_without_an_answer_and_the_kept_are_counted(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job() -> None: ...

    @router.actor(confirmation_mode="manual")
    async def keeps(message: Message) -> None: ...

    server.hanging.add("settle")
    await send(app, "job")
    await send(app, "keeps")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        now = handle.statistics()
        assert (now.unsettled, now.kept, now.running) == (1, 1, 0)
        server.heal()
        await trio.sleep(1)
        assert handle.statistics().unsettled == 0
        handle.stop()


async def test_the_statistics_show_the_link_to_the_server(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None: ...

    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        assert handle.statistics().link.state == "up"
        handle.stop()


async def test_waiting_on_a_handle_gives_the_report_when_the_worker_has_ended(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None:
        await trio.sleep(5)

    await send(app, "job")
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        handle.stop()
        assert await handle.wait() == Report(processed=1, succeeded=1)
        assert trio.current_time() == started + 5
        assert handle.statistics().state == "ended"
        assert await handle.wait() == handle.report
        handle.stop()  # changes nothing any more


async def test_a_worker_that_is_cancelled_leaves_its_report_with_the_handle(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None:
        await trio.sleep_forever()

    await send(app, "job")
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(app.run_worker)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert handle.report == Report(processed=1, released=1)


async def test_the_handle_of_a_worker_without_actors_has_an_empty_report(app: Repid) -> None:
    async with trio.open_nursery() as nursery:
        handle: Handle = await nursery.start(Worker(app=app).run)
        assert await handle.wait() == Report()


def test_a_handle_of_no_worker_says_how_to_get_one() -> None:
    with pytest.raises(UsageError, match=r"nursery\.start"):
        Control().handle.statistics()
