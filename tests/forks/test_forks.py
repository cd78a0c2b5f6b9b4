"""Forks in programs that have the app open: the short form of `python -m tests.forks`, and single cases."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from repid.process import Forks

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]

ROOT = Path(__file__).parents[2]

PREFACE = """
import asyncio, logging, os, signal, subprocess, sys, threading, time
import trio
from repid import Connection, InMemoryServer, Queue, Repid, SQLiteServer
app = Repid(Connection(SQLiteServer("jobs.db", synchronous="NORMAL")))
client = app.sync()
logging.getLogger("repid").setLevel("ERROR")  # nobody reads the channel, which is told
def send():
    client.send_message_json(channel="q")
def count():
    return client.run(Queue("q", app=app).counts).ready
def fork(do):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(20)
            do()
            status = 0
        finally:
            os._exit(status)
    return child
def wait(child):
    return os.waitpid(child, 0)[1]
"""


def run_program(folder: Path, code: str) -> str:
    """What a program prints that goes on after PREFACE. It must end by itself and leave nothing on standard error."""
    program = PREFACE + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:.*fork:DeprecationWarning", "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("host", ["client", "trio", "asyncio"])
def test_threads_that_fork_lose_and_double_no_message_and_hang_no_child(host: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.forks", "--forks", "9", "--host", host],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "12 forks" in done.stdout  # four for each of three threads
    assert "every message is there once" in done.stdout


def test_a_fork_closes_no_loop_and_ends_no_call_of_another_thread(tmp_path: Path) -> None:
    code = """
        async def slow():
            await trio.sleep(1)
            return await Queue("q", app=app).counts()
        send()
        results = []
        thread = threading.Thread(target=lambda: results.append(client.run(slow)))
        thread.start()
        loops = [one for one in threading.enumerate() if one.name == "repid client"]
        statuses = [wait(fork(send)) for _ in range(3)]
        thread.join()
        print(statuses, results[0].ready, loops == [one for one in threading.enumerate() if one.name == "repid client"])
    """
    assert run_program(tmp_path, code) == "[0, 0, 0] 4 True\n"


def test_a_child_forked_by_async_code_sends_in_its_only_thread(tmp_path: Path) -> None:
    code = """
        async def main():
            async with app.magic():
                await app.send_message_json(channel="q")
                status = wait(fork(send))
                await app.send_message_json(channel="q")
                print(status, (await Queue("q").counts()).ready)
        trio.run(main)
        asyncio.run(main())
    """
    assert run_program(tmp_path, code) == "0 3\n0 6\n"


def test_a_child_forked_in_a_block_of_the_client_leaves_the_block_as_its_parent_does(tmp_path: Path) -> None:
    code = """
        with app.sync() as mine, mine.worker():
            send()
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                send()
        if child == 0:
            send()
            sys.exit()
        print(wait(child), count())
    """
    assert run_program(tmp_path, code) == "0 3\n"


def test_a_program_with_a_function_before_exec_keeps_the_app_open(tmp_path: Path) -> None:
    code = """
        send()
        for _ in range(3):
            subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None, check=True)
            send()
        print(count())
    """
    assert run_program(tmp_path, code) == "4\n"


def test_workers_of_a_server_that_preloads_the_program_send_while_it_goes_on(tmp_path: Path) -> None:
    code = """
        def work():
            threads = [threading.Thread(target=send) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            client.close()
        client.open()
        children = []
        for _ in range(4):
            children.append(fork(work))
            send()
        print([wait(child) for child in children], count())
    """
    assert run_program(tmp_path, code) == "[0, 0, 0, 0] 20\n"


RUN_OF_A_FORK = """
from repid import Router

async def step():
    await (asyncio.sleep(0.01) if {host!r} == "asyncio" else trio.sleep(0.01))

def end():
    if {end!r} == "exit":
        sys.exit(4)
    if {end!r} == "raise":
        sys.stderr = open(os.devnull, "w")
        raise ValueError
    if {end!r} == "say":
        sys.stderr = sys.stdout
        sys.exit("child")

def tell(child):
    print("child", os.waitstatus_to_exitcode(wait(child)), flush=True)

router = Router(channel="q")
parent = os.getpid()

@router.actor
def in_a_thread():
    child = os.fork()
    tell(child) if child else end()

@router.actor
async def in_the_first_step():
    child = os.fork()
    tell(child) if child else end()

@router.actor
async def in_a_later_step():
    await step()
    child = os.fork()
    tell(child) if child else end()

@router.actor
async def that_waits():
    child = os.fork()
    if not child:
        await step()
        end()
    tell(child)

@router.actor
async def other():
    print("parent" if os.getpid() == parent else "child", flush=True)

app.include_router(router)

async def main():
    async with app.magic():
        for actor in ({place}, other):
            await app.enqueue(actor)
        print((await app.run_worker(burst=True, tasks_limit=1)).succeeded, flush=True)

asyncio.run(main()) if {host!r} == "asyncio" else trio.run(main)
"""


@pytest.mark.parametrize("host", ["trio", "asyncio"])
@pytest.mark.parametrize(
    ("place", "end", "status"),
    [
        ("in_a_thread", "exit", 4),
        ("in_a_thread", "return", 0),
        ("in_the_first_step", "exit", 4),
        ("in_the_first_step", "raise", 1),
        ("in_a_later_step", "say", 1),
        ("in_a_later_step", "return", 0),
    ],
)
def test_a_child_that_an_actor_forks_ends_with_the_actor_and_runs_nothing_else(
    tmp_path: Path, host: str, place: str, end: str, status: int
) -> None:
    said = run_program(tmp_path, RUN_OF_A_FORK.format(host=host, place=place, end=end)).split()
    if end == "say":
        assert said.pop(0) == "child"
    assert said == ["child", str(status), "parent", "2"]


def test_a_child_that_an_actor_forks_ends_where_it_would_wait_for_the_loop_of_its_parent(tmp_path: Path) -> None:
    said = run_program(tmp_path, RUN_OF_A_FORK.format(host="trio", place="that_waits", end="exit")).split()
    assert said == ["child", "0", "parent", "2"]


def test_a_child_of_a_child_sends(tmp_path: Path) -> None:
    code = """
        def beget():
            send()
            if wait(fork(send)):
                os._exit(2)
            send()
        send()
        print(wait(fork(beget)), count())
    """
    assert run_program(tmp_path, code) == "0 4\n"


def test_a_child_opens_a_server_in_memory_anew(tmp_path: Path) -> None:
    code = """
        memory = Repid(Connection(InMemoryServer())).sync()
        memory.send_message_json(channel="q")
        print(wait(fork(lambda: memory.send_message_json(channel="q"))))
    """
    assert run_program(tmp_path, code) == "0\n"


def test_a_waiting_consumer_gets_messages_after_a_fork_and_stays_registered(tmp_path: Path) -> None:
    code = """
        from repid import Router
        router = Router(queue="q")
        got = []
        @router.actor
        async def note():
            got.append(1)
        app.include_router(router)
        async def main():
            async with app.magic(), trio.open_nursery() as nursery:
                worker = await nursery.start(app.run_worker)
                for number in range(3):
                    await trio.sleep(0.05)  # it waits now
                    status = wait(fork(lambda: client.send_message_json(channel="q", headers={"topic": "note"})))
                    with trio.fail_after(10):
                        while len(got) <= number:
                            await trio.sleep(0.01)
                worker.stop()
            print(status, len(got))
        trio.run(main)
    """
    assert run_program(tmp_path, code) == "0 3\n"


def test_a_child_refuses_a_file_that_could_not_be_closed_before_the_fork(tmp_path: Path) -> None:
    """A thread that is in the middle of a call of SQLite's for longer than a fork waits."""
    code = """
        import repid.process
        from repid import UsageError
        repid.process.HOLDING_TIME = 0.2
        go_on = threading.Event()
        def hold(store):
            go_on.wait()
        def refused():
            try:
                send()
            except UsageError as error:
                print("was in use in the very moment" in str(error), flush=True)
        send()
        thread = threading.Thread(target=client.run, args=[lambda: app.server()._driver._file.look(hold)])
        thread.start()
        time.sleep(0.2)
        print(wait(fork(refused)), flush=True)
        go_on.set()
        thread.join()
        send()
        print(count())
    """
    assert run_program(tmp_path, code) == "True\n0\n2\n"


def test_a_file_that_was_replaced_while_the_process_forked_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    code = """
        from repid import BrokerUnavailable
        send()
        os.register_at_fork(after_in_parent=lambda: os.rename("jobs.db", "gone.db"))
        wait(fork(lambda: None))
        try:
            send()
        except BrokerUnavailable as error:
            print("removed or replaced" in str(error))
        os.rename("gone.db", "jobs.db")
        time.sleep(0.3)
        send()
        print(count())
    """
    assert run_program(tmp_path, code) == "True\n2\n"


def test_a_fork_waits_for_what_is_held_and_what_wants_to_be_held_waits_for_the_fork() -> None:
    forks, steps, asked = Forks(), [], threading.Event()

    def hold() -> None:
        with forks.holding("it", asked.set):
            steps.append("held")
            began.set()
            asked.wait(10)
            steps.append("left")
        with forks.holding("it", asked.set):
            steps.append("held again")

    began = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    began.wait(10)
    forks.before()
    steps.append("forked")
    holder.join(0.05)
    assert steps == ["held", "left", "forked"]
    forks.after_in_parent()
    holder.join(10)
    assert steps == ["held", "left", "forked", "held again"]
    assert not forks.is_wanted


def test_a_fork_within_a_fork_of_the_same_thread_does_not_wait_for_itself() -> None:
    """As a signal handler makes it that interrupts the first one."""
    forks = Forks()
    forks.before()
    forks.before()
    forks.after_in_parent()
    assert forks.is_wanted
    forks.after_in_parent()
    assert not forks.is_wanted


def test_the_file_is_whole_after_all_that(tmp_path: Path) -> None:
    run_program(tmp_path, "for _ in range(10): send(); wait(fork(send))")
    file = sqlite3.connect(tmp_path / "jobs.db")
    assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    file.close()
