"""The client for blocking callers, over real threads and forks. Real time, but little of it."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from textwrap import dedent
from types import FrameType
from typing import Any

import pytest
import trio

from repid import (
    Client,
    ConfigurationError,
    Connection,
    Counts,
    DuplicateId,
    Envelope,
    InMemoryServer,
    Job,
    NotConnected,
    Outcomes,
    PayloadError,
    Publish,
    Queue,
    QueueNotDeclared,
    Repid,
    ResultError,
    Router,
    SQLiteServer,
    UsageError,
)

pytestmark = pytest.mark.real_time

AClient: Any = Client  # what a type checker would see is tested here at run time


def add_actors(app: Repid) -> Repid:
    router = Router()

    @router.actor(store_result=True)
    async def add(one: int, other: int) -> int:
        return one + other

    @router.actor
    async def silent() -> None: ...

    @router.actor(store_result=True)
    async def hang() -> None:
        await trio.sleep_forever()

    app.include_router(router)
    return app


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda client: client.run(None),
            "client.run takes an async function, which it calls where the servers are open",
        ),
        (lambda client: client.run(asyncio.sleep(0)), "leave out the call, or put it into a lambda"),
        (lambda client: client.run(lambda: 5), "returned 5"),
        (
            lambda client: client.wait("id"),
            "client.wait takes a job, or the handle that enqueueing gives, but was given 'id'",
        ),
        (lambda client: client.cancel(None), "client.cancel takes a job, or the handle that enqueueing gives"),
        (lambda _: AClient(None), "a client needs its app"),
        (lambda _: AClient("shop:app"), "the app of a client must be a Repid, but is 'shop:app'"),
    ],
)
def test_what_a_client_cannot_do_is_refused_by_name(call: Any, text: str) -> None:
    with Repid(Connection(InMemoryServer())).sync() as client, pytest.raises(ConfigurationError) as raised:
        call(client)
    assert text in str(raised.value)


@pytest.fixture
def app(tmp_path: Path) -> Repid:
    return add_actors(Repid(Connection(SQLiteServer(tmp_path / "jobs.db", synchronous="NORMAL"))))


@pytest.fixture
def client(app: Repid) -> Iterator[Client]:
    with app.sync() as client:
        yield client


def count(app: Repid, client: Client, queue: str = "default") -> Counts:
    return client.run(Queue(queue, app=app).counts)


def test_it_sends_what_the_app_sends(app: Repid, client: Client) -> None:
    sent = [
        client.send_message(channel="q", payload=b"1"),
        client.send_message_json(channel="q", payload={"a": 1}, message_id="mine"),
        *client.send_messages(channel="q", payloads=[b"1", b"2"]),
        *client.send_messages_json(channel="q", payloads=(n for n in range(3))),
    ]
    assert sent[1].id == "mine"
    assert count(app, client, "q").ready == len(sent) == 7


@pytest.mark.parametrize("payloads", ["text", b"bytes", None])
def test_one_payload_where_several_are_expected_is_refused_by_name(client: Client, app: Repid, payloads: Any) -> None:
    client.send_message(channel="q", payload=b"1")
    for send in (client.send_messages, client.send_messages_json):
        with pytest.raises(ConfigurationError, match="payloads must be a list of several"):
            send(channel="q", payloads=payloads)
    assert count(app, client, "q").ready == 1


def test_errors_come_through_bare(client: Client) -> None:
    with pytest.raises(ConfigurationError):
        client.send_message_json(channel="not a name")
    with pytest.raises(PayloadError):
        client.send_message_json(channel="q", payload=object())
    with pytest.raises(QueueNotDeclared):
        client.enqueue(Job("add", "nowhere"))
    client.send_message_json(channel="q", message_id="mine")
    with pytest.raises(DuplicateId):
        client.send_message_json(channel="q", message_id="mine")


def test_tracebacks_show_the_call_and_what_raised_and_nothing_of_how_it_came_over(client: Client) -> None:
    with pytest.raises(ConfigurationError) as error:
        client.send_message_json(channel="not a name")
    files = [Path(entry.path) for entry in error.traceback]
    package = Path(sys.modules["repid"].__file__ or "").parent
    assert [file for file in files if package not in file.parents] == [Path(__file__)]


def test_several_are_read_in_the_thread_that_calls_and_so_may_make_calls_themselves(app: Repid, client: Client) -> None:
    [add] = [actor.function for actor in app.actors() if actor.name == "add"]

    class Several:
        """No iterator, but what gives one: the rows of a query, say."""

        def __init__(self, make: Callable[[int], Any]) -> None:
            self.make = make

        def __iter__(self) -> Iterator[Any]:
            assert threading.current_thread() is threading.main_thread()
            return map(self.make, range(3))

    enqueued = Several(lambda n: client.enqueue(add, n, 1))
    with client.worker():
        assert client.gather(enqueued) == [1, 2, 3]
        assert client.gather(client.enqueue(add, n, 1) for n in range(3)) == [1, 2, 3]
        assert client.first_of(enqueued).value in {1, 2, 3}
        handles = client.enqueue_many(partial(add, other=5), Several(int))
        handles += client.enqueue_many(Several(lambda n: app.job(add, n, 5)))
        handles += client.using(store_result=True).enqueue_many(partial(add, other=5), Several(int))
        assert client.gather(handles) == [5, 6, 7] * 3
    assert len(client.send_messages(channel="q", payloads=Several(lambda _: b""))) == 3
    assert len(client.send_messages_json(channel="q", payloads=Several(int))) == 3


def test_a_result_is_waited_for(client: Client) -> None:
    job = Job("add", args={"one": 1, "other": 2}, id_="mine")
    handle = client.enqueue(job)
    with client.worker():
        assert client.result(handle, timeout=10).value == 3
    with pytest.raises(ConfigurationError, match="timeout"):
        client.result(handle, timeout=-1)
    assert client.result(handle).value == 3


def test_a_result_that_does_not_come_in_time_is_a_timeout_error(client: Client) -> None:
    handle = client.enqueue(Job("add"))
    with pytest.raises(TimeoutError, match=r"JobHandle .* has not ended within 0.01 seconds"):
        client.result(handle, timeout=0.01)


def test_a_result_that_was_not_stored_is_an_error(app: Repid, client: Client) -> None:
    job = Job("silent", app=app)
    client.enqueue(job)
    with client.worker(), pytest.raises(ResultError, match="store_result=True"):
        client.result(job, timeout=10)


def test_a_job_is_cancelled(app: Repid, client: Client) -> None:
    handle = client.enqueue(Job("hang"))
    with client.worker():
        assert client.cancel(handle)
        assert client.result(handle, timeout=10).state == "cancelled"


def test_threads_share_it(app: Repid, client: Client) -> None:
    def send() -> None:
        for n in range(20):
            client.send_message_json(channel="q", payload=n)

    threads = [threading.Thread(target=send) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(app, client, "q").ready == 1000


def test_threads_that_come_first_open_it_once(app: Repid) -> None:
    client = app.sync()
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def send() -> None:
        start.wait()
        try:
            client.send_message_json(channel="q")
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [thread.name for thread in threading.enumerate()].count("repid client") == 1
    client.close()


def test_it_opens_at_the_first_call_and_anew_after_it_was_closed(app: Repid) -> None:
    client = app.sync()
    assert not client.is_open
    for _ in range(2):
        client.send_message_json(channel="q")
        assert client.is_open
        client.close()
        client.close()
        assert not client.is_open
    assert not app.server().is_connected
    assert count(app, client, "q").ready == 2
    client.close()


def test_what_opening_raises_is_raised_and_the_next_call_tries_again(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.mkdir()
    client = Repid(Connection(SQLiteServer(path))).sync()
    with pytest.raises(ConfigurationError, match="is a folder"):
        client.send_message_json(channel="q")
    path.rmdir()
    client.send_message_json(channel="q")
    client.close()


def test_closing_ends_a_waiting_call(client: Client) -> None:
    handle = client.enqueue(Job("add"))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            client.result(handle)
        except NotConnected as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.1)
    client.close()
    thread.join(5)
    assert [str(error) for error in errors] == ["the client was closed before this call was over"]


def test_closing_ends_a_worker_that_another_thread_runs_by_the_client(
    app: Repid, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repid.blocking.loop.CLOSING_TIME", 0.0)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            client.run(app.run_worker)
        except BaseException as error:  # noqa: BLE001  a group of cancellations, say
            errors.append(error)

    thread = threading.Thread(target=work)
    handle = client.enqueue(Job("add", args={"one": 1, "other": 2}))
    thread.start()
    assert client.result(handle, timeout=10).value == 3
    client.close()
    thread.join(5)
    assert [(type(error), str(error)) for error in errors] == [
        (NotConnected, "the client was closed before this call was over")
    ]


@pytest.mark.parametrize("end", ["stop", "cut_short", "drain"])
def test_a_worker_is_stopped_from_the_thread_that_has_its_handle(client: Client, end: str) -> None:
    with client.worker() as worker:
        getattr(worker, end)()
        client.run(worker.wait)
    getattr(worker, end)()
    client.close()
    getattr(worker, end)()
    assert worker.statistics().state == "ended"


async def test_in_a_thread_that_runs_trio_it_is_refused(app: Repid) -> None:
    with pytest.raises(UsageError, match="would stop the trio loop"):
        app.sync().send_message_json(channel="q")
    with pytest.raises(UsageError, match="would stop the trio loop"):
        app.run()


def test_in_a_thread_that_runs_asyncio_it_is_refused(app: Repid) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="would stop the asyncio loop"):
            app.sync().send_message_json(channel="q")
        with pytest.raises(UsageError, match="would stop the asyncio loop"):
            app.run()

    asyncio.run(main())


def test_a_sync_actor_calls_through_the_worker_that_runs_it(app: Repid) -> None:
    client = app.sync()
    router = Router()

    @router.actor
    def first() -> None:
        client.send_message_json(channel="default", headers={"topic": "silent"})

    app.include_router(router)
    client.run(Queue(app=app).declare)
    client.enqueue(Job("first"))
    client.close()
    assert app.run(messages_limit=2).succeeded == 2
    assert not client.is_open


def test_in_memory_the_client_runs_the_worker() -> None:
    app = add_actors(Repid(Connection(InMemoryServer())))
    with app.sync() as client, client.worker():
        handle = client.enqueue(Job("add", args={"one": 1, "other": 2}))
        assert client.result(handle, timeout=10).value == 3


def test_what_keeps_a_worker_from_starting_is_raised(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="tasks_limit"), client.worker(tasks_limit=0):
        raise AssertionError("it has started")


def test_middlewares_see_the_context_of_the_caller(tmp_path: Path) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    seen = []

    def note(call_next: Publish, envelopes: Sequence[Envelope]) -> Awaitable[Outcomes]:
        seen.append(request.get())
        return call_next(envelopes)

    app = Repid(Connection(SQLiteServer(tmp_path / "jobs.db")), producer_middlewares=[note])
    with app.sync() as client:
        request.set("mine")
        client.send_message_json(channel="q")
    assert seen == ["mine"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_opens_its_own_and_the_parent_goes_on(app: Repid, client: Client) -> None:
    client.send_message_json(channel="q")
    waiting = client.enqueue(Job("add", args={"one": 1, "other": 2}, app=app))
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(client.result(waiting, timeout=10).value))
    thread.start()
    thread.join(0.1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            client.send_message_json(channel="q")
            client.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    with client.worker():
        thread.join(10)
    assert results == [3]
    assert count(app, client, "q").ready == 2


SCRIPT = """
import atexit, multiprocessing, os, signal, sys, threading, time
from repid import Connection, Job, Queue, Repid, Router, SQLiteServer, UsageError
app, router = Repid(Connection(SQLiteServer("jobs.db"))), Router()
@router.actor(store_result=True)
async def add(): ...
@router.actor(queue="q")
async def never_run(): ...  # without an actor that reads "q" a warning would be printed
app.include_router(router)
client = app.sync()
def send():
    client.send_message_json(channel="q")
def count():
    return client.run(Queue("q", app=app).counts).ready
def attempt(function=send):
    try:
        function()
    except UsageError as error:
        print(error)
"""


def run_program(folder: Path, code: str) -> str:
    """What a program prints that goes on after SCRIPT. It must end by itself, without a warning, its client closed."""
    program = folder / "program.py"
    program.write_text(SCRIPT + dedent(code), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-W", "ignore:.*fork:DeprecationWarning", str(program)],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (folder / "jobs.db-wal").exists()
    return done.stdout


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit()",
        "threading.Thread(target=send).start()",
        "threading.Thread(target=lambda: [time.sleep(0.3), send(), time.sleep(0.3), send()]).start()",
        "atexit.register(client.close)",
    ],
    ids=["end", "exit", "thread", "late thread", "close"],
)
def test_a_client_that_nobody_closed_closes_at_the_exit_of_the_process(tmp_path: Path, end: str) -> None:
    assert run_program(tmp_path, f"send()\n{end}") == ""


def test_calls_that_wait_in_threads_when_the_main_one_ends_are_carried_out(tmp_path: Path) -> None:
    code = """
        @router.actor
        def late():
            threading.main_thread().join()
            return 5
        def ask():
            with client.worker():
                asking.set()
                print(client.call(late))
                print(client.call(late))
        asking = threading.Event()
        threading.Thread(target=ask).start()
        asking.wait()
        client.enqueue(late)
    """
    assert run_program(tmp_path, code) == "5\n5\n"


def test_at_exit_a_call_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    code = """
        class Last:
            def __del__(self):
                attempt()
        last = Last()
        atexit.register(attempt)
        send()
    """
    assert run_program(tmp_path, code).count("the process is ending") == 2


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_call_in_a_signal_handler_is_carried_out_or_refused_and_never_hangs(tmp_path: Path) -> None:
    code = """
        fates, going_on = [], True
        def on_signal(*_):
            try:
                send()
                fates.append("sent")
            except UsageError as error:
                fates.append("interrupted another one" in str(error))
            if going_on:
                signal.setitimer(signal.ITIMER_REAL, 0.0007)
        signal.signal(signal.SIGALRM, on_signal)
        signal.setitimer(signal.ITIMER_REAL, 0.0007)
        for _ in range(20):
            for _ in range(10):
                send()
            client.close()
        going_on = False
        time.sleep(0.1)
        print(count() - fates.count("sent"), True in fates, False in fates)
    """
    assert run_program(tmp_path, code) == "200 True False\n"


def test_a_call_in_a_finalizer_is_carried_out_or_refused_and_never_hangs(tmp_path: Path) -> None:
    code = """
        import gc
        fates = []
        class Finalized:
            def __init__(self):
                self.cycle = self
            def __del__(self):
                try:
                    send()
                    fates.append("sent")
                except UsageError as error:
                    fates.append(str(error))
        gc.set_threshold(20)
        for _ in range(50):
            for _ in range(5):
                Finalized()
                send()
            client.close()
        gc.collect()
        print(count() - fates.count("sent"), len(fates))
    """
    assert run_program(tmp_path, code) == "250 250\n"


def test_a_finalizer_that_runs_in_a_thread_of_repid_is_refused(app: Repid, client: Client) -> None:
    """The garbage collector runs them in whatever thread it is needed."""
    [name] = [thread.name for thread in threading.enumerate() if thread.name.startswith("repid sqlite")]
    refusals: list[str] = []

    def finalize() -> None:
        try:
            client.send_message_json(channel="q")
        except UsageError as error:
            refusals.append(str(error))

    thread = threading.Thread(target=finalize, name=name)
    thread.start()
    thread.join()
    assert ["a thread of repid's own" in refusal for refusal in refusals] == [True]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals on Windows")
def test_ctrl_c_ends_a_wait_and_the_client_goes_on(tmp_path: Path) -> None:
    code = """
        handle = client.enqueue(Job("add"))
        try:
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            client.result(handle)
        except KeyboardInterrupt:
            send()
            print(count(), client.run(Queue(app=app).counts).ready)
    """
    assert run_program(tmp_path, code) == "1 1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_children_of_a_preloaded_program_send_and_end_as_processes_do(tmp_path: Path) -> None:
    """As servers with a pre-fork model do it."""
    code = """
        send()
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                threads = [threading.Thread(target=send) for _ in range(3)]
                for thread in threads:
                    thread.start()
                send()
                sys.exit()
            children.append(child)
            send()
        print([os.waitpid(child, 0)[1] for child in children], count())
    """
    assert run_program(tmp_path, code) == "[0, 0, 0] 16\n"


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_of_multiprocessing_send(tmp_path: Path, method: str) -> None:
    code = f"""
        if __name__ == "__main__":
            send()
            context = multiprocessing.get_context({method!r})
            process = context.Process(target=send)
            process.start()
            send()
            process.join()
            with context.Pool(2) as pool:
                for _ in range(2):
                    pool.apply(send)
                pool.close()
                pool.join()
            print(process.exitcode, count())
    """
    assert run_program(tmp_path, code) == "0 5\n"


def test_run_owns_its_trio_run(app: Repid) -> None:
    with app.sync() as client:
        client.send_message_json(channel="default", headers={"topic": "silent"})
    assert app.run(burst=True).succeeded == 1


def test_run_refuses_several_processes_where_they_share_nothing() -> None:
    app, router = Repid(Connection(InMemoryServer())), Router()

    @router.actor
    def idle() -> None: ...

    app.include_router(router)
    with pytest.raises(ConfigurationError, match="4 processes need a server that processes share"):
        app.run(processes=4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"server_name": "other", "max_jobs": 1}, "the app has no server named 'other'"),
        ({"processes": 0}, "processes must be a whole number of at least 1"),
        ({"processes": float("inf")}, "processes must be finite"),
        ({"max_jobs": 0}, "max_jobs must be a whole number of at least 1"),
        ({"max_memory": "512MB"}, "max_memory must be a whole number"),
        ({"reload": 1}, "reload must be True or False"),
        ({"tasks": 1}, r"app.run\(\) has no option 'tasks'"),
        ({"process": 2}, r"app.run\(\) has no option 'process' \(did you mean 'processes'"),
    ],
)
def test_run_says_which_option_is_wrong(app: Repid, options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        app.run(**options)  # type: ignore[arg-type]


def test_where_no_thread_can_be_started_the_first_call_says_so_and_a_later_one_works() -> None:
    program = """
        import resource, threading
        from repid import Connection, InMemoryServer, Repid, Router, UsageError

        router = Router(channel="q")

        @router.actor
        def note() -> None: ...

        app = Repid(Connection(InMemoryServer()))
        app.include_router(router)
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.RLIM_INFINITY))
        threading.stack_size(8 << 30)
        client = app.sync()
        try:
            client.send_message_json(channel="q")
        except UsageError as error:
            print(error)
        threading.stack_size(0)
        client.send_message_json(channel="q")
        client.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "the client cannot open, because Python lets no thread start (can't start new thread)" in done.stdout


def test_ctrl_c_ends_a_call_that_waits_and_is_raised_where_it_waited(client: Client) -> None:
    handle = client.enqueue(Job("nobody"))
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        client.wait(handle, timeout=30)
    timer.join()
    assert handle.status().state == "ready"


def test_ctrl_c_anywhere_in_a_call_leaves_the_thread_able_to_make_the_next_one() -> None:
    places: list[KeyboardInterrupt | None] = [None]  # kept with their frames, as interactive Python keeps the latest
    with Repid(Connection(InMemoryServer())).sync() as client:
        call = partial(client.run, trio.lowlevel.checkpoint)
        while (interrupt := _interrupted(call, len(places))) is not None:
            places.append(interrupt)
            call()
    assert len(places) > 10


_MODULES_OF_A_CALL = {"repid.blocking.client", "repid.blocking.loop", "repid.may_block", "contextlib"}


def _interrupted(call: Callable[[], object], at: int) -> KeyboardInterrupt | None:
    """Ctrl-C comes in the code of the client, at the place of this number. None: there are fewer places.

    Python looks for signals where a function begins and where one written in C has returned.
    """
    to_come = at

    def look_for_signals(frame: FrameType, event: str, _: object) -> None:
        nonlocal to_come
        if event in {"call", "c_return"} and frame.f_globals["__name__"] in _MODULES_OF_A_CALL:
            to_come -= 1
            if to_come == 0:
                raise KeyboardInterrupt

    try:
        sys.setprofile(look_for_signals)
        call()
    except KeyboardInterrupt as interrupt:
        return interrupt
    finally:
        sys.setprofile(None)
    return None


def test_a_job_takes_no_arguments_beside_its_own() -> None:
    with Repid(Connection(InMemoryServer())).sync() as client:
        enqueue: Any = client.enqueue
        for given, named in (((3,), {}), ((), {"a": 3})):
            with pytest.raises(ConfigurationError, match=r"Job\('add', queue='default'\) has arguments of its own"):
                enqueue(Job("add", args={"a": 1}), *given, **named)
