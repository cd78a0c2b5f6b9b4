"""What all tests share. Trio's scheduler is seeded for each test, so a failure that depends on order repeats.

The seed is made of the test's id and `REPID_TEST_SEED` (printed in the header): the same command fails the same way,
`REPID_TEST_SEED=n pytest …` tries other orders, and `REPID_TEST_ORDER=n` runs the tests themselves in a random order,
which depends on that number. Hypothesis seeds the scheduler itself, once for each example; with
`HYPOTHESIS_PROFILE=ci` (or `CI` set) its examples are the same every time.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import random
import signal
from collections.abc import AsyncGenerator, Generator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from aids import UnreliableServer, seed_scheduler
from engines.fixtures import one_schema, postgres, prefix, redis, schema  # noqa: F401  fixtures
from hypothesis import settings

from repid import Repid, Router

SEED = os.environ.get("REPID_TEST_SEED", "0")
ORDER = os.environ.get("REPID_TEST_ORDER")

LONGEST_VIRTUAL_TIME = 1_000_000_000
LONGEST_REAL_TIME = 60

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


def pytest_report_header() -> str:
    return f"scheduler seed: REPID_TEST_SEED={SEED}, order of tests: REPID_TEST_ORDER={ORDER}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_time: takes real time, for signals, threads or processes")
    _heed_signals()


def _heed_signals() -> None:
    """As from a terminal: `nohup` and `&` have signals ignored, in this process and in all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT) if hasattr(signal, "SIGHUP") else ():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # this process goes on, those it starts have the default


def pytest_collection_finish() -> None:
    """What was imported and collected stays: let no collection of garbage look through it, as some tests ask for one."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seed_scheduler(f"{SEED} {item.nodeid}")


class _Assertions(logging.Handler):
    """Collects the assertions that failed in actors. A worker makes them failures of messages, or only logs them."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        kinds = (AssertionError, pytest.fail.Exception)
        if isinstance(error, BaseExceptionGroup):
            error = error.subgroup(kinds)
        elif not isinstance(error, kinds):
            error = None
        if error is not None:
            self.failed.append(error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """An assertion that fails in an actor fails the test, whatever the worker makes of it."""
    assertions = _Assertions()
    logger = logging.getLogger("repid")
    logger.addHandler(assertions)
    try:
        result = yield
    finally:
        logger.removeHandler(assertions)
    if assertions.failed:
        raise assertions.failed[0]
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-trio sees a clock among a test's own arguments only; let it see that of a fixture's fixture too.

    And let nothing wait for ever: what hangs on a virtual clock, with a worker in it that goes on extending leases,
    is a failure after so many virtual seconds.
    """
    if ORDER is not None:
        random.Random(ORDER).shuffle(items)
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.add_marker(pytest.mark.trio(run=partial(_run, item)))


def _run(item: pytest.Function, main: Any, *, clock: Any, instruments: Any) -> Any:
    virtual: Any = item.funcargs.get("autojump_clock")

    async def bounded() -> Any:
        with trio.fail_after(LONGEST_REAL_TIME if virtual is None else LONGEST_VIRTUAL_TIME):
            return await main()

    return trio.run(bounded, clock=clock or virtual, instruments=instruments)


@pytest.fixture
def server() -> UnreliableServer:
    return UnreliableServer()


@pytest.fixture
async def app(server: UnreliableServer, autojump_clock: trio.testing.MockClock) -> AsyncGenerator[Repid, None]:
    """A connected app that is the current one, on the virtual clock; its default queue is declared."""
    app = Repid()
    app.servers.register_server("default", server)
    async with app.magic():
        await server.declare(["default"])
        yield app


@pytest.fixture
def router(app: Repid) -> Router:
    """A router of the app; what a test declares on it counts until a worker runs."""
    router = Router()
    app.include_router(router)
    return router
