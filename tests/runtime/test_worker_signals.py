"""Real signals to a real process: one SIGTERM drains, two cut short. Real time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from typing import IO, Any

import pytest
import trio
from aids import read_rest

from repid import Connection, InMemoryServer, Job, Repid, Router

pytestmark = pytest.mark.real_time

SCRIPT = """
import json, os, signal, sys
import trio
from repid import InMemoryServer, Repid, Router

server = InMemoryServer()
app = Repid()
app.servers.register_server("default", server)
router = Router()

@router.actor
async def slow(seconds: float) -> None:
    os.write(1, b"running\\n")  # in one piece, whoever else writes
    await trio.sleep(seconds)

@router.actor
def thread(seconds: float) -> None:
    import time
    os.write(1, b"running\\n")  # in one piece, whoever else writes
    time.sleep(seconds)

@router.actor
async def shielded(seconds: float) -> None:
    os.write(1, b"running\\n")
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)

@router.actor
async def blocking(seconds: float) -> None:
    import time
    os.write(1, b"running\\n")
    while True:
        time.sleep(0.01)

app.include_router(router)

async def tell(handle):
    while not handle._control.is_stopped:
        await trio.sleep(0.005)
    print("stopping", flush=True)

async def main():
    async with app.magic():
        for _ in range(2):
            await app.send_message_json(
                channel="default", payload={"seconds": float(sys.argv[2])}, headers={"topic": sys.argv[1]})
        reports = []
        async with trio.open_nursery() as nursery:
            async def work(task_status):
                reports.append(await app.run_worker(
                    graceful_shutdown_time=float(sys.argv[3]), handle_signals=[signal.SIGTERM, signal.SIGINT],
                    task_status=task_status))
            nursery.start_soon(tell, await nursery.start(work))
        [report] = reports
        counts = await server.counts("default")
    print(json.dumps({"processed": report.processed, "succeeded": report.succeeded, "released": report.released,
                      "abandoned": report.abandoned, "ready": counts.ready, "leased": counts.leased}), flush=True)

trio.run(main)
"""


def run_and_signal(actor: str, seconds: float, grace: float, *signals: signal.Signals) -> tuple[int, dict[str, Any]]:
    """Start two runs, send the signals one after another, and give the exit code and the account."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), actor, str(seconds), str(grace)], stdout=subprocess.PIPE
    ) as process:
        try:
            output: IO[bytes] | None = process.stdout
            assert output is not None
            for _ in range(2):
                assert output.readline() == b"running\n"
            process.send_signal(signals[0])
            assert output.readline() == b"stopping\n"  # or two of a kind that come at once would count as one
            for number in signals[1:]:
                process.send_signal(number)
            rest, _ = read_rest(process)
        finally:
            process.kill()  # which does nothing to one that has ended
    return process.returncode, json.loads(rest)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_drains(number: signal.Signals) -> None:
    assert run_and_signal("slow", 0.4, 20, number) == (
        0,
        {"processed": 2, "succeeded": 2, "released": 0, "abandoned": 0, "ready": 0, "leased": 0},
    )


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_cut_short(second: signal.Signals) -> None:
    assert run_and_signal("slow", 30, 20, signal.SIGTERM, second) == (
        0,
        {"processed": 2, "succeeded": 0, "released": 2, "abandoned": 0, "ready": 2, "leased": 0},
    )


def test_the_grace_ends_by_itself() -> None:
    assert run_and_signal("slow", 30, 0.2, signal.SIGTERM) == (
        0,
        {"processed": 2, "succeeded": 0, "released": 2, "abandoned": 0, "ready": 2, "leased": 0},
    )


def test_two_signals_leave_threads_behind_and_the_process_ends() -> None:
    assert run_and_signal("thread", 30, 20, signal.SIGTERM, signal.SIGTERM) == (
        0,
        {"processed": 2, "succeeded": 0, "released": 0, "abandoned": 2, "ready": 0, "leased": 2},
    )


@pytest.mark.parametrize("actor", ["shielded", "blocking"])
def test_a_third_signal_ends_the_process_whatever_the_actor_does(actor: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), actor, "60", "60"], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"running\n"
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                process.send_signal(number)
                time.sleep(0.3)  # two of a kind that come at once would count as one
            assert process.wait(10) == -signal.SIGTERM
        finally:
            process.kill()


async def test_an_actor_that_goes_on_after_the_grace_is_named_with_its_message(
    caplog: pytest.LogCaptureFixture, autojump_clock: Any
) -> None:
    app, router = Repid(Connection(InMemoryServer())), Router(queue="q")

    @router.actor
    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    @router.actor
    async def obedient() -> None:
        await trio.sleep(30)

    app.include_router(router)
    async with app.magic():
        await Job("stubborn", queue="q", id_="mine").enqueue()
        await Job("obedient", queue="q", id_="other").enqueue()
        async with trio.open_nursery() as nursery:
            handle = await nursery.start(partial(app.run_worker, graceful_shutdown_time=2))
            await trio.sleep(1)
            handle.stop()
    [warning] = [record.getMessage() for record in caplog.records if "still waits for" in record.getMessage()]
    assert warning == (
        "3 s after its actors were cancelled the worker still waits for actor 'stubborn' (message 'mine'), which may be "
        "shielded from that or handle it: a third signal ends the process"
    )


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_after_an_asyncio_run_that_its_worker_outlived_ctrl_c_is_python_s_again() -> None:
    code = """
    import asyncio, signal
    from repid import Connection, InMemoryServer, Repid, Router
    app, router = Repid(Connection(InMemoryServer())), Router()
    @router.actor
    async def job(): ...
    app.include_router(router)
    async def main():
        asyncio.create_task(app.run_worker())
        await asyncio.sleep(0.2)
    before = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        asyncio.run(main())
        print(signal.getsignal(signal.SIGINT) is before)
    """
    assert run_python(code) == "True\nTrue\n"


def test_a_handler_that_the_program_has_installed_meanwhile_stays() -> None:
    code = """
    import signal, trio
    from repid import Connection, InMemoryServer, Repid, Router
    app, router = Repid(Connection(InMemoryServer())), Router()
    @router.actor
    async def job():
        signal.signal(signal.SIGTERM, mine)
    app.include_router(router)
    def mine(*_): ...
    async def main():
        async with app.magic():
            await app.send_message_json(channel="default", headers={"topic": "job"})
            await app.run_worker(burst=True)
    trio.run(main)
    print(signal.getsignal(signal.SIGTERM) is mine)
    """
    assert run_python(code) == "True\n"
