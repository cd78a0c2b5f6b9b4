"""`app.run(loop=…)` and `repid worker --loop …`: the event loop of a worker, here and in processes. Real time."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from repid import ConfigurationError, Connection, InMemoryServer, MissingExtra, Repid

from .aids_supervisor import Program, until, with_signals

pytestmark = with_signals

LOOPS = [
    "trio",
    "asyncio",
    pytest.param(
        "uvloop", marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
    ),
]

PROGRAM = """
import asyncio, signal, sys
import trio
from repid import Connection, Repid, Router, SQLiteServer
app, router = Repid(Connection(SQLiteServer("jobs.db"))), Router()

@router.actor
async def tell() -> None:
    if LOOP == "trio":
        await trio.sleep(0)
    else:
        await asyncio.sleep(0)
        assert type(asyncio.get_running_loop()).__module__.startswith("uvloop") == (LOOP == "uvloop")
    print(f"ran on {LOOP}\\n", end="", flush=True)  # one write: two processes share the log

@router.actor
async def hang() -> None:
    print("hangs", flush=True)
    try:
        await (trio.sleep(60) if LOOP == "trio" else asyncio.sleep(60))
    finally:
        print("ends", flush=True)

app.include_router(router)
if __name__ == "__main__":
    print(app.run(loop=LOOP, **OPTIONS))
"""


def write(program: Program, loop: str, options: str) -> None:
    text = PROGRAM.replace("OPTIONS", options).replace("LOOP", repr(loop))
    (program.folder / "program.py").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("options", ["{'burst': True}", "{'burst': True, 'processes': 2}"], ids=["here", "processes"])
def test_run_runs_async_actors_on_the_loop_it_is_told(program: Program, loop: str, options: str) -> None:
    write(program, loop, options)
    program.send("tell", [{}] * 3)
    program.start(command=["program.py"])
    assert program.wait(60) == 0
    assert program.log.count(f"ran on {loop}") == 3
    assert "succeeded=3" in program.log


@pytest.mark.parametrize("loop", LOOPS)
def test_the_command_line_takes_the_loop_and_a_signal_stops_the_worker_on_it(program: Program, loop: str) -> None:
    write(program, loop, "{}")
    program.send("hang", [{}])
    program.start(command=["-m", "repid", "worker", "program:app", "--loop", loop, "--graceful-shutdown-time", "0"])
    until(lambda: "hangs" in program.log, 60)
    program.signal(signal.SIGTERM)
    assert program.wait(60) == 0
    assert "ends" in program.log
    assert "1 released" in program.log


@pytest.mark.parametrize("wrong", ["asyncoi", "", None])
def test_another_loop_is_refused_with_a_hint(wrong: Any) -> None:
    app = Repid(Connection(InMemoryServer()))
    with pytest.raises(ConfigurationError, match="loop must be one of 'trio', 'asyncio', 'uvloop', but is"):
        app.run(loop=wrong)


def test_without_uvloop_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvloop" else find(name))
    app = Repid(Connection(InMemoryServer()))
    with pytest.raises(MissingExtra, match=r"pip install 'repid-trio\[uvloop\]'"):
        app.run(loop="uvloop")


def test_the_command_line_names_the_loops(program: Program) -> None:
    program.start(command=["-m", "repid", "worker", "jobs:app", "--loop", "curio"])
    assert program.wait(60) == 2
    assert "Invalid value for '--loop': 'curio' is no event loop here: give one of trio, asyncio, uvloop" in program.log


def test_a_loop_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    app = Repid(Connection(InMemoryServer()))
    with pytest.raises(MissingExtra, match="uvloop"):
        app.run(loop="uvloop", burst=True)
