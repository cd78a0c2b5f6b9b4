"""Calling actors by the function itself: enqueueing, options, many at once, values."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import trio

from repid import (
    INJECTED,
    ConfigurationError,
    Connection,
    Depends,
    DuplicateId,
    InMemoryServer,
    Job,
    JobFailed,
    JobHandle,
    Message,
    NotConnected,
    NotSupported,
    PayloadError,
    PrioritiesT,
    Queue,
    Repid,
    ResultError,
    Router,
    SomeRefused,
    SyncMessage,
    UsageError,
    Worker,
)
from repid.actors.called import MOST_KNOWN, Callees

if TYPE_CHECKING:
    from collections import OrderedDict

    from repid.actors import Actor


def tax() -> int:
    return 10


@dataclass
class Parcel:
    name: str
    weight: float


router = Router(queue="shop", store_result=True)


@router.actor
async def price(
    net: int,
    pieces: int = 1,
    *,
    rebate: int = 0,
    tax: Annotated[int, Depends(tax)] = INJECTED,
    message: Message = INJECTED,
) -> int:
    return net * pieces - rebate + tax


@router.actor
def pack(parcel: Parcel) -> Parcel:
    return Parcel(parcel.name.upper(), parcel.weight + 0.5)


@router.actor(store_result=False)
async def forget(number: int) -> int:
    return number


@router.actor
async def fail(text: str) -> None:
    raise LookupError(text)


@router.actor
async def hang() -> None:
    await trio.sleep_forever()


@router.actor
async def label(**names: str) -> dict[str, str]:
    return names


@pytest.fixture
async def shop() -> AsyncGenerator[Repid]:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    async with app.magic():
        yield app


@asynccontextmanager
async def at_work(app: Repid) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run_worker)
        yield
        nursery.cancel_scope.cancel()


async def values(app: Repid, handles: list[JobHandle[Any]]) -> list[Any]:
    await app.run_worker(burst=True)
    return [(await handle.wait()).value for handle in handles]


# Enqueueing


async def test_a_function_is_enqueued_with_its_arguments_and_gives_a_handle_on_its_value(shop: Repid) -> None:
    handles = [
        await shop.enqueue(price, 100),
        await shop.enqueue(price, 100, 2),
        await shop.enqueue(price, pieces=3, net=100, rebate=7),
    ]
    assert [handle.queue for handle in handles] == ["shop"] * 3
    assert await values(shop, handles) == [110, 210, 303]


async def test_a_typed_handle_decodes_to_what_the_actor_is_annotated_to_return(shop: Repid) -> None:
    handle = await shop.enqueue(pack, Parcel("tea", 1))
    assert await values(shop, [handle]) == [Parcel("TEA", 1.5)]
    result = await handle.result
    assert result is not None
    assert result.value.weight == 1.5


async def test_an_actor_without_parameters_and_one_with_any_are_enqueued(shop: Repid) -> None:
    assert (await shop.enqueue(hang)).envelope.payload == b""
    handle = await shop.enqueue(label, one="1", two="2")
    assert await Queue("shop").size() == 2
    await handle.cancel()


@pytest.mark.parametrize(
    ("arguments", "keywords", "faults"),
    [
        ((), {}, [("$.net", "required, but missing")]),
        (("1",), {}, [("$.net", "Expected `int`, got `str`")]),
        ((1, 2, 3), {}, [("$", "3 positional arguments were given, but it takes 2")]),
        ((1,), {"net": 2}, [("$.net", "given twice, by position and by name")]),
        ((1,), {"piece": 2}, [("$.piece", "there is no such parameter (did you mean 'pieces'?)")]),
        ((1,), {"message": 2}, [("$.message", "the worker fills this parameter: leave it out")]),
        ((1,), {"tax": 2}, [("$.tax", "the worker fills this parameter: leave it out")]),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent(
    shop: Repid, arguments: tuple[Any, ...], keywords: dict[str, Any], faults: list[tuple[str, str]]
) -> None:
    with pytest.raises(PayloadError, match=r"price\(\)") as caught:
        await shop.enqueue(price, *arguments, **keywords)
    assert list(caught.value.faults) == faults
    assert await Queue("shop").size() == 0


@pytest.mark.parametrize(
    ("send", "text"),
    [
        (lambda app: app.enqueue(price, object()), "cannot encode the arguments of price() as JSON"),
        (lambda app: app.enqueue(price, net=object()), "cannot encode the arguments of price() as JSON"),
        (lambda app: app.enqueue_many(price, [1, object()]), "cannot encode the arguments of price() as JSON"),
        (lambda app: app.using(delay=1).enqueue(price, object()), "cannot encode the arguments of price() as JSON"),
        (lambda app: app.job(price, object()).enqueue(), "cannot encode the args of job 'price' as JSON"),
        (
            lambda app: Job("price", queue="shop", args={"net": object()}).enqueue(),
            "cannot encode the args of job 'price' as JSON",
        ),
    ],
)
async def test_arguments_that_cannot_be_encoded_are_told_with_the_name_of_their_actor(
    shop: Repid, send: Callable[[Repid], Any], text: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        await send(shop)
    assert str(caught.value).startswith(text)
    assert caught.value.faults == (("$.net", "objects of type object cannot be encoded"),)
    assert await Queue("shop").size() == 0


NAMES = ("self", "actor", "verb", "function", "options", "arguments", "keywords", "handle", "__hidden")


@pytest.mark.parametrize("run", [trio.run, lambda main: asyncio.run(main())], ids=["trio", "asyncio"])
def test_parameters_may_have_any_names(run: Callable[[Any], None]) -> None:
    """Also those that functions of repid have on the way of the call."""
    router = Router(store_result=True)

    @router.actor
    async def job(
        self: int,
        actor: int,
        verb: int,
        function: int,
        options: int,
        arguments: int,
        keywords: int,
        handle: int,
        __hidden: int = 0,
    ) -> list[int]:
        return [self, actor, verb, function, options, arguments, keywords, handle, __hidden]

    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    given: dict[str, Any] = {name: number for number, name in enumerate(NAMES)}
    enqueue: Any = app.enqueue

    async def main() -> None:
        async with app.magic():
            handles = [
                await enqueue(job, *given.values()),
                await enqueue(job, **given),
                await app.using(retries=1).enqueue(job, **given),
                await app.job(job, **given).enqueue(),
            ]
            await app.run_worker(burst=True)
            assert [(await handle.wait()).value for handle in handles] == [[*given.values()]] * len(handles)

    run(main)
    with app.sync() as client, client.worker():
        handle = client.enqueue(job, **given)
        assert handle.wait(timeout=5).value == [*given.values()]
        assert client.using(retries=1).enqueue(job, **given).wait(timeout=5).value == [*given.values()]
        assert client.call(job, **given) == [*given.values()]


async def test_a_router_that_is_included_twice_has_one_actor_to_call() -> None:
    router = Router(queue="twice", store_result=True)

    @router.actor
    async def one() -> int:
        return 1

    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    app.include_router(router)
    async with app.magic():
        handle = await app.enqueue(one)
        await app.run_worker(burst=True)
        assert (await handle.wait(1)).value == 1


async def test_an_actor_with_a_routing_strategy_of_its_own_is_called_like_any_other() -> None:
    router = Router(queue="mine", store_result=True)

    @router.actor(routing_strategy=lambda *, actor_name: lambda message: message.headers["topic"] == actor_name)
    async def one() -> int:
        return 1

    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    async with app.magic():
        handle = await app.enqueue(one)
        await app.run_worker(burst=True)
        assert (await handle.wait(1)).value == 1


def test_the_actors_are_gone_through_once_for_all_functions_that_are_among_them() -> None:
    functions: list[Callable[[], None]] = [lambda: None for _ in range(3)]
    router, asked = Router(), 0
    for number, function in enumerate(functions):
        router.actor(name=f"a{number}")(function)

    def actors() -> list[Actor]:
        nonlocal asked
        asked += 1
        return router.actors()

    callees = Callees(actors, lambda: len(functions))
    assert [callee and callee.name for callee in map(callees.find, functions)] == ["a0", "a1", "a2"]
    assert asked == 1
    late = router.actor(name="late")(lambda: None)
    functions.append(late)
    assert (found := callees.find(late)) is not None
    assert (found.name, asked) == ("late", 2)
    assert callees.find(print) is None
    assert callees.find(partial(late)) is None
    assert asked == 2


@dataclass
class Logged:
    """A wrapper that cannot be hashed, since it is compared by what it wraps."""

    __wrapped__: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.__wrapped__(*arguments)


async def test_a_wrapper_that_is_made_for_each_call_is_taken_for_what_it_wraps_and_not_kept() -> None:
    router = Router()

    @router.actor
    async def add(number: int) -> None: ...

    @router.actor
    async def multiply(number: int) -> None: ...

    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    async with app.magic():
        for function in [add, multiply] * 10:
            handle = await app.enqueue(Logged(function), 1)  # it may be where the one before it was
            assert handle.envelope.headers["topic"] == function.__name__
        callees = Callees(router.actors, lambda: 2)
        for _ in range(MOST_KNOWN * 2):
            assert callees.find(wraps(add)(lambda: None)) is not None
        assert len(callees._known) <= MOST_KNOWN + 2


async def test_an_actor_that_is_declared_late_in_an_included_router_is_found(shop: Repid) -> None:
    outer, inner = Router(), Router(queue="shop")
    outer.include_router(inner)
    shop.include_router(outer)
    with pytest.raises(ConfigurationError, match="is no actor of this app"):
        await shop.enqueue(tax)
    inner.actor(tax)
    assert (await shop.enqueue(tax)).queue == "shop"


async def test_a_call_of_an_app_that_is_not_open_says_how_to_open_it() -> None:
    app = Repid(Connection(InMemoryServer()))
    router = Router()
    router.actor(tax)
    app.include_router(router)
    with pytest.raises(NotConnected, match=r"not connected: open the app with `async with app.magic\(\):`"):
        await app.enqueue(tax)


async def test_what_is_no_actor_of_the_app_is_refused_and_the_error_says_what_to_do(shop: Repid) -> None:
    with pytest.raises(
        ConfigurationError, match=r"forget was called here, and its coroutine is no actor: give the function"
    ):
        await shop.enqueue(forget(1))  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match=r"tax is no actor of this app: .*include_router"):
        await shop.enqueue(tax)
    with pytest.raises(ConfigurationError, match=r"use Job\('price'"):
        await shop.enqueue("price", 1)  # type: ignore[call-overload]
    late = Router()

    @late.actor
    async def later() -> None: ...

    with pytest.raises(ConfigurationError, match="later is no actor"):
        await shop.enqueue(later)
    shop.include_router(late)
    assert (await shop.enqueue(later)).queue == "default"


async def test_an_actor_is_found_behind_a_decorator_a_partial_and_as_a_method(shop: Repid) -> None:
    @wraps(price)
    async def wrapped(*arguments: Any, **keywords: Any) -> Any:
        return await price(*arguments, **keywords)

    class Till:
        async def count(self, coins: int) -> int:
            return coins

    till, own = Till(), Router(store_result=True)
    own.actor(till.count)
    shop.include_router(own)
    handles: list[JobHandle[Any]] = [
        await shop.enqueue(wrapped, 1),
        await shop.enqueue(partial(price, 5, rebate=1), 2),
        await shop.enqueue(till.count, 3),
    ]
    assert await values(shop, handles) == [11, 19, 3]


async def test_a_function_that_is_two_actors_or_whose_messages_go_to_another_is_refused(shop: Repid) -> None:
    twice = Router()
    twice.actor(tax)
    twice.actor(name="other")(tax)

    @twice.actor(name="price", queue="shop")
    async def second_price() -> None: ...

    shop.include_router(twice)
    with pytest.raises(ConfigurationError, match=r"declared as 2 actors: 'tax' on channel 'default', 'other' on"):
        await shop.enqueue(tax)
    with pytest.raises(ConfigurationError, match=r"go to the actor declared first, at .*test_calls.py:\d+, and never"):
        await shop.enqueue(second_price)


async def test_where_a_cell_of_a_notebook_is_run_again_the_error_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    router = Router()

    def run_cell() -> Callable[[], Any]:
        @router.actor
        async def job() -> None: ...

        return job

    app = Repid(Connection(InMemoryServer()))
    run_cell()
    app.include_router(router)
    again = run_cell()
    async with app.magic():
        with pytest.raises(ConfigurationError, match="if its module was reloaded, or its cell of a notebook run again"):
            await app.enqueue(again)
        await app.run_worker(burst=True)
    assert "or its cell of a notebook run again, make a new router and app there" in caplog.text


async def test_a_handle_whose_type_cannot_be_read_says_so_when_its_value_is_asked_for(shop: Repid) -> None:
    own = Router(store_result=True)

    @own.actor
    async def ordered() -> OrderedDict[str, int]:
        return {"a": 1}  # type: ignore[return-value]

    @own.actor
    async def foreign() -> Repid | None:
        return None

    shop.include_router(own)
    unreadable, undecodable = await shop.enqueue(ordered), await shop.enqueue(foreign)
    await shop.run_worker(burst=True)
    with pytest.raises(ResultError, match=r"'OrderedDict' in its annotation cannot be found.*result_as\(\)"):
        _ = (await unreadable.wait()).value
    assert (await unreadable.wait_as(dict[str, int])).value == {"a": 1}
    result = await undecodable.wait()
    assert result.payload == b"null"


# Options


async def test_options_stand_before_the_verb_and_add_up(shop: Repid) -> None:
    using = shop.using(delay=5, priority=PrioritiesT.HIGH).using(delay=7, headers={"x": "y"})
    handle = await using.enqueue(price, 1)
    assert (handle.envelope.options.delay, handle.envelope.options.priority) == (7, PrioritiesT.HIGH)
    assert handle.envelope.headers == {"topic": "price", "x": "y"}
    assert repr(using).startswith("<delay=7, priority=<PrioritiesT.HIGH: 0>, headers={'x': 'y'} of <Repid")


async def test_options_are_checked_where_they_are_given(shop: Repid) -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean 'delay'"):
        shop.using(dely=5)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="delay must not be negative"):
        shop.using(delay=-1)
    with pytest.raises(ConfigurationError, match="both delay and deferred_until"):
        shop.using(delay=1, deferred_until=datetime.now(UTC))
    with pytest.raises(ConfigurationError, match="name another actor as their topic"):
        await shop.using(headers={"topic": "pack"}).enqueue(price, 1)


async def test_a_call_with_an_id_is_unique_while_it_lives(shop: Repid) -> None:
    unique = shop.using(id_="one")
    assert (await unique.enqueue(price, 1)).id == "one"
    with pytest.raises(DuplicateId):
        await unique.enqueue(price, 2)


async def test_a_server_that_does_not_compare_ids_refuses_a_unique_call() -> None:
    from modest_driver import ModestDriver

    from repid import Server

    app = Repid(Connection(Server(ModestDriver())))
    app.include_router(router)
    async with app.servers.default.connection():
        with pytest.raises(NotSupported, match="a call of 'price' has id_='one'"):
            await app.using(id_="one").enqueue(price, 1)


async def test_a_call_becomes_due_at_a_moment(shop: Repid, autojump_clock: object) -> None:
    now = datetime.fromtimestamp(await shop.server().now(), UTC)
    later = shop.using(deferred_until=now + timedelta(seconds=30))
    assert (await later.enqueue(price, 1)).envelope.options.delay == pytest.approx(30)
    assert [each.envelope.options.delay for each in await later.enqueue_many(price, [1, 2])] == pytest.approx([30, 30])


# Many at once


async def test_many_calls_are_published_in_one_step_with_one_handle_each(shop: Repid) -> None:
    calls: list[int] = []
    shop.server().add_instrument(lambda call: calls.append(call.count) if call.name == "publish" else None)  # type: ignore[attr-defined]
    handles = await shop.enqueue_many(price, range(3))
    handles += await shop.enqueue_many(partial(price, rebate=1), (n for n in (10, 20)))
    assert calls == [3, 2]
    assert await values(shop, handles) == [10, 11, 12, 19, 29]
    assert await shop.enqueue_many(price, []) == []


async def test_one_item_that_does_not_fit_keeps_all_from_being_sent(shop: Repid) -> None:
    with pytest.raises(PayloadError):
        await shop.enqueue_many(price, [1, "2"])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="id_ cannot be given for many"):
        await shop.using(id_="x").enqueue_many(price, [1])
    with pytest.raises(ConfigurationError, match="result_id cannot be given for many"):
        await shop.using(result_id="x").enqueue_many(price, [1])
    with pytest.raises(ConfigurationError, match="must be a list of several"):
        await shop.enqueue_many(price, 5)  # type: ignore[call-overload]
    assert await Queue("shop").size() == 0


async def test_an_actor_without_its_items_is_told_so(shop: Repid) -> None:
    text = (
        r"enqueue_many takes an actor and its items, or jobs, but was given <function price at .*> alone: give a list"
    )
    enqueue_many: Any = shop.enqueue_many
    with pytest.raises(ConfigurationError, match=text):
        await enqueue_many(price)
    client: Any = shop.sync()
    with pytest.raises(ConfigurationError, match=text):
        client.enqueue_many(price)


async def test_jobs_are_published_together_and_those_refused_are_told_with_the_others(shop: Repid) -> None:
    jobs: list[Job[Any]] = [shop.job(price, 1), Job("pack", queue="shop", args={"parcel": {"name": "a", "weight": 1}})]
    handles = await shop.enqueue_many(jobs)
    assert [handle.envelope.topic for handle in handles] == ["price", "pack"]
    assert (await jobs[0].status()).state == "ready"
    unique = shop.using(id_="one").job(price, 3)
    with pytest.raises(SomeRefused, match="1 of 3 calls were refused; the others are enqueued") as caught:
        await shop.enqueue_many([unique, shop.job(price, 4), unique])
    first, second, third = caught.value.outcomes
    assert (first.id, second.queue, type(third)) == ("one", "shop", DuplicateId)
    assert caught.value.exceptions == (third,)
    assert await Queue("shop").size() == 4
    again = pickle.loads(pickle.dumps(caught.value))
    assert [str(each) for each in again.outcomes] == [first.id, second.id, str(third)]
    with pytest.raises(SomeRefused, match="1 of 1 calls were refused; none is enqueued"):
        await shop.enqueue_many([unique])


async def test_a_list_of_jobs_takes_jobs_only_and_none_that_recur(shop: Repid) -> None:
    with pytest.raises(ConfigurationError, match="is recurring: enqueue it by itself"):
        await shop.enqueue_many([Job("price", queue="shop", every=5)])
    with pytest.raises(ConfigurationError, match="takes an actor and its items, or jobs, but was given 5"):
        await shop.enqueue_many([5])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="jobs have options of their own"):
        await shop.using(delay=1).enqueue_many([shop.job(price, 1)])
    with pytest.raises(PayloadError):
        shop.job(price, "1")  # type: ignore[call-overload]


# Values


async def test_a_call_returns_the_value_also_of_an_actor_that_stores_none(shop: Repid) -> None:
    async with at_work(shop):
        assert await shop.call(price, 1) == 11
        assert await shop.call(forget, 5) == 5
        assert await shop.call(pack, Parcel("a", 1)) == Parcel("A", 1.5)


async def test_a_call_of_a_failing_actor_raises_its_error_as_job_failed(shop: Repid) -> None:
    async with at_work(shop):
        with pytest.raises(
            JobFailed, match=r"of actor '\w+' has no return value: it ended as 'failure': LookupError: nothing here"
        ) as caught:
            await shop.call(fail, "nothing here")
    error = caught.value
    assert (error.actor, error.state, error.type, error.text) == ("fail", "failure", "LookupError", "nothing here")
    assert "in fail" in error.traceback
    assert error.traceback in error.__notes__[0]
    again = pickle.loads(pickle.dumps(error))
    assert (again.id, again.type, str(again)) == (error.id, error.type, str(error))


async def test_a_call_that_is_left_early_has_its_job_cancelled(shop: Repid, autojump_clock: object) -> None:
    async with at_work(shop):
        with trio.move_on_after(1):
            await shop.call(hang)
        with pytest.raises(TimeoutError):
            await shop.using(call_timeout=1).call(hang)
        await trio.sleep(1)
        counts = await Queue("shop").counts()
        assert (counts.ready, counts.leased, counts.dead) == (0, 0, 0)


async def test_a_call_waits_for_room_no_longer_than_for_its_value(shop: Repid, autojump_clock: object) -> None:
    async with shop.magic():
        await Queue("shop", max_size=1).declare()
        await shop.enqueue(price, 1)
        begun = trio.current_time()
        with pytest.raises(TimeoutError, match="not sent within 2 seconds: queue 'shop' was full"):
            await shop.using(call_timeout=2).call(price, 1)
        assert trio.current_time() - begun == 2
        assert (await Queue("shop").counts()).ready == 1


async def test_what_a_call_has_waited_for_room_is_part_of_its_time(shop: Repid, autojump_clock: object) -> None:
    async with shop.magic(), trio.open_nursery() as nursery:
        await Queue("shop", max_size=1).declare()
        await shop.enqueue(price, 1)

        async def make_room() -> None:
            await trio.sleep(2)
            await Queue("shop").flush()

        nursery.start_soon(make_room)
        begun = trio.current_time()
        with pytest.raises(TimeoutError, match="not ended within 3 seconds: it is still ready"):
            await shop.using(call_timeout=3).call(price, 1)
        assert trio.current_time() - begun == 3
        assert (await Queue("shop").counts()).ready == 0


def test_a_call_from_blocking_code_waits_for_room_no_longer_than_for_its_value() -> None:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    with app.sync() as client:
        client.run(Queue("shop", max_size=1).declare)
        client.enqueue(price, 1)
        with pytest.raises(TimeoutError, match="not sent within"):
            client.using(call_timeout=0.05).call(price, 1)


async def test_options_that_say_nothing_of_a_call_are_refused(shop: Repid) -> None:
    with pytest.raises(ConfigurationError, match="store_result=False, and its value is waited for"):
        await shop.using(store_result=False).call(price, 1)
    with pytest.raises(ConfigurationError, match="call_timeout=1 is for call"):
        await shop.using(call_timeout=1).enqueue(price, 1)
    with pytest.raises(ConfigurationError, match="call_timeout=1 is for call"):
        await shop.using(call_timeout=1).enqueue_many(price, [1])
    with pytest.raises(ConfigurationError, match="call_timeout=1 is for call"):
        shop.using(call_timeout=1).job(price, 1)


# In actors


async def test_an_actor_enqueues_the_next_step_now_or_with_its_acknowledgement(shop: Repid) -> None:
    own, seen = Router(), list[Any]()

    @own.actor
    async def ends(number: int) -> None:
        seen.append(number)

    @own.actor(retries=1, retry_policy=lambda _: 0)
    async def begins(message: Message = INJECTED) -> None:
        await message.enqueue(ends, 1)
        await message.outbox.using(priority=PrioritiesT.LOW).enqueue(ends, 2)
        handles = await message.outbox.enqueue_many(ends, [3, 4])
        assert (await handles[0].status()).state == "unknown"
        if message.attempt == 1:
            raise ValueError

    shop.include_router(own)
    await shop.enqueue(begins)
    await shop.run_worker(burst=True)
    assert sorted(seen) == [1, 1, 2, 3, 4]


async def test_a_sync_actor_enqueues_by_plain_calls(shop: Repid) -> None:
    own, seen = Router(), list[Any]()

    @own.actor
    def ends(number: int) -> None:
        seen.append(number)

    @own.actor
    def begins(message: SyncMessage = INJECTED) -> None:
        assert message.enqueue(ends, 1).queue == "default"
        message.outbox.enqueue(ends, number=2)
        message.outbox.enqueue_many(ends, iter([3, 4]))
        message.using(id_="five").using(delay=0).enqueue(ends, 5)
        with pytest.raises(PayloadError):
            message.enqueue(ends, "6")  # type: ignore[call-overload]

    shop.include_router(own)
    await shop.enqueue(begins)
    await shop.run_worker(burst=True)
    assert sorted(seen) == [1, 2, 3, 4, 5]


async def test_the_actors_of_a_worker_are_known_to_each_other_without_the_app() -> None:
    async with Repid(Connection(InMemoryServer())).magic():
        worker, seen = Worker(burst=True), list[int]()

        @worker.actor
        async def ends(number: int) -> None:
            seen.append(number)

        @worker.actor
        async def begins(message: Message) -> None:
            await message.enqueue(ends, 5)

        await Queue().declare()
        await Job("begins").enqueue()
        await worker.run()
        assert seen == [5]


def test_the_marker_of_a_parameter_that_is_filled_cannot_be_used_nor_stand_elsewhere() -> None:
    assert repr(INJECTED) == "INJECTED"
    assert pickle.loads(pickle.dumps(INJECTED)) is INJECTED
    with pytest.raises(UsageError, match=r"INJECTED, which has no 'ack'"):
        INJECTED.ack()
    with pytest.raises(ConfigurationError, match=r"parameter 'number' of .*wrong\(\) has the default INJECTED"):

        @Router().actor
        async def wrong(number: int = INJECTED) -> None: ...

    async def needs(number: int = INJECTED) -> int:
        return number

    with pytest.raises(ConfigurationError, match=r"parameter 'number' of .*needs\(\), a dependency of .* INJECTED"):

        @Router().actor
        async def depends(number: Annotated[int, Depends(needs)]) -> None: ...


# Elsewhere


def test_under_asyncio_calls_are_the_same() -> None:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)

    async def main() -> None:
        async with app.magic():
            worker = asyncio.create_task(app.run_worker())
            handle = await app.enqueue(price, 1)
            assert (await handle.wait(5)).value == 11
            assert [(await each.wait(5)).value for each in await app.enqueue_many(price, [1, 2])] == [11, 12]
            assert await app.call(price, 2) == 12
            with pytest.raises(JobFailed, match="LookupError"):
                await app.call(fail, "x")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await app.using(delay=1000).call(price, 3)
            assert (await Queue("shop").counts()).scheduled == 0
            worker.cancel()

    asyncio.run(main())


@pytest.mark.real_time
def test_a_client_calls_from_code_that_blocks() -> None:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    with app.sync() as client, client.worker():
        assert client.wait(client.enqueue(price, 1), 5).value == 11
        assert [client.wait(each, 5).value for each in client.enqueue_many(price, iter([1, 2]))] == [11, 12]
        assert [each.queue for each in client.enqueue_many([app.job(price, 1)])] == ["shop"]
        assert client.wait(client.enqueue(app.job(price, 3)), 5).value == 13
        assert client.gather(client.enqueue_many(price, [1, 2]), timeout=5) == [11, 12]
        assert client.first_of(client.enqueue_many(price, [1, 2]), timeout=5).value in {11, 12}
        assert client.call(price, 2) == 12
        assert client.using(retries=0).using(call_timeout=5).call(price, 3) == 13
        with pytest.raises(JobFailed, match="LookupError"):
            client.call(fail, "x")
        with pytest.raises(TimeoutError):
            client.using(call_timeout=0.01, delay=1000).call(price, 3)


@dataclass
class Counting:
    """An object that cannot be hashed, as it is compared by value."""

    step: int

    async def __call__(self, number: int) -> int:
        return number + self.step


@dataclass
class Giving:
    """A dependency of that kind."""

    number: int

    def __call__(self, message: Message) -> int:
        return self.number * message.attempt


async def test_objects_that_cannot_be_hashed_may_be_actors_and_dependencies() -> None:
    one, two, giving, same = Counting(1), Counting(2), Giving(7), Giving(7)
    app, router = Repid(Connection(InMemoryServer())), Router(store_result=True)
    router.actor(name="one")(one)
    router.actor(name="two")(two)

    @router.actor
    async def take(
        left: Annotated[int, Depends(giving)] = INJECTED, right: Annotated[int, Depends(same)] = INJECTED
    ) -> int:
        return left + right

    app.include_router(router)
    async with app.magic(), trio.open_nursery() as nursery:
        worker = await nursery.start(app.run_worker)
        for _ in range(2):
            assert [await app.call(one, 1), await app.call(two, 1), await app.call(take)] == [2, 3, 14]
        with pytest.raises(ConfigurationError, match="is no actor of this app"):
            await app.enqueue(Counting(3), 1)
        worker.stop()


async def test_a_call_is_found_again_by_its_actor_and_its_id(shop: Repid) -> None:
    sent = await shop.enqueue(pack, Parcel("tea", 1))
    found = shop.handle(pack, sent.id)
    assert (found.id, found.queue) == (sent.id, "shop")
    assert (await found.status()).state == "ready"
    assert await found.result is None
    await shop.run_worker(burst=True)
    assert (await found.wait()).value == Parcel("TEA", 1.5)
    other = shop.handle(pack, "another")
    assert (await other.status()).state == "unknown"
    with pytest.raises(ResultError, match="no message 'another' is known"):
        await other.wait()


@pytest.mark.parametrize(
    ("actor", "id_", "text"),
    [
        (pack, None, "a handle needs the id of its job"),
        (pack, 5, "the id of a job must be text of 1 to 255 characters, but is 5"),
        (len, "id", "len is no actor of this app"),
        ("pack", "id", "'pack' is text: use Job"),
    ],
)
async def test_what_gives_no_handle_is_refused_by_name(shop: Repid, actor: Any, id_: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        shop.handle(actor, id_)
