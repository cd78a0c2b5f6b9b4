"""What people who know other libraries write first: the error says how it is done here. A sentence each."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytest
import trio

from repid import (
    AppCallOptions,
    BatchOptions,
    CallOptions,
    ConfigurationError,
    Connection,
    InMemoryServer,
    Job,
    JobHandle,
    JobOptions,
    PayloadError,
    Repid,
    Router,
    RouterOptions,
    SendOptions,
    SyncJobHandle,
    UsageError,
    Worker,
)
from repid.names import NOT_OF_ACTORS, NOT_OF_CALLS, NOT_OF_JOBS, NOT_OF_MESSAGES
from repid.testing import DirectMessage, TestClient


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
        assert all(hasattr(each, listed) for listed in dir(each))
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
    with pytest.raises(
        ConfigurationError, match=r"is a job, with options of its own: it is enqueued by `await job.enqueue"
    ):
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


async def test_a_timeout_among_the_arguments_of_a_call_is_told_both_options(app: Repid, router: Router) -> None:
    router.actor(add)
    call: Any = app.call
    with pytest.raises(
        PayloadError, match=r"using\(timeout=…\) ends a run .*, using\(call_timeout=…\) bounds how long call waits"
    ):
        await call(add, 1, timeout=3)
    with pytest.raises(PayloadError, match=r"stands before the verb: using\(call_timeout=…\)"):
        await call(add, 1, call_timeout=3)


@pytest.mark.parametrize("name", ["enqueue", "enqueue_many", "call", "map", "job"])
def test_a_verb_that_is_asked_for_with_options_tells_that_they_stand_before_it(name: str) -> None:
    app, message = Repid(Connection(InMemoryServer())), DirectMessage()
    client = app.sync()
    holders: list[Any] = [app, app.using(retries=3), client, client.using(retries=3), message, message.outbox]
    for holder in holders:
        if hasattr(holder, name):
            with pytest.raises(UsageError, match=r"options stand before the verb, as in using\(delay=5\)"):
                getattr(holder, name).with_options(delay=5)


async def test_an_async_generator_in_the_place_of_a_list_is_told_how_it_is_read(app: Repid, router: Router) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    router.actor(add)
    items: Any = numbers()
    with pytest.raises(ConfigurationError, match=r"read it before, \[each async for each in \.\.\.\]"):
        await app.enqueue_many(add, items)


async def test_a_handle_that_is_pickled_is_told_to_send_its_id(handle: JobHandle[int]) -> None:
    with pytest.raises(UsageError, match=r"send its `id`, and make another handle there with `app\.handle"):
        pickle.dumps(handle)
    with pytest.raises(UsageError, match="send its `id`"):
        copy.deepcopy(handle)
    assert copy.copy(handle).id == handle.id
    blocking: SyncJobHandle[int] = SyncJobHandle(handle, lambda function, *, is_waiting: function())
    with pytest.raises(UsageError, match=r"`client\.handle\(actor, id\)`"):
        pickle.dumps(blocking)


@pytest.mark.parametrize(
    ("of_app", "text"),
    [
        (lambda app: app, "import it in the other process"),
        (lambda app: app.enqueue, "import it in the other process"),
        (lambda app: app.using(delay=1), "import it in the other process"),
        (lambda app: app.server(), "import its app in the other process"),
        (lambda app: app.sync(), r"another one there with `app\.sync\(\)`"),
    ],
    ids=["app", "method", "options", "server", "client"],
)
async def test_an_app_that_is_pickled_is_told_to_be_imported(
    app: Repid, of_app: Callable[[Repid], object], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        pickle.dumps(of_app(app))


HOLDERS: dict[str, tuple[Callable[..., Any], Mapping[str, str], Iterable[str]]] = {
    "actor": (lambda **options: Router().actor(**options)(add), NOT_OF_ACTORS, BatchOptions.__annotations__),
    "router": (Router, NOT_OF_ACTORS, RouterOptions.__annotations__),
    "call": (lambda **options: Repid().using(**options), NOT_OF_CALLS, AppCallOptions.__annotations__),
    "message": (lambda **options: DirectMessage().using(**options), NOT_OF_CALLS, CallOptions.__annotations__),
    "job": (lambda **options: Job("add", **options), NOT_OF_JOBS, {"queue", *JobOptions.__annotations__}),
}


@pytest.mark.parametrize("of", HOLDERS)
def test_an_option_of_something_else_is_told_who_has_it(of: str) -> None:
    make, hints, options = HOLDERS[of]
    for word, hint in hints.items():
        assert word not in options
        with pytest.raises(ConfigurationError, match=re.escape(f"has no option {word!r}: {hint}")):
            make(**{word: 3})


async def test_an_option_that_messages_do_not_have_is_told_who_has_it(app: Repid) -> None:
    send: Any = app.send_message_json
    for word, hint in NOT_OF_MESSAGES.items():
        assert word not in SendOptions.__annotations__
        with pytest.raises(ConfigurationError, match=re.escape(f"has no option {word!r}: {hint}")):
            await send(channel="default", **{word: 3})


def test_every_option_of_an_actor_and_of_a_call_is_one_or_is_told_who_has_it() -> None:
    of_actors, of_calls = set(BatchOptions.__annotations__), set(AppCallOptions.__annotations__)
    assert of_actors - of_calls - set(NOT_OF_CALLS) == {"name"}
    assert of_calls - of_actors - set(NOT_OF_ACTORS) == {"call_timeout"}
    assert of_actors - set(JobOptions.__annotations__) - set(NOT_OF_JOBS) == {"name", "channel", "queue"}


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


async def test_the_results_of_a_map_in_a_plain_loop_say_how_they_are_read(app: Repid, router: Router) -> None:
    router.actor(add)
    async with app.map(add, []) as results:
        any_results: Any = results
        for misuse in (iter, list):
            with pytest.raises(UsageError, match=r"`async for result in results: ...`, or all of them"):
                misuse(any_results)
        with pytest.raises(UsageError, match=r"async for result in results"):
            await any_results


def test_the_results_of_a_blocking_map_in_an_async_loop_say_how_they_are_read() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()
    router.actor(add)
    app.include_router(router)
    with app.sync() as client:
        map_: Any = client.map(add, [])
        with pytest.raises(UsageError, match=r"with client.map"):
            aiter(map_)
        with map_ as results, pytest.raises(UsageError, match=r"`for result in results: ...`"):
            aiter(results)


@pytest.mark.parametrize("count", [1, 2])
async def test_calls_that_were_not_awaited_are_told_so_by_gather(app: Repid, router: Router, count: int) -> None:
    router.actor(add)
    for verb in (app.gather, app.first_of):
        calls: Any = [app.call(add, 1) for _ in range(count)]
        with pytest.raises(ConfigurationError, match=r"await each of them before, `handle = await app.enqueue\("):
            await verb(*calls)


async def test_an_item_of_a_map_that_does_not_fit_is_told_with_its_number(app: Repid, router: Router) -> None:
    router.actor(add)
    items: list[Any] = [*range(30), "thirty"]
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        async with app.map(add, items, limit=4) as results:
            with pytest.raises(PayloadError) as caught:
                async for _ in results:
                    pass
        nursery.cancel_scope.cancel()
    assert caught.value.__notes__ == ["this was item 30, counted from 0: 'thirty'"]


async def test_the_states_of_a_job_in_a_plain_loop_say_how_they_are_watched(handle: JobHandle[int]) -> None:
    watch: Any = handle.watch()
    with pytest.raises(UsageError, match=r"`async for status in handle.watch"):
        iter(watch)
    with pytest.raises(UsageError, match=r"`await handle.status"):
        await watch


async def test_a_result_that_is_tested_without_being_awaited_says_so(handle: JobHandle[int]) -> None:
    with pytest.raises(UsageError, match=r"this result was not awaited: `await handle.result`"):
        bool(handle.result)


@pytest.mark.parametrize(
    "make",
    [lambda app: app.magic(), lambda app: app.server().connection(), TestClient],
    ids=["magic", "connection", "TestClient"],
)
def test_a_block_of_async_code_says_so_to_a_plain_with(make: Callable[[Any], Any]) -> None:
    app = Repid(Connection(InMemoryServer()))

    def enter() -> None:
        with make(app):
            pass

    async def enter_in_async_code() -> None:
        enter()

    for misuse in (enter, partial(trio.run, enter_in_async_code), lambda: asyncio.run(enter_in_async_code())):
        with pytest.raises(UsageError, match="async with"):
            misuse()


@pytest.mark.parametrize("run", [trio.run, lambda main: asyncio.run(main())], ids=["trio", "asyncio"])
@pytest.mark.parametrize("make", [lambda app: app.magic(), lambda app: app.server().connection()])
@pytest.mark.parametrize("is_nested", [True, False])
def test_a_block_that_is_entered_again_says_that_each_needs_one(
    run: Callable[[Any], None], make: Callable[[Any], Any], is_nested: bool
) -> None:
    async def main() -> None:
        app = Repid(Connection(InMemoryServer()))
        block = make(app)
        async with block:
            if is_nested:
                with pytest.raises(UsageError, match="this block was entered before, and is for once"):
                    await block.__aenter__()
        with pytest.raises(UsageError, match="make another one for each `async with`"):
            await block.__aenter__()
        async with make(app):
            await app.send_message_json(channel="q")

    run(main)


async def test_a_block_decorates_an_async_function_and_is_opened_anew_for_each_call() -> None:
    app = Repid(Connection(InMemoryServer()))
    open_in_calls: list[str] = []

    @app.magic()
    async def work() -> None:
        open_in_calls.append(app.server().link.state)

    for _ in range(2):
        await work()
        assert app.server().link.state == "closed"
    assert open_in_calls == ["up", "up"]
    decorate: Any = app.server().connection()
    assert await decorate(app.server().queues)() == []


def test_an_attribute_that_a_property_of_a_subclass_of_the_app_lacks_is_named() -> None:
    class Shop(Repid):
        @property
        def till(self) -> Any:
            return self.drawer  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="'Shop' object has no attribute 'drawer'"):
        _ = Shop(Connection(InMemoryServer())).till


async def test_a_blocking_client_in_an_async_with_says_what_is_written_instead(app: Repid) -> None:
    client: Any = app.sync()
    with pytest.raises(UsageError, match=r"`async with app.magic\(\)"):
        async with client:
            pass


@pytest.mark.parametrize("name", ["actor", "task"])
def test_an_actor_that_is_declared_on_the_app_is_told_of_routers(name: str) -> None:
    app = Repid()
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}': actors are declared on a router, "):
        getattr(app, name)
    with pytest.raises(AttributeError, match=r"^'Repid' object has no attribute 'other'$"):
        getattr(app, "other")  # noqa: B009  a checker would see it
    assert name not in dir(app)


@pytest.mark.parametrize("kind", [Repid, Job, JobHandle])
def test_what_every_send_uses_has_no_code_of_its_own_for_looking_up_attributes(kind: type) -> None:
    own = {name for each in kind.__mro__[:-1] for name in vars(each)}
    assert own.isdisjoint({"__getattr__", "__getattribute__"})  # with them each attribute takes several times as long
