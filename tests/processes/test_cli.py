"""The command line: what it teaches, and one clear line for what is wrong with its use."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio
from engines.postgres import Postgres

from repid import Client, Envelope, Job, Queue, SQLiteServer, __version__
from repid.schedule import ended, paused

from .aids_supervisor import Program, until

pytestmark = pytest.mark.real_time


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def repid(program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command line in this process, which takes less time: exit code, output, errors."""
    from repid.__main__ import main

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repid", *arguments])
        with pytest.raises(SystemExit) as error:
            main()
        code = error.value.code
        assert code is None or isinstance(code, int)
        return code or 0, *capsys.readouterr()

    monkeypatch.chdir(program.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield run
    sys.modules.pop("jobs", None)


def start_repid(program: Program, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output, errors of a process."""
    done = subprocess.run(
        [sys.executable, "-m", "repid", *arguments],
        cwd=program.folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        encoding="utf-8",
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_help_teaches_with_examples(repid: Command) -> None:
    code, output, _ = repid("--help")
    assert code == 0
    assert "repid worker shop.jobs:app --processes 4" in output


def test_the_help_of_the_worker_tells_the_exit_codes(repid: Command) -> None:
    code, output, _ = repid("worker", "--help")
    assert code == 0
    assert "repid worker shop.jobs:app --burst " in output
    assert "Exit codes:" in output


@pytest.mark.parametrize(
    "command", [["queues", "failing_shop:app"], ["worker", "failing_shop:app"], ["move", "failing_shop:app", "new.db"]]
)
def test_what_a_module_raises_is_shown_from_where_the_program_begins(
    program: Program, repid: Command, command: list[str]
) -> None:
    folder = program.folder
    (folder / "failing_inner.py").write_text("def connect():\n    raise OSError('redis://u:s3cret@h')\nconnect()\n")
    (folder / "failing_shop.py").write_text("import failing_inner\n")
    code, _, errors = repid(*command)
    assert code == 1
    places = [
        f'File "{folder / "failing_shop.py"}", line 1, in <module>',
        f'File "{folder / "failing_inner.py"}", line 3, in <module>',
        f'File "{folder / "failing_inner.py"}", line 2, in connect',
    ]
    assert re.findall(r"File .*", errors) == places
    assert errors.endswith("OSError: redis://u:***@h\nrepid: failing_shop:app cannot be loaded: see above\n")
    (folder / "wrong.py").write_text("app = (\n")
    code, _, errors = repid("queues", "wrong:app")
    assert (code, errors.count("File "), "SyntaxError: " in errors) == (1, 1, True)
    assert str(folder / "wrong.py") in errors


def test_the_version_is_told(repid: Command) -> None:
    assert repid("--version") == repid("version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere:app"], "there is no module nowhere: looked in "),
        (["nowhere.deep:app"], "there is no module nowhere.deep (there is no nowhere): looked in "),
        (["jobs:ap"], "module 'jobs' has no 'ap' (did you mean 'app'?)"),
        (["jobs:celery"], "module 'jobs' has no 'celery'; its apps are: app"),
        (["jobs"], "'jobs' does not name an app: it takes module:attribute, such as jobs:app"),
        (["jobs.app"], "'jobs.app' does not name an app: it takes module:attribute, such as jobs:app"),
        (["nowhere"], "'nowhere' does not name an app: it takes module:attribute, such as myproject.jobs:app"),
        (
            ["/srv/shop/jobs.py"],
            "'/srv/shop/jobs.py' is a file, not a module: run this in the folder '/srv/shop', and ",
        ),
        (["redis://:secret@db/0"], "redis://… is the address of a server, and what is named here is an app: give the "),
        (["./jobs.py:app"], "'./jobs.py' is a file, not a module: did you mean 'jobs:app'?"),
        (["shop/jobs.py"], "'shop/jobs.py' is a file, not a module: did you mean 'shop.jobs:app'?"),
        ([".jobs:app"], "'.jobs:app' does not name an app"),
        (
            ["jobs:router"],
            "'jobs:router' is a Router, and what runs is an app: add its actors to a Repid, with app.inc",
        ),
        (
            ["jobs:worker"],
            "'jobs:worker' is a Worker, and what runs is an app: add its actors to a Repid, with app.inc",
        ),
        (["jobs:empty"], "the app 'jobs:empty' has no actors to run: add them to it with app.include_router(router)"),
        (["jobs:empty", "--processes", "2"], "the app 'jobs:empty' has no actors to run"),
        (
            ["jobs:make"],
            "'jobs:make' is a function that cannot be called without arguments (missing a required argument: 'port')",
        ),
        (["jobs:main"], "'jobs:main' is an async function, and would have to be awaited"),
        (["jobs:Router"], "'jobs:Router' is no Repid app, but <class "),
        (["jobs:app", "--max-memory", "1MB"], "max_memory of 1048576 bytes is less than the app takes"),
    ],
)
def test_wrong_use_is_one_clear_line_and_exit_code_2(
    program: Program, repid: Command, arguments: list[str], text: str
) -> None:
    program.add(
        "from repid import Worker\nworker, empty = Worker(app=app), Repid(Connection(SQLiteServer(HERE / 'jobs.db')))\n"
        "def make(port): ...\nasync def main(): ..."
    )
    code, output, errors = repid("worker", *arguments)
    assert (code, output) == (2, "")
    assert errors.startswith(f"repid: {text}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", ["worker", "schedules", "queues"])
def test_objects_of_a_program_that_raise_when_they_are_asked_are_no_apps(
    program: Program, repid: Command, command: str
) -> None:
    program.add("""
class Proxy:
    def __getattr__(self, name):
        raise RuntimeError("there is no request")
from repid import INJECTED as injected
request = Proxy()
""")
    assert repid(command, "jobs:celery") == (2, "", "repid: module 'jobs' has no 'celery'; its apps are: app\n")
    code, _, errors = repid(command, "jobs:request")
    assert (code, errors.startswith("repid: 'jobs:request' is no Repid app, but <")) == (2, True)


@pytest.mark.parametrize("arguments", [["worker"], ["queues"], ["dead", "default"], ["requeue", "default"]])
def test_a_server_that_the_app_does_not_have_is_one_clear_line_and_exit_code_2(
    repid: Command, arguments: list[str]
) -> None:
    command, *others = arguments
    text = "repid: the app has no server named 'defualt' (did you mean 'default'?)\n"
    assert repid(command, "jobs:app", *others, "--server", "defualt") == (2, "", text)


def test_an_error_inside_the_module_shows_its_traceback(program: Program) -> None:
    (program.folder / "broken.py").write_text("import not_there", encoding="utf-8")
    code, _, errors = start_repid(program, "worker", "broken:app")
    assert code == 1
    assert "ModuleNotFoundError: No module named 'not_there'" in errors


def test_a_missing_extra_is_named(program: Program) -> None:
    (program.folder / "typer.py").write_text("raise ModuleNotFoundError(name='typer')", encoding="utf-8")
    code, _, errors = start_repid(program, "--help")
    assert (code, errors) == (2, "repid: the command line needs typer: pip install 'repid-trio[cli]'\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals on Windows")
@pytest.mark.parametrize("imported", ["typer", "interrupted_shop"])
@pytest.mark.parametrize("command", ["queues", "worker"])
def test_ctrl_c_while_something_is_imported_ends_quietly(program: Program, imported: str, command: str) -> None:
    (program.folder / f"{imported}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    assert start_repid(program, command, "interrupted_shop:app") == (130, "", "")


def test_one_worker_runs_until_nothing_is_left(program: Program) -> None:
    program.send("slow", [{"number": 1, "seconds": 0}])
    code, _, errors = start_repid(program, "worker", "jobs:app", "--burst")
    assert code == 0
    assert "the worker has started" in errors
    assert "the worker has ended: 1 processed, 1 succeeded" in errors


def test_a_worker_on_a_server_in_memory_is_warned_of(
    program: Program, repid: Command, caplog: pytest.LogCaptureFixture
) -> None:
    program.add("""
        from repid import InMemoryServer
        alone = Repid()
        alone.servers.register_server("default", InMemoryServer())
        alone.include_router(router)
    """)
    assert repid("worker", "jobs:alone", "--burst")[0] == 0
    assert (
        caplog.text.count("InMemoryServer is in the memory of this process: no other process can send to this worker")
        == 1
    )
    caplog.clear()
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    assert "in the memory" not in caplog.text


def test_every_queue_of_the_server_is_shown_when_asked(program: Program, repid: Command) -> None:
    program.send("slow", [{"number": 1, "seconds": 0}])
    program.add("""
        import trio
        async def declare():
            async with app.magic():
                await app.server().declare(["unread"])
        trio.run(declare)
    """)
    assert list(json.loads(repid("queues", "jobs:app", "--all", "--json")[1])) == ["default", "unread"]
    assert list(json.loads(repid("queues", "jobs:app", "--json")[1])) == ["default"]


def test_queues_are_shown_with_their_readers_in_all_processes(program: Program, repid: Command) -> None:
    server = SQLiteServer(program.folder / "jobs.db")

    async def look() -> list[str]:
        await server.declare(["default", "unread"])
        async with server.consume({"default": None}), server.consume({"default": frozenset({"slow"})}):
            return [
                (await trio.to_thread.run_sync(partial(repid, "queues", "jobs:app", "--all", *options)))[1]
                for options in (["--json"], [])
            ]

    async def main() -> list[str]:
        async with server.connection():
            return await look()

    as_json, table = trio.run(main)
    assert {name: each["readers"] for name, each in json.loads(as_json).items()} == {"default": 2, "unread": 0}
    assert "readers" in table


def test_runs_are_logged_when_asked(program: Program, repid: Command, caplog: pytest.LogCaptureFixture) -> None:
    program.send("slow", [{"number": 1, "seconds": 0}])
    caplog.set_level(logging.INFO)
    assert repid("worker", "jobs:app", "--burst", "--log-runs")[0] == 0
    assert "actor 'slow' ended after" in caplog.text


def test_the_bounds_of_queues_are_shown_where_there_are_any(program: Program, repid: Command) -> None:
    program.send("slow", [])
    assert "bounds" not in repid("queues", "jobs:app")[1]
    with program.app.sync() as client:
        client.run(Queue("default", max_size=2, when_full="drop_oldest", app=program.app).declare)
    program.send("slow", [{"number": n, "seconds": 0} for n in range(3)])
    assert "max_size=2, drop_oldest, 1 dropped" in repid("queues", "jobs:app")[1]
    [counts] = json.loads(repid("queues", "jobs:app", "--json")[1]).values()
    assert (counts["bounds"]["max_size"], counts["dropped"]) == (2, 1)


def test_schedules_are_listed_with_their_rules_and_states(program: Program, repid: Command) -> None:
    program.add("""
        @router.actor(every=600)
        async def often() -> None: ...

        @router.actor(cron="30 4 * * *", timezone="Europe/Berlin")
        async def nightly() -> None: ...

        @router.actor(every=60)
        async def gone() -> None: ...
    """)
    repid("worker", "jobs:app", "--burst")
    server = SQLiteServer(program.folder / "jobs.db")

    async def alter() -> None:
        async with server.connection():
            found = {stored.schedule.name: stored for stored in await server.schedules()}
            gone = found["default:gone"]
            assert await server.replace_schedule(gone, ended(gone, 86400.0))
            nightly = found["default:nightly"]
            assert await server.replace_schedule(nightly, paused(nightly))

    trio.run(alter)
    code, output, _ = repid("schedules", "jobs:app")
    assert code == 0
    rows = {
        line.split()[1]: " ".join(line.replace("│", "").split()) for line in output.splitlines() if "default:" in line
    }
    assert re.fullmatch(r"default:often often default every 600 s \d{4}-\S+ \d\S+Z 0 0", rows["default:often"])
    assert rows["default:nightly"] == "default:nightly nightly default 30 4 * * * Europe/Berlin 0 0 paused"
    assert rows["default:gone"] == "default:gone gone default every 60 s 0 0 ended 1970-01-02 00:00:00Z"


def test_queues_dead_and_requeue(program: Program, repid: Command) -> None:
    program.send("slow", [{"number": "[one]"}])
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    code, output, _ = repid("queues", "jobs:app", "--json")
    assert code == 0
    assert json.loads(output) == {
        "default": {
            "ready": 0,
            "scheduled": 0,
            "leased": 0,
            "dead": 1,
            "paused": False,
            "next_enqueued_at": None,
            "bounds": None,
            "dropped": 0,
            "readers": 0,
        }
    }
    assert "default" in repid("queues", "jobs:app")[1]
    code, output, _ = repid("dead", "jobs:app", "default")
    assert code == 0
    assert "PayloadError" in output
    assert len(re.findall(r"\d s ago", output)) == 2  # enqueued and died
    assert repid("requeue", "jobs:app", "default", "unknown")[0] == 2
    assert repid("requeue", "jobs:app", "default")[1] == "1 message(s) are ready again\n"
    assert program.counts() == (1, 0)
    assert re.search(r"\d s ago", repid("queues", "jobs:app")[1])
    [counts] = json.loads(repid("queues", "jobs:app", "--json")[1]).values()
    assert 0 <= time.time() - counts["next_enqueued_at"] < 60


@pytest.mark.parametrize(
    ("moment", "told"),
    [(100.0, "0 s ago"), (41.0, "59 s ago"), (40.0, "1 min ago"), (-7100.0, "2 h ago"), (-2e5, "2 d ago"), (None, "")],
)
def test_how_long_ago_is_told_in_the_largest_unit(moment: float | None, told: str) -> None:
    from repid.cli.printing import ago

    assert ago(moment, 100.0) == told


def test_queues_dead_and_requeue_look_after_the_server_that_is_named(program: Program, repid: Command) -> None:
    program.add("app.servers.register_server('other', SQLiteServer(HERE / 'other.db'))")
    program.app.servers.register_server("other", SQLiteServer(program.folder / "other.db"))
    with program.app.sync() as client:
        client.send_message_json(channel="default", payload={}, headers={"topic": "slow"}, server_name="other")
    assert repid("worker", "jobs:app", "--burst", "--server", "other")[0] == 0
    assert "PayloadError" in repid("dead", "jobs:app", "default", "--server", "other")[1]
    assert "PayloadError" not in repid("dead", "jobs:app", "default")[1]
    assert repid("requeue", "jobs:app", "default")[1] == "0 message(s) are ready again\n"
    assert repid("requeue", "jobs:app", "default", "--server", "other")[1] == "1 message(s) are ready again\n"
    counts = json.loads(repid("queues", "jobs:app", "--json", "--server", "other")[1])
    assert (counts["default"]["ready"], counts["default"]["dead"]) == (1, 0)


def test_what_stays_dead_is_told_in_readable_lines(program: Program, repid: Command) -> None:
    def send(client: Client, *names: str) -> None:
        envelopes = [Envelope(name, "default", b"{}", "application/json", {"topic": "slow"}) for name in names]
        client.run(partial(program.app.server().declare, ["default"]))
        client.run(partial(program.app.server().publish, envelopes))

    with program.app.sync() as client:
        send(client, "one", "two\x1b[2J", "three")
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    with program.app.sync() as client:
        send(client, "one", "two\x1b[2J")
    assert repid("requeue", "jobs:app", "default") == (
        1,
        "1 message(s) are ready again\n",
        "repid: 2 message(s) stay dead:\n"
        + "".join(f"  {name}: a message with the same id is alive\n" for name in ("'one'", r"'two\x1b[2J'")),
    )


def test_a_queue_is_paused_and_resumed(program: Program, repid: Command, caplog: pytest.LogCaptureFixture) -> None:
    program.send("slow", [{"number": 1}])
    assert repid("pause", "jobs:app", "default") == (
        0,
        "queue 'default' is paused: its messages wait until it is resumed\n",
        "",
    )
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    assert "queue 'default' is paused, so no worker gets its messages: `python -m repid resume" in caplog.text
    assert program.counts() == (1, 0)
    expected = "queue 'default' is resumed: workers get its messages\n"
    assert repid("resume", "jobs:app", "default") == (0, expected, "")
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    assert program.counts() == (0, 0)
    for verb in ("pause", "resume"):
        expected = "repid: there is no queue 'defualt' on this server (did you mean 'default'?)\n"
        assert repid(verb, "jobs:app", "defualt") == (2, "", expected)


@pytest.mark.parametrize("address", ["redis://127.0.0.1:1/0?prefix=x", "postgresql://127.0.0.1:1/db?schema=x"])
def test_options_in_an_address_are_told_where_they_belong(repid: Command, address: str) -> None:
    code, _, error = repid("move", "old.db", address)
    assert code == 2
    assert "a server that has options, such as schema= or prefix=, is given as MODULE:NAME here" in error


def test_dead_messages_are_removed_by_id_or_all_of_them(program: Program, repid: Command) -> None:
    with program.app.sync() as client:
        for name in ("one", "two", "three"):
            client.send_message_json(channel="default", payload={}, headers={"topic": "slow"}, message_id=name)
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    assert repid("delete", "jobs:app", "default")[0] == 2
    assert repid("delete", "jobs:app", "default", "one", "--all")[0] == 2
    expected = "repid: queue 'default' has no dead message 'five', 'four'\n"
    assert repid("delete", "jobs:app", "default", "one", "four", "five") == (2, "", expected)
    assert repid("delete", "jobs:app", "default", "one") == (0, "1 dead message(s) are removed\n", "")
    assert repid("delete", "jobs:app", "default", "--all") == (0, "2 dead message(s) are removed\n", "")
    assert program.counts() == (0, 0)


def test_a_dead_message_that_is_named_is_shown_in_full(program: Program, repid: Command) -> None:
    with program.app.sync() as client:
        client.send_message_json(
            channel="default", payload={"wrong\x1b[2J": "ä"}, headers={"topic": "slow", "tenant": "a"}, message_id="one"
        )
        client.run(partial(program.app.server().declare, ["default"]))
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    code, output, _ = repid("dead", "jobs:app", "default", "one")
    assert code == 0
    lines = output.splitlines()
    assert lines[:5] == ["id: one", "state: dead", "queue: default", "actor: slow", "attempt: 1"]
    assert re.fullmatch(r"enqueued: \d+ s ago", lines[5])
    assert re.fullmatch(r"died: \d+ s ago", lines[6])
    assert lines[7] == "reason: payload"
    assert lines[8] == 'headers: {"topic": "slow", "tenant": "a"}'
    assert lines[9] == r'payload: {"wrong\u001b[2J":"ä"}'
    assert lines[10].startswith("PayloadError: ")
    shown = repid("show", "jobs:app", "one")[1]
    assert re.sub(r"\d+ s ago", "", shown) == re.sub(r"\d+ s ago", "", output)
    assert repid("dead", "jobs:app", "default", "two")[::2] == (2, "repid: queue 'default' has no dead message 'two'\n")


def test_the_ids_of_dead_messages_are_whole_in_a_narrow_terminal(
    program: Program, repid: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    monkeypatch.setenv("COLUMNS", "80")
    with program.app.sync() as client:
        sent = client.send_message_json(channel="default", payload={"wrong": "x" * 100}, headers={"topic": "slow"})
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    assert sent.id in repid("dead", "jobs:app", "default")[1]


def test_tables_show_what_cannot_be_printed_escaped(program: Program, repid: Command) -> None:
    with program.app.sync() as client:
        payload = b'{"number": "x", "\\u001b]0;title\\u0007\\n| forged |": 1}'
        envelope = Envelope("a\u2028b\u202e", "default", payload, "application/json", {"topic": "slow"})
        client.run(partial(program.app.server().declare, ["default"]))
        client.run(partial(program.app.server().publish, [envelope]))
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    code, output, _ = repid("dead", "jobs:app", "default")
    assert code == 0
    assert "a\\u2028b\\u202e" in output
    assert not set(output) & set("\x1b\x07\u2028\u202e")
    assert len(output.splitlines()) == 5
    assert repid("dead", "jobs:app", "default", "--limit", str(10**30))[0] == 0


def test_tables_show_what_the_encoding_of_the_output_has_not_escaped(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with program.app.sync() as client:
        client.run(partial(program.app.server().declare, ["größe"]))
    code, output, errors = start_repid(program, "queues", "jobs:app", "--all")
    assert (code, errors) == (0, "")
    assert "gr\\xf6\\xdfe" in output


def test_a_server_in_memory_is_warned_of(program: Program, repid: Command) -> None:
    program.add("from repid import InMemoryServer\napp.servers.register_server('memory', InMemoryServer())")
    for arguments in (
        ["queues"],
        ["dead", "default"],
        ["requeue", "default"],
        ["delete", "default", "--all"],
    ):
        command, *others = arguments
        code, _, errors = repid(command, "jobs:app", *others, "--server", "memory")
        assert errors.startswith("repid: warning: the server memory keeps its messages in the memory of each process")
        assert code in {0, 2}


@pytest.mark.parametrize(
    "arguments",
    [["show", "x"], ["cancel", "x"], ["pause", "default"], ["resume", "default"]],
    ids=lambda arguments: arguments[0],
)
def test_what_could_find_nothing_on_a_server_in_memory_is_refused(
    program: Program, repid: Command, arguments: list[str]
) -> None:
    program.add("from repid import InMemoryServer\napp.servers.register_server('memory', InMemoryServer())")
    command, name = arguments
    code, output, errors = repid(command, "jobs:app", name, "--server", "memory")
    assert (code, output) == (2, "")
    assert errors.startswith("repid: the server memory keeps its messages in the memory of each process: this command")


ADDING = """
@router.actor(store_result=True)
async def add(a: int, b: int = 1) -> int:
    return a + b

@router.actor(store_result=True)
async def fail() -> None:
    raise ValueError("no \x1b[2J")
"""


def test_a_job_is_shown_while_it_waits_and_its_result_when_it_has_ended(program: Program, repid: Command) -> None:
    program.add(ADDING)
    with program.app.sync() as client:
        client.run(partial(program.app.server().declare, ["default"]))
        for name, actor, delay in (("one", "add", None), ("two", "fail", None), ("late", "add", 3600)):
            client.enqueue(Job(actor, args={"a": 1} if actor == "add" else None, id_=name, delay=delay))
    code, output, errors = repid("show", "jobs:app", "one", "late")
    assert (code, errors) == (0, "")
    one, late = output.split("\n\n")
    assert re.sub(r"\d+ s ago", "n s ago", one).splitlines() == [
        "id: one",
        "state: ready",
        "queue: default",
        "actor: add",
        "attempt: 1",
        "enqueued: n s ago",
        'headers: {"topic": "add"}',
        'payload: {"a":1}',
    ]
    assert late.splitlines()[:2] == ["id: late", "state: scheduled"]
    assert re.search(r"^due: \d{4}-\d\d-\d\d .*Z$", late, re.MULTILINE)
    assert repid("worker", "jobs:app", "--burst")[0] == 0
    code, output, errors = repid("show", "jobs:app", "one", "three", "two")
    assert code == 2
    assert errors.startswith("repid: nothing is known of 'three' on this server: no job of that id was enqueued there")
    one, two = output.split("\n\n")
    assert re.sub(r": \d{4}-.*Z", ": then", one).splitlines() == [
        "id: one",
        "state: success",
        "ended: then",
        "result is kept until: then",
        "result: 2",
    ]
    assert two.startswith("id: two\nstate: dead\n")
    assert "ValueError: no \\x1b[2J\n" in two


def test_jobs_are_cancelled_by_their_ids(program: Program, repid: Command) -> None:
    program.send("slow", [{"number": 1, "seconds": 60}])
    with program.app.sync() as client:
        client.enqueue(Job("slow", args={"number": 2, "seconds": 60}, id_="two", delay=3600, store_result=True))
        [message] = client.run(partial(program.app.server().browse, "default", "ready"))
    id_ = message.envelope.id
    program.start()
    until(lambda: program.noted("begin"))
    output = repid("show", "jobs:app", id_)[1]
    assert f"id: {id_}\nstate: running\n" in output
    assert re.search(r"^began: \d+ s ago, by process \d+ on ", output, re.MULTILINE)
    code, output, errors = repid("cancel", "jobs:app", "two", id_, "three")
    assert (code, errors) == (2, "repid: no message 'three' waits or runs on this server\n")
    assert output == f"two was waiting, and is removed\n{id_} is running, and is being cancelled\n"
    assert "\nstate: cancelled\n" in repid("show", "jobs:app", "two")[1]
    until(lambda: program.counts() == (0, 0))
    assert repid("cancel", "jobs:app", id_)[0] == 2


def test_a_schedule_is_paused_and_resumed(program: Program, repid: Command) -> None:
    program.add("@router.actor(every=600)\nasync def often() -> None: ...\n")
    repid("worker", "jobs:app", "--burst")
    for option, is_paused in (("--pause", True), ("--resume", False)):
        code, output, errors = repid("schedules", "jobs:app", option, "default:often")
        assert (code, errors, "paused" in output) == (0, "", is_paused)
        code, output, errors = repid("schedules", "jobs:app", option, "often")
        assert (code, output) == (2, "")
        assert errors == "repid: there is no schedule named 'often' (did you mean 'default:often'?)\n"


def test_a_reader_that_has_gone_is_no_error_to_tell_of(program: Program) -> None:
    """As in `repid queues … | true`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "repid", "queues", "jobs:app"],
        cwd=program.folder,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=20,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110  before pytest runs
@pytest.mark.parametrize("arguments", [["queues", "jobs:app"], ["queues", "jobs:app", "--json"], ["--help"]])
def test_output_that_cannot_be_written_is_one_clear_line(program: Program, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123  it is no path of ours
        done = subprocess.run(
            [sys.executable, "-m", "repid", *arguments],
            cwd=program.folder,
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "repid: the output cannot be written: No space left on device\n")


def test_a_queue_that_does_not_exist_is_one_clear_line(repid: Command) -> None:
    for arguments in (["dead"], ["queues"], ["requeue"], ["delete", "--all"]):
        command, *options = arguments
        assert repid(command, "jobs:app", "nope", *options) == (
            2,
            "",
            "repid: there is no queue 'nope' on this server; the app's actors read default\n",
        )
    assert "on this server (did you mean 'default'?)" in repid("dead", "jobs:app", "defualt")[2]
    assert "there is no queue '\\x1b[2J'" in repid("dead", "jobs:app", "\x1b[2J")[2]
    assert "the name of a queue holds a lone surrogate" in repid("dead", "jobs:app", "\x1b[2J\udcff")[2]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (
            ["--loop", "curio"],
            "Invalid value for '--loop': 'curio' is no event loop here: give one of trio, asyncio, uvloop",
        ),
        (["--max-memory", "much"], "Invalid value for '--max-memory': 'much' is no size: give it as 512MB or 1.5G"),
        (["--claim-bytes", "0"], "Invalid value for '--claim-bytes': it must be at least one byte"),
    ],
)
def test_a_wrong_value_is_told_with_its_option(repid: Command, option: list[str], text: str) -> None:
    code, output, errors = repid("worker", "jobs:app", *option)
    assert (code, output) == (2, "")
    assert text in errors


def test_a_file_that_is_named_by_its_whole_path_is_a_module_of_this_folder(program: Program, repid: Command) -> None:
    expected = f"repid: '{program.folder}/jobs.py' is a file, not a module: did you mean 'jobs:app'?\n"
    assert repid("worker", f"{program.folder}/jobs.py") == (2, "", expected)


@pytest.mark.parametrize(("text", "size"), [("512MB", 512 << 20), ("1.5G", 3 << 29), ("2k", 2048), ("300", 300)])
def test_a_size_is_understood(text: str, size: int) -> None:
    from repid.cli.workers import parse_size

    assert parse_size(text) == size


def test_the_tables_of_a_server_are_made_or_their_sql_is_printed(
    program: Program, repid: Command, postgres: Postgres
) -> None:
    with postgres.schema() as schema:
        program.add(f"""
            from repid import PostgresServer
            app = Repid(Connection(PostgresServer({postgres.url!r}, schema={schema!r}, migrate=False)))
        """)
        code, script, _ = repid("migrate", "jobs:app", "--sql")
        assert code == 0
        assert f'CREATE TABLE "{schema}".message' in script
        assert repid("migrate", "jobs:app") == (0, "the tables are up to date now\n", "")
        assert repid("migrate", "jobs:app") == (0, "the tables were up to date already\n", "")
        assert repid("migrate", "jobs:app", "--sql") == (0, "", "")


def test_a_server_that_keeps_itself_up_to_date_is_not_migrated(program: Program, repid: Command) -> None:
    expected = "repid: SQLiteServer has nothing to migrate: it keeps itself up to date\n"
    assert repid("migrate", "jobs:app") == (2, "", expected)


@pytest.mark.parametrize("options", [[], ["--processes", "2"]])
def test_a_burst_without_its_server_ends_with_an_error_and_exit_code_1(program: Program, options: list[str]) -> None:
    program.add(
        """
        import repid.runtime.outage
        from repid.brokers.redis import RedisServer
        repid.runtime.outage.BURST_TIME = 0.3
        app.servers.register_server("away", RedisServer("redis://u:s3cret@127.0.0.1:1"), is_default=True)
        """
    )
    code, _, errors = start_repid(program, "worker", "jobs:app", "--burst", *options)
    assert code == 1
    assert "the server did not answer for 0.3 s, and a burst waits no longer: redis://127.0.0.1:1/0 cannot" in errors
    assert "Traceback" not in errors
    assert "s3cret" not in errors
