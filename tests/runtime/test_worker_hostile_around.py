"""Code around the runs that raises errors which do harm: hooks of dead letters, lifespans. Real time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Annotated, Any

import pytest
import trio
from aids import send
from aids_hostile import ERRORS, share_of

from repid import (
    Connection,
    Counts,
    DeadMessage,
    Depends,
    InMemoryServer,
    LifespanError,
    Message,
    Payload,
    Repid,
    Router,
)

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def make_app() -> Repid:
    app, router = Repid(Connection(InMemoryServer())), Router()

    @router.actor
    async def reject(message: Message) -> None:
        await message.nack()

    app.include_router(router)
    return app


def run_on(host: str, main: Callable[[], Awaitable[Any]]) -> None:
    trio.run(main) if host == "trio" else asyncio.run(main())  # type: ignore[arg-type]


async def fails(name: str, begun: set[str], _: DeadMessage) -> None:
    begun.add(name)
    error = ERRORS[name]()
    raise error


def fails_in_a_thread(name: str, begun: set[str], _: DeadMessage) -> None:
    begun.add(name)
    error = ERRORS[name]()
    raise error


class Exits:
    """A callable object is a hook, too."""

    async def __call__(self, dead: DeadMessage) -> None:
        raise SystemExit(dead.reason)


def forgets_to_await(dead: DeadMessage) -> Any:
    return fails("SystemExit", set(), dead)


PLACES = [(host, kind) for host in ("trio", "asyncio") for kind in (fails, fails_in_a_thread)]


@pytest.mark.parametrize("place", range(4), ids=[f"{host}-{kind.__name__}" for host, kind in PLACES])
def test_whatever_hooks_of_dead_letters_raise_the_worker_and_the_other_hooks_go_on(
    place: int, caplog: pytest.LogCaptureFixture
) -> None:
    host, kind = PLACES[place]
    app, names = make_app(), share_of(place, ERRORS)
    begun: set[str] = set()
    told: list[str] = []
    for name in names:
        app.on_dead_letter(partial(kind, name, begun))
    app.on_dead_letter(Exits())
    app.on_dead_letter(forgets_to_await)

    @app.on_dead_letter
    async def works(dead: DeadMessage) -> None:
        told.append(dead.reason)

    async def main() -> None:
        async with app.magic():
            await send(app, "reject")
            assert (await app.run_worker(burst=True)).dead == 1

    run_on(host, main)
    assert told == ["nacked"]
    assert begun == set(names)
    assert "SystemExit: nacked" in caplog.text
    assert "returned a coroutine that nobody has awaited" in caplog.text


TIMES = [(host, when) for host in ("trio", "asyncio") for when in ("opening", "closing")]


@pytest.mark.parametrize("place", range(4), ids=["-".join(time) for time in TIMES])
def test_whatever_a_lifespan_raises_is_told_and_the_messages_keep_their_fates(place: int) -> None:
    host, when = TIMES[place]

    async def try_with(name: str) -> None:
        app = make_app()

        @app.lifespan
        async def lifespan() -> AsyncIterator[None]:
            error = ERRORS[name]()
            if when == "opening":
                raise error
            yield
            raise error

        async with app.magic():
            await send(app, "reject")
            with pytest.raises(LifespanError, match="raised"):
                await app.run_worker(burst=True)
            counts = await app.server().counts("default")
            assert counts == (Counts(ready=1) if when == "opening" else Counts(dead=1))

    for name in share_of(place, ERRORS):
        run_on(host, partial(try_with, name))


KINDS = [(host, where) for host in ("trio", "asyncio") for where in ("async", "thread")]


@pytest.mark.parametrize("place", range(4), ids=["-".join(kind) for kind in KINDS])
def test_whatever_a_dependency_raises_when_it_is_closed_is_the_failure_of_its_run(place: int) -> None:
    host, where = KINDS[place]
    app, router = make_app(), Router()

    def opens(name: Annotated[str, Payload()]) -> Iterator[int]:
        yield 1
        error = ERRORS[name]()
        raise error

    @router.actor(name="async")
    async def in_a_task(one: Annotated[int, Depends(opens)]) -> None: ...

    @router.actor(name="thread")
    def in_a_thread(one: Annotated[int, Depends(opens)]) -> None: ...

    @router.actor
    async def innocent() -> None: ...

    app.include_router(router)
    names = share_of(place, ERRORS)

    async def main() -> None:
        async with app.magic():
            for name in names:
                await send(app, where, name=name)
                await send(app, "innocent")
            report = await app.run_worker(burst=True)
            assert (report.succeeded, report.dead) == (len(names), len(names))

    run_on(host, main)
