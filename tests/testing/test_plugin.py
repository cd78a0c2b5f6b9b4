"""The pytest plugin, in projects of its users, each with a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from repid import pytest_plugin

pytest_plugins = ["pytester"]

APP = """
from repid import InMemoryServer, Repid, Router

app, router = Repid(), Router()
app.servers.register_server("default", InMemoryServer())

@router.actor
async def add(a: int, b: int) -> int:
    return a + b

app.include_router(router)
"""

TEST = """
import pytest
from shop import add

@pytest.mark.MARK
async def test_a_sum(repid_client):
    await repid_client.send_message_json(channel="default", payload={"a": 1, "b": 2}, headers={"topic": "add"})
    repid_client.assert_enqueued(add, a=1)
    assert [run.value for run in await repid_client.drain()] == [3]

def test_of_another_kind(repid_app):
    assert repid_app.queues() == ["default"]
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with an app, in which pytest loads no plugins by itself."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(shop=APP)
    configure(pytester, 'repid_app = "shop:app"')
    return pytester


def configure(project: pytest.Pytester, *lines: str) -> None:
    settings = ["[tool.pytest.ini_options]", 'pythonpath = ["."]', 'filterwarnings = ["error"]', *lines]
    project.makepyprojecttoml("\n".join(settings))


def run(project: pytest.Pytester, *others: ModuleType) -> pytest.RunResult:
    return project.runpytest_inprocess(plugins=[pytest_plugin, *others])


@pytest.mark.parametrize(
    ("runner", "passed"),
    [("pytest_trio.plugin", 2), ("anyio.pytest_plugin", 3), ("pytest_asyncio.plugin", 2)],
    ids=["pytest-trio", "anyio, under asyncio and trio", "pytest-asyncio"],
)
def test_the_client_is_open_in_the_tests_of_every_plugin(project: pytest.Pytester, runner: str, passed: int) -> None:
    mark = {"pytest_trio.plugin": "trio", "anyio.pytest_plugin": "anyio", "pytest_asyncio.plugin": "asyncio"}[runner]
    if mark == "asyncio":
        configure(project, 'repid_app = "shop:app"', 'asyncio_default_fixture_loop_scope = "function"')
    project.makepyfile(test_shop=TEST.replace("MARK", mark))
    run(project, pytest.importorskip(runner)).assert_outcomes(passed=passed)


def test_a_test_has_its_own_function_again_afterwards(project: pytest.Pytester) -> None:
    project.makeconftest("def pytest_runtest_teardown(item): assert not hasattr(item.obj, '__wrapped__')")
    project.makepyfile(test_shop=TEST.replace("MARK", "anyio"))
    run(project, pytest.importorskip("anyio.pytest_plugin")).assert_outcomes(passed=3)


def test_a_fixture_that_uses_the_client_is_told_that_it_is_open_in_the_test_alone(project: pytest.Pytester) -> None:
    fixture = """
        import pytest

        @pytest.fixture
        async def sent(repid_client):
            await repid_client.send_message_json(channel="default")

        @pytest.mark.anyio
        async def test_it(sent): ...
    """
    project.makepyfile(test_shop=fixture)
    result = run(project, pytest.importorskip("anyio.pytest_plugin"))
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        ["*that of the fixture repid_client is open within the test, and not in other fixtures"]
    )


def test_an_app_may_come_from_a_fixture_of_the_project(project: pytest.Pytester) -> None:
    configure(project)
    project.makeconftest("import pytest, shop\n@pytest.fixture\ndef repid_app(): return shop.app")
    project.makepyfile(test_shop="def test_it(repid_client): assert repid_client.app.queues() == ['default']")
    run(project).assert_outcomes(passed=1)


def test_without_an_app_it_says_what_to_do(project: pytest.Pytester) -> None:
    configure(project)
    project.makepyfile(test_shop="def test_it(repid_app): ...")
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*UsageError: repid_app does not know the app: say repid_app = "shop.jobs:app"*'])


def test_what_is_no_app_is_named(project: pytest.Pytester) -> None:
    configure(project, 'repid_app = "shop:router"')
    project.makepyfile(test_shop="def test_it(repid_app): ...")
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'shop:router' is a Router*"])


def test_pytest_finds_the_plugin_which_loads_no_more_than_it_needs() -> None:
    entry_points = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert entry_points["project"]["entry-points"]["pytest11"] == {"repid": pytest_plugin.__name__}
    code = f"import sys, {pytest_plugin.__name__}; assert not {{'trio_asyncio', 'repid.testing'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
