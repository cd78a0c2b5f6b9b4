from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from repid import (
    Connection,
    InMemoryServer,
    Job,
    Message,
    PayloadError,
    Queue,
    Repid,
    Result,
    ResultError,
    Router,
    UsageError,
    Worker,
)


def working(*functions: Callable[..., Any], **options: Any) -> Worker:
    router = Router(**options)
    for function in functions:
        router.actor(function)
    return Worker(routers=[router], burst=True)


async def double(x: int) -> int:
    return 2 * x


async def fail(x: int) -> None:
    raise ValueError(f"{x} is too much")


async def test_the_result_of_a_job_is_none_until_there_is_one(app: Repid) -> None:
    job = Job("double", args={"x": 4}, store_result=True)
    handle = await job.enqueue()
    assert await job.result is None
    assert await handle.result is None
    await working(double).run()
    result = await job.result
    assert result is not None
    assert (result.state, result.value, result.is_success) == ("success", 8, True)
    again = await handle.result_as(int)
    assert again is not None
    assert again.value == 8


async def test_an_actor_may_store_results_for_jobs_that_say_nothing(app: Repid) -> None:
    handle = await Job("double", args={"x": 1}).enqueue()
    refusing = await Job("double", args={"x": 1}, store_result=False).enqueue()
    await working(double, store_result=True).run()
    assert (await handle.wait()).value == 2
    assert await refusing.result is None


async def test_a_failure_is_stored_with_type_text_and_traceback(app: Repid) -> None:
    handle = await Job("fail", args={"x": 3}, store_result=True).enqueue()
    await working(fail).run()
    result = await handle.wait()
    assert result.state == "failure"
    assert result.failure is not None
    assert (result.failure.type, result.failure.text) == ("ValueError", "3 is too much")
    assert "in fail" in result.failure.traceback
    with pytest.raises(ResultError, match="ValueError: 3 is too much"):
        _ = result.value
    assert repr(result) == f"<Result {handle.id!r}: failure, ValueError: '3 is too much'>"


async def test_nothing_is_stored_while_retries_are_left(app: Repid) -> None:
    handle = await Job("fail", args={"x": 3}, store_result=True, retries=1).enqueue()
    await working(fail).run()
    assert await handle.result is None


async def test_a_payload_that_does_not_fit_fails_the_job(app: Repid) -> None:
    handle = await Job("double", args={"x": "four"}, store_result=True).enqueue()
    await working(double).run()
    result = await handle.wait()
    assert result.state == "failure"
    assert result.failure is not None
    assert "$.x" in result.failure.text


async def test_a_return_value_that_cannot_be_encoded_fails_the_job_and_its_outbox(app: Repid) -> None:
    async def odd(message: Message) -> object:
        await message.outbox.send_message_json(channel="default", headers={"topic": "never"})
        return object()

    handle = await Job("odd", store_result=True).enqueue()
    await working(odd).run()
    result = await handle.wait()
    assert result.failure is not None
    assert (result.state, result.failure.type) == ("failure", "PayloadError")
    assert result.failure.text.startswith("the result cannot be stored: cannot encode a value of type object as JSON")
    assert (await Queue().counts()).ready == 0
    assert (await Queue().counts()).dead == 1


async def test_a_number_that_json_does_not_have_is_refused_in_arguments_and_fails_as_a_result(app: Repid) -> None:
    async def mean() -> dict[str, float]:
        return {"mean": math.nan}

    with pytest.raises(PayloadError, match=r"\$\.x: inf is a number that JSON does not have"):
        Job("double", args={"x": math.inf})
    handle = await Job("mean", store_result=True).enqueue()
    await working(mean).run()
    result = await handle.wait()
    assert result.state == "failure"
    assert result.failure is not None
    assert "$.mean: nan is a number that JSON does not have" in result.failure.text


async def test_a_result_is_typed(app: Repid) -> None:
    @dataclass
    class Size:
        width: int

    async def measure() -> Size:
        return Size(3)

    job = Job("measure", store_result=True)
    await job.enqueue()
    await working(measure).run()
    result: Result[Size] | None = await job.result_as(Size)
    assert result is not None
    assert result.value == Size(3)
    wrong = await job.result_as(int)
    assert wrong is not None
    with pytest.raises(
        ResultError, match=r"not what was asked for \(that is what its actor is annotated to return, unless wait_as"
    ):
        _ = wrong.value


async def test_a_result_is_forgotten_after_its_ttl(app: Repid) -> None:
    handle = await Job("double", args={"x": 1}, store_result=True, result_ttl=10).enqueue()
    await working(double).run()
    await trio.sleep(9)
    assert await handle.result is not None
    await trio.sleep(2)
    assert await handle.result is None


async def test_a_result_may_have_an_id_of_its_own(app: Repid) -> None:
    await Job("double", args={"x": 1}, store_result=True, result_id="mine").enqueue()
    await working(double).run()
    result = await Job("double", id_="x", result_id="mine").result
    assert result is not None
    assert (result.id, result.value) == ("mine", 2)


async def test_the_result_of_a_unique_job_is_found_by_its_id(app: Repid) -> None:
    await Job("double", args={"x": 1}, id_="one", store_result=True).enqueue()
    await working(double).run()
    result = await Job("double", id_="one").result
    assert result is not None
    assert result.value == 2


async def test_enqueueing_a_unique_job_again_removes_the_old_result(app: Repid) -> None:
    job = Job("double", args={"x": 1}, id_="one", store_result=True)
    await job.enqueue()
    await working(double).run()
    await job.enqueue()
    assert await job.result is None


async def test_a_job_that_was_never_enqueued_has_nothing_to_ask_about(app: Repid) -> None:
    with pytest.raises(UsageError, match="not enqueued yet"):
        await Job("double").result


async def test_waiting_for_a_job_that_stores_nothing_says_so(app: Repid) -> None:
    handle = await Job("double", args={"x": 1}).enqueue()
    await working(double).run()
    with pytest.raises(ResultError, match="store_result=True"):
        await handle.wait()


async def test_waiting_ends_when_the_job_does(app: Repid) -> None:
    async def slow() -> str:
        await trio.sleep(5)
        return "done"

    handle = await Job("slow", store_result=True).enqueue()
    worker = working(slow)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        assert (await handle.wait()).value == "done"
    assert trio.current_time() - began == pytest.approx(5)


async def test_an_expired_job_says_so(app: Repid) -> None:
    handle = await Job("double", args={"x": 1}, ttl=1, store_result=True).enqueue()
    await trio.sleep(2)
    await working(double).run()
    assert (await handle.wait()).state == "expired"


async def test_looking_at_a_result_without_awaiting_it_leaves_nothing_behind(app: Repid) -> None:
    job = Job("double", id_="one")
    assert "await it" in repr(job.result)
    hooked: list[object] = []
    old, sys.unraisablehook = sys.unraisablehook, hooked.append
    try:
        _ = [getattr(job, name) for name in dir(job) if not name.startswith("_")]
    finally:
        sys.unraisablehook = old
    assert hooked == []


async def test_progress_is_seen_by_whoever_watches(app: Repid) -> None:
    async def count(message: Message) -> None:
        for done in range(1000):
            await message.progress(done, 1000, "counting")
        await trio.sleep(1)
        await message.progress(1000, 1000, "counted")
        await trio.sleep(1)

    job = Job("count", store_result=True)
    await job.enqueue()
    worker = working(count)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        seen = [(status.state, status.done, status.note) async for status in job.watch()]
    assert seen[-1][0] == "success"
    assert ("running", 999, "counting") in seen
    assert ("running", 1000, "counted") in seen
    assert len(seen) < 10  # a thousand reports were coalesced


async def test_results_may_live_on_another_server(autojump_clock: trio.testing.MockClock) -> None:
    store = InMemoryServer()
    app = Repid(Connection(InMemoryServer()), result_store=store)
    async with store.connection(), app.magic():
        await Queue().declare()
        handle = await Job("double", args={"x": 2}, store_result=True).enqueue()
        await working(double).run()
        result = await handle.result
        assert result is not None
        assert result.value == 4
        assert (await store.fetch_results([handle.id]))[0] is not None


async def test_cancelling_a_waiting_job_removes_it(app: Repid) -> None:
    handle = await Job("double", args={"x": 1}, store_result=True).enqueue()
    assert await handle.cancel() is True
    assert await handle.cancel() is False
    assert (await handle.wait()).state == "cancelled"
    assert (await working(double).run()).processed == 0


async def test_cancelling_a_running_job_cancels_its_actor(app: Repid) -> None:
    ended: list[str] = []

    async def hang() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    job = Job("hang", store_result=True, retries=5)
    await job.enqueue()
    reports = []
    async with trio.open_nursery() as nursery:

        async def work() -> None:
            reports.append(await working(hang).run())

        nursery.start_soon(work)
        await trio.sleep(1)
        assert await job.cancel() is True
        async for status in job.watch():
            last = status.state
    assert (ended, last, reports[0].cancelled) == (["cancelled"], "cancelled", 1)


async def test_a_paused_queue_gives_nothing_to_any_worker(app: Repid) -> None:
    await Queue().pause()
    await Job("double", args={"x": 1}).enqueue()
    assert (await working(double).run()).processed == 0
    assert (await Queue().counts()).paused is True
    await Queue().resume()
    assert (await working(double).run()).processed == 1


async def test_a_value_that_comes_after_the_acknowledgement_is_not_kept_and_the_error_says_so(app: Repid) -> None:
    async def count(message: Message) -> int:
        await message.ack()
        return 3

    handle = await Job("count", store_result=True).enqueue()
    await working(count).run()
    result = await handle.wait_as(int)
    assert result.is_success
    with pytest.raises(ResultError, match=r"what an actor returns after message\.ack\(\) or a reply is not in it"):
        _ = result.value
