"""What people who know other libraries write first: the error says how it is done here. A sentence each."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from repid import ConfigurationError, Job, JobHandle, PayloadError, Repid, Router, UsageError, Worker


async def add(a: int, b: int = 1) -> int:
    return a + b


@pytest.fixture
async def handle(app: Repid, router: Router) -> JobHandle[int]:
    router.actor(store_result=True)(add)
    return await app.enqueue(add, 1)


async def the_handle(handle: JobHandle[int]) -> Any:
    return handle


async def a_job(_: JobHandle[int]) -> Any:
    job = Job("add", args={"a": 1}, store_result=True)
    await job.enqueue()
    return job


@pytest.mark.parametrize("make", [the_handle, a_job])
async def test_a_result_that_is_called_or_not_awaited_says_how_it_is_had(
    make: Callable[[Any], Awaitable[Any]], handle: JobHandle[int], app: Repid
) -> None:
    it = await make(handle)
    with pytest.raises(UsageError, match=r"result is not called, but awaited: `await handle.result`; .* waits for its"):
        await it.result()
    with pytest.raises(AttributeError, match=r"was not awaited, so it has no 'value': `await handle.result`"):
        _ = it.result.value
    for name in ("value", "failure", "is_success", "state"):
        with pytest.raises(
            AttributeError, match=rf"has no '{name}', .* `\(await handle.wait\(\)\).{name}` waits for it"
        ):
            getattr(it, name)
    with pytest.raises(UsageError, match=r"is not awaited itself: `await handle.wait"):
        await it
    await app.run_worker(burst=True)
    assert (await it.wait()).value == 2


async def test_other_names_are_missing_as_from_any_object(handle: JobHandle[int]) -> None:
    for each, name in ((handle, "JobHandle"), (Job("add"), "Job")):
        with pytest.raises(AttributeError, match=f"^'{name}' object has no attribute 'none'$"):
            getattr(each, "none")  # noqa: B009  a checker would see it
        assert not hasattr(each, "__len__")
    assert copy.copy(handle).id == handle.id


async def test_a_map_without_its_block_says_how_it_is_written(app: Repid, router: Router) -> None:
    router.actor(add)
    results: Any = app.map(add, [1])

    async def await_it() -> None:
        await results

    def enter_it() -> None:
        with results:
            pass

    for misuse in (lambda: iter(results), lambda: aiter(results), enter_it):
        with pytest.raises(UsageError, match="map needs a block"):
            misuse()
    with pytest.raises(UsageError, match="map needs a block"):
        await await_it()


async def test_a_job_in_the_place_of_a_function_is_told_how_it_is_enqueued(app: Repid) -> None:
    job: Any = Job("add", args={"a": 1})
    with pytest.raises(ConfigurationError, match=r"is a job: it is enqueued by `await job.enqueue"):
        await app.enqueue(job)


async def test_an_option_among_the_arguments_is_told_where_it_stands(app: Repid, router: Router) -> None:
    router.actor(add)
    enqueue: Any = app.enqueue
    with pytest.raises(
        PayloadError, match=r"no such parameter; as an option it stands before the verb: using\(delay=…\)"
    ):
        await enqueue(add, 1, delay=3)
    with pytest.raises(PayloadError, match=r"no such parameter$"):
        await enqueue(add, 1, other=3)


@pytest.mark.parametrize(
    ("option", "way"),
    [
        ({"processes": 4}, r"python -m repid worker MODULE:APP --processes 4, or app.run\(processes=4\)"),
        ({"workers": 4}, "--processes 4"),
        ({"max_jobs": 4}, r"--max-jobs 10000, or app.run\(max_jobs=10000\)"),
        ({"max_memory": 4}, "--max-memory 512MB"),
        ({"reload": True}, "--reload"),
        ({"loop": "asyncio"}, "--loop asyncio"),
        ({"concurrency": 4}, "tasks_limit"),
        ({"server": "other"}, "server_name"),
        ({"queues": ["mail"]}, "Worker"),
        ({"burts": True}, r"did you mean 'burst'\?"),
    ],
)
async def test_what_is_no_option_of_a_worker_is_refused_with_the_way_that_it_is_done(
    app: Repid, option: dict[str, Any], way: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"a worker has no option '{next(iter(option))}'.*{way}"):
        await app.run_worker(**option)
    with pytest.raises(ConfigurationError, match=way):
        Worker(app=app, **option)
