"""`app.override`: other functions in the place of dependencies. The annotations here are no strings, as they may be local."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from trio.testing import MockClock

from repid import ConfigurationError, Depends, Message, Repid, Router
from repid.testing import TestClient


def setting() -> str:
    return "production"


def database(setting: Annotated[str, Depends(setting)]) -> str:
    return f"database of {setting}"


def in_a_process(setting: Annotated[str, Depends(setting)]) -> int:
    return os.getpid()


@pytest.fixture
def app() -> Repid:
    app, router = Repid(), Router()
    app.include_router(router)

    @router.actor
    async def ask(where: Annotated[str, Depends(database)]) -> str:
        return where

    @router.actor
    def ask_in_a_thread(where: Annotated[str, Depends(database)]) -> str:
        return where

    return app


async def asked(app: Repid, *actors: str) -> list[object]:
    async with TestClient(app) as client:
        for actor in actors or ("ask", "ask_in_a_thread"):
            await client.send_message_json(channel="default", headers={"topic": actor})
        return [run.value for run in await client.drain(raise_errors=True)]


async def test_it_holds_in_its_block_and_blocks_nest(app: Repid, autojump_clock: MockClock) -> None:
    with app.override({database: lambda: "outer", setting: lambda: "unused"}):
        assert await asked(app, "ask") == ["outer"]
        with app.override({database: lambda: "inner"}):
            assert await asked(app, "ask") == ["inner"]
        assert await asked(app, "ask") == ["outer"]
    assert app.overrides == {}
    assert await asked(app, "ask") == ["database of production"]


async def test_the_dependency_of_a_dependency_can_be_replaced(app: Repid, autojump_clock: MockClock) -> None:
    with app.override({setting: lambda: "test"}):
        assert await asked(app) == ["database of test"] * 2


async def test_what_takes_the_place_may_be_whatever_a_dependency_may_be(app: Repid, autojump_clock: MockClock) -> None:
    closed: list[str] = []

    def yields(message: Message) -> Iterator[str]:
        yield f"attempt {message.attempt}"
        closed.append("sync")

    async def yields_and_awaits(setting: Annotated[str, Depends(setting)]) -> AsyncIterator[str]:
        yield f"a fake of {setting}"
        closed.append("async")

    with app.override({database: yields_and_awaits}):
        assert await asked(app) == ["a fake of production"] * 2
    with app.override({database: yields}):
        assert await asked(app, "ask") == ["attempt 1"]
    assert closed == ["async", "async", "sync"]


def test_what_cannot_take_the_place_is_refused_at_once(app: Repid) -> None:
    def of_a_payload(name: str) -> str:
        return name

    with pytest.raises(ConfigurationError, match=r"'name' of .*of_a_payload"), app.override({database: of_a_payload}):
        pass
    with pytest.raises(ConfigurationError, match="cannot be called"), app.override({database: "a fake"}):  # type: ignore[dict-item]
        pass
    with pytest.raises(ConfigurationError, match="must be a mapping"), app.override([database]):  # type: ignore[arg-type]
        pass
    assert app.overrides == {}


def test_what_takes_the_place_in_a_process_must_be_importable() -> None:
    app, router = Repid(), Router()
    app.include_router(router)
    router.actor(run_in_process=True)(in_a_process)
    with (
        pytest.raises(ConfigurationError, match="cannot run in a process with its dependency"),
        app.override({setting: lambda: "test"}),
    ):
        pass


@pytest.mark.parametrize("dependencies", [{database: 5}, {database: None}, {"database": database}])
def test_what_cannot_be_called_takes_the_place_of_nothing(dependencies: Any) -> None:
    with (
        pytest.raises(ConfigurationError, match="override takes functions by the functions whose place they take"),
        Repid().override(dependencies),
    ):
        pass
