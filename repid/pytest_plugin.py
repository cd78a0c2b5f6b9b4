"""The pytest plugin: the fixtures `repid_app` and `repid_client`, whatever runs a project's async tests.

Theory. Each plugin for async tests has its own rules for async fixtures, and some run them in other tasks than the
test. So the fixtures here are plain ones, and the client is opened inside the test's own task: while a test is called,
its function is wrapped in one that opens the client around it. pytest-trio, anyio and pytest-asyncio all call the
function that they find then, on their loop.

pytest loads this module in every project where repid is installed, so it is no part of `repid.testing`, and loads that
only where a test takes the fixtures.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from .app import Repid
    from .testing import TestClient


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of pytest's configuration."""
    parser.addini("repid_app", "The app that the fixture repid_app gives, as module:attribute.", default="")


@pytest.fixture
def repid_app(pytestconfig: pytest.Config) -> Repid:
    """The app under test: that of the option `repid_app = "shop.jobs:app"`, or of your own fixture of this name."""
    from .supervisor import load_app  # noqa: PLC0415

    target = pytestconfig.getini("repid_app")
    if not target:
        raise pytest.UsageError(
            'repid_app does not know the app: say repid_app = "shop.jobs:app" in pytest\'s configuration, or write a '
            "fixture of this name that returns it"
        )
    return cast("Repid", load_app(target))


@pytest.fixture
def repid_client(repid_app: Repid) -> TestClient:
    """A `repid.testing.TestClient` of `repid_app`. It is open while an async test runs; a sync test opens it itself."""
    from .testing import TestClient  # noqa: PLC0415  loaded where it is used

    return TestClient(repid_app)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Have the client of an async test opened around its function."""
    if not (
        isinstance(item, pytest.Function) and "repid_client" in item.funcargs and inspect.iscoroutinefunction(item.obj)
    ):
        return (yield)
    function = item.obj
    item.obj = _opening(cast("TestClient", item.funcargs["repid_client"]), function)
    try:
        return (yield)
    finally:
        item.obj = function


def _opening(client: TestClient, function: Any) -> Any:
    @wraps(function)
    async def test(*arguments: Any, **keywords: Any) -> None:
        __tracebackhide__ = True
        async with client:
            await function(*arguments, **keywords)

    return test
