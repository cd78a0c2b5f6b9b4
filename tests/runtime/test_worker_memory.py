"""What a failed run had in its variables is freed with the run, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar
from weakref import WeakSet

import pytest
import trio

from repid import CallNext, Connection, Depends, InMemoryServer, Job, Repid, Router

pytestmark = pytest.mark.real_time


class Big:
    """Something that takes much memory."""

    alive: ClassVar[WeakSet[Any]] = WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


def fail() -> None:
    big = Big()
    raise ValueError(str(big))


def fail_again() -> None:
    """As code does that tries again: its frame holds the error, whose traceback holds the frame."""
    try:
        fail()
    except ValueError as error:
        last = error
    raise last


async def wait(seconds: float) -> None:
    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(seconds)
    else:
        await trio.sleep(seconds)


def failing_dependency() -> int:
    fail()
    return 1


async def middleware(call_next: CallNext, *arguments: Any) -> Any:
    big = Big()
    result = await call_next(*arguments)
    return result, big


router = Router(queue="q", timeout=0.05)


@router.actor
def in_a_thread() -> None:
    fail()


@router.actor
async def at_once() -> None:
    fail()


@router.actor
async def after_a_wait() -> None:
    await wait(0.001)
    fail()


@router.actor
async def chained() -> None:
    try:
        fail()
    except ValueError as error:
        raise RuntimeError from error


@router.actor
def holding_the_error() -> None:
    fail_again()


@router.actor
async def timing_out() -> None:
    big = Big()
    await wait(10)
    del big


@router.actor(middlewares=[middleware])
def under_a_middleware() -> None:
    fail()


@router.actor
def with_a_dependency(number: Annotated[int, Depends(failing_dependency)]) -> None: ...


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("host", ["trio", "asyncio"])
@pytest.mark.parametrize("actor", [actor.name for actor in router.actors()])
def test_a_failed_run_keeps_nothing(actor: str, host: str) -> None:
    app = Repid(Connection(InMemoryServer()))
    app.include_router(router)
    logging.getLogger("repid.worker").disabled = True  # pytest keeps what is logged, and with it the tracebacks

    async def main() -> None:
        async with app.magic():
            for _ in range(5):
                await Job(actor, queue="q").enqueue()
            assert (await app.run_worker(burst=True)).dead == 5

    try:
        asyncio.run(main()) if host == "asyncio" else trio.run(main)
    finally:
        logging.getLogger("repid.worker").disabled = False
    assert len(Big.alive) == 0
