"""Bad input: each with its own clear error, and nothing lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from aids import UnreliableServer, send

from repid import (
    AlreadySettled,
    ConfigurationError,
    Connection,
    Counts,
    InMemoryServer,
    Job,
    Message,
    NotConnected,
    PayloadError,
    PostgresServer,
    Queue,
    RedisServer,
    Repid,
    Report,
    Router,
    SQLiteServer,
    Worker,
)
from repid.names import check_duration

AConnection: Any = Connection  # what a type checker would see is tested here at run time
AJob: Any = Job
AQueue: Any = Queue
ARepid: Any = Repid
ARouter: Any = Router
ASQLiteServer: Any = SQLiteServer
AWorker: Any = Worker


class Address(msgspec.Struct):
    street: str
    number: int


async def dead_text(app: Repid, server: UnreliableServer) -> str:
    """What the one message left behind, which no attempt was used for."""
    assert await app.run_worker(burst=True) == Report(dead=1)
    [dead] = await server.browse("default", "dead")
    assert (dead.reason, dead.attempt) == ("payload", 1)
    assert dead.failure is not None
    assert dead.failure.type == "PayloadError"
    return dead.failure.text


@pytest.mark.parametrize(
    ("payload", "content_type", "expected"),
    [
        (b"\xff\xfe", "application/json", ["$: JSON is malformed"]),
        (b'{"x": ', "application/json", ["$: the data ends too early (byte 6)"]),
        (b"[1, 2]", "application/json", ["$: the payload must be an object"]),
        (b"5", None, ["$: the payload must be an object"]),
        (b"\xc1", "application/msgpack", ["$: "]),
        (b"<x/>", "application/xml", ["unknown content type 'application/xml'; known are application/json"]),
        (b"{}", None, ["$.x: required, but missing", "$.addresses: required, but missing"]),
        (
            b'{"x": "five", "addresses": [{"street": 1, "number": 2}, {"street": "s"}]}',
            "application/json",
            [
                "$.x: Expected `int`, got `str`",
                "$.addresses[0].street: Expected `str`, got `int`",
                "$.addresses[1].number: required, but missing",
            ],
        ),
    ],
)
async def test_a_payload_that_does_not_fit_is_dead_at_once_with_every_fault_and_its_path(
    app: Repid,
    router: Router,
    server: UnreliableServer,
    payload: bytes,
    content_type: str | None,
    expected: list[str],
) -> None:
    @router.actor(retries=5, on_error="ack")
    async def job(x: int, addresses: list[Address]) -> None: ...

    sent = await app.send_message(
        channel="default", payload=payload, content_type=content_type, headers={"topic": "job"}
    )
    text = await dead_text(app, server)
    for fault in expected:
        assert fault in text
    [dead] = await server.browse("default", "dead")
    assert dead.envelope == sent  # nothing is lost: the bytes are there


async def test_surplus_fields_are_ignored_unless_strict(app: Repid, router: Router, server: UnreliableServer) -> None:
    @router.actor
    async def lenient(x: int) -> None: ...

    @router.actor(strict=True)
    async def strict(number: int) -> None: ...

    await send(app, "lenient", x=1, y=2)
    assert await app.run_worker(burst=True) == Report(processed=1, succeeded=1)
    await send(app, "strict", number=1, nummer=2)
    assert "$.nummer: unknown field (did you mean 'number'?)" in await dead_text(app, server)


async def test_a_dead_payload_can_be_requeued_when_the_actor_has_learnt(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    worker = Worker(burst=True)

    @worker.actor
    async def job(x: int) -> None: ...

    await send(app, "job", x="five")
    assert await worker.run() == Report(dead=1)

    worker = Worker(burst=True)

    @worker.actor(name="job")
    async def wiser(x: str) -> None: ...

    assert await Queue().requeue() == 1
    assert await worker.run() == Report(processed=1, succeeded=1)


async def test_a_manual_mode_does_not_save_a_broken_payload(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor(confirmation_mode="manual")
    async def job(x: int) -> None: ...

    await send(app, "job")
    assert "$.x: required, but missing" in await dead_text(app, server)


# What people may say


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channel": "no spaces"}, "'no spaces' is not a valid channel name"),
        ({"channel": ""}, "'' is not a valid channel name"),
        ({"channel": 5}, "5 is not a valid channel name"),
        ({"channel": []}, "is not a valid channel name"),
        ({"payload": "text"}, "payload must be bytes, but is str: use the _json form"),
        ({"payload": None}, "payload must be bytes, but is NoneType"),
        ({"delay": -1}, "delay must not be negative, but is -1"),
        ({"delay": timedelta(seconds=-1)}, "delay must not be negative"),
        ({"delay": "soon"}, "delay must be seconds or a timedelta"),
        ({"delay": 10**400}, "delay must be less than 1e308 seconds"),
        ({"ttl": 0}, "ttl must be positive"),
        ({"ttl": -5}, "ttl must be positive"),
        ({"priority": 3}, "priority must be PrioritiesT.HIGH, MEDIUM or LOW, but is 3"),
        ({"message_id": ""}, "a message id must be text of 1 to 255 characters"),
        ({"message_id": 5}, "a message id must be text"),
        ({"message_id": "x" * 256}, "a message id must be text"),
        ({"reply_to": "no spaces"}, "'no spaces' is not a valid channel name"),
        ({"headers": {"x": 5}}, "headers must map text to text, but hold 'x': 5"),
        ({"headers": {5: "x"}}, "headers must map text to text"),
        ({"headers": 5}, "headers"),
        ({"content_type": 5}, "content_type must be text, but is 5"),
        ({"server_specific_parameters": 5}, "server_specific_parameters"),
        ({"server_name": "defualt"}, "the app has no server named 'defualt' (did you mean 'default'?)"),
        ({"topic": "add"}, 'the name of its actor is a header, headers={"topic": ...}'),
        ({"prioritty": 5}, "a message has no option 'prioritty' (did you mean 'priority'?)"),
    ],
)
async def test_a_wrong_send_is_refused_by_name_and_nothing_is_sent(
    app: Repid, server: UnreliableServer, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        await app.send_message(**({"channel": "default", "payload": b""} | options))
    assert text in str(raised.value)
    assert await server.counts("default") == Counts()


async def test_many_messages_share_no_id(app: Repid) -> None:
    with pytest.raises(ConfigurationError, match="ids must differ"):
        await app.send_messages(channel="default", payloads=[b"", b""], message_id="one")


async def test_one_wrong_payload_among_many_sends_none(app: Repid, server: UnreliableServer) -> None:
    wrong: list[Any] = [b"", "text", b""]
    with pytest.raises(ConfigurationError, match="payload must be bytes"):
        await app.send_messages(channel="default", payloads=wrong)
    with pytest.raises(PayloadError, match="cannot encode"):
        await app.send_messages_json(channel="default", payloads=[1, object()])
    for wrong_payloads in (b"one", "one", None):
        no_list: Any = wrong_payloads
        with pytest.raises(ConfigurationError, match="payloads must be a list of several"):
            await app.send_messages(channel="default", payloads=no_list)
        with pytest.raises(ConfigurationError, match="payloads must be a list of several"):
            await app.send_messages_json(channel="default", payloads=no_list)
    assert await server.counts("default") == Counts()


@pytest.mark.parametrize("payload", [object(), {"x": {1j}}, [lambda: None]])
async def test_what_cannot_be_encoded_is_a_payload_error_for_the_sender(app: Repid, payload: object) -> None:
    with pytest.raises(PayloadError, match="cannot encode a"):
        await app.send_message_json(channel="default", payload=payload)
    with pytest.raises(PayloadError, match="cannot encode the args of job 'job' as JSON"):
        Job("job", args=payload)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AJob("no spaces"), "'no spaces' is not a valid actor name"),
        (lambda: AJob(5), "5 is not a valid actor name"),
        (lambda: AJob({}), "is not a valid actor name"),
        (lambda: AJob("x", "no spaces"), "'no spaces' is not a valid queue name"),
        (lambda: AJob("x", retries=-1), "retries must be a whole number of at least 0, but is -1"),
        (lambda: AJob("x", retries=1.5), "retries must be a whole number"),
        (lambda: AJob("x", retries=float("inf")), "retries"),
        (lambda: AJob("x", timeout=0), "timeout must be positive"),
        (lambda: AJob("x", timeout=-1), "timeout must be positive"),
        (lambda: AJob("x", ttl=-1), "ttl must be positive"),
        (lambda: AJob("x", delay=-1), "delay must not be negative"),
        (lambda: AJob("x", delay=float("nan")), "delay must not be negative"),
        (lambda: AJob("x", id_=""), "the id_ of a job must be text of 1 to 255 characters"),
        (lambda: AJob("x", priority=5), "priority must be"),
        (
            lambda: AJob("x", args=[1]),
            "the args of job 'x' must be the actor's parameters by name, such as {'number': 1},",
        ),
        (lambda: AJob("x", retires=5), "has no option 'retires' (did you mean 'retries'?)"),
        (lambda: AJob("x", quue="mail"), "has no option 'quue' (did you mean 'queue'?)"),
        (lambda: AJob("x", kwargs={"a": 1}), "has no option 'kwargs' (did you mean 'args'?)"),
        (lambda: AQueue(""), "'' is not a valid queue name"),
        (lambda: AQueue([]), "is not a valid queue name"),
        (lambda: AQueue("1st"), "it must start with a letter or _"),
        (lambda: AWorker(tasks_limit=0), "tasks_limit must be a whole number of at least 1, but is 0"),
        (lambda: AWorker(tasks_limit=float("inf")), "tasks_limit must be finite"),
        (lambda: AWorker(tasks_limit="5"), "tasks_limit must be a whole number"),
        (lambda: AWorker(messages_limit=-1), "messages_limit must be a whole number of at least 0, but is -1"),
        (lambda: AWorker(messages_limit=1.5), "messages_limit must be a whole number"),
        (lambda: AWorker(graceful_shutdown_time=-1), "graceful_shutdown_time must not be negative"),
        (lambda: AWorker(burst=1), "burst must be True or False, but is 1"),
        (lambda: AWorker(auto_declare="no"), "auto_declare must be True or False"),
        (lambda: AWorker(mesages_limit=1), "a worker has no option 'mesages_limit' (did you mean 'messages_limit'?)"),
        (lambda: AWorker(handle_signals=5), "handle_signals"),
        (lambda: AWorker(Router()), "Router(): put it into a list"),
        (lambda: AWorker([5]), "only a Router can be included, but this is 5"),
        (lambda: ARepid(middlewares=[5]), "must be callable"),
        (lambda: ARepid(producer_middlewares=[5]), "each of the producer_middlewares must be callable, but is 5"),
        (lambda: ARepid(producer_middlewares=print), "producer_middlewares must be a list of several"),
        (lambda: ARepid(InMemoryServer()), "<InMemoryServer, closed>: give Connection(server) with a server"),
        (lambda: ARepid("shop"), "the connection of an app must be a Connection, but is 'shop'"),
        (lambda: ARouter().actor("mail"), "must be a function, but is 'mail': for a name of its own, write actor("),
        (
            lambda: ARepid(result_store="results.db"),
            "result_store must be a server such as SQLiteServer(path), but is 'results.db'",
        ),
        (
            lambda: ARepid(schedule_store=InMemoryServer),
            "schedule_store must be a server such as SQLiteServer(path), but is <class",
        ),
        (lambda: ARepid(AConnection("memory")), "server 'default' must be a server such as InMemoryServer(), but is"),
        (lambda: ARepid(title=5), "the title of an app must be text, but is 5"),
        (lambda: ARepid(version=None), "the version of an app must be text, but is None"),
        (lambda: AJob("x", retries=2**63), "retries must be at most 9223372036854775807, but is"),
        (lambda: AQueue(max_size=10**30), "max_size of queue 'default' must be at most 9223372036854775807, but is"),
        (lambda: AQueue(max_bytes=2**63), "max_bytes of queue 'default' must be at most 9223372036854775807, but is"),
        (lambda: AWorker(handle_signals=[signal.SIGKILL]), "handle_signals hold SIGKILL, which no program can handle"),
        (lambda: ASQLiteServer(5), "SQLiteServer needs the path of a file, such as 'jobs.db', but got 5"),
        (lambda: ASQLiteServer(None), "SQLiteServer needs the path of a file, such as 'jobs.db', but got None"),
        (
            lambda: ASQLiteServer(b"jobs.db"),
            "SQLiteServer needs the path of a file, such as 'jobs.db', but got b'jobs.db'",
        ),
        (lambda: ASQLiteServer("a\0b"), "SQLiteServer needs the path of a file, such as 'jobs.db', but got 'a\\x00b'"),
        (
            lambda: ASQLiteServer("\ud800"),
            "SQLiteServer needs the path of a file, such as 'jobs.db', but got '\\ud800'",
        ),
        (lambda: ASQLiteServer("SQLITE:///jobs.db"), "SQLiteServer needs the path of a file, but got the address"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        make()
    assert text in str(raised.value)


async def test_a_wrong_option_of_run_worker_is_refused_before_anything_starts(app: Repid, router: Router) -> None:
    @router.actor
    async def job() -> None: ...

    wrong: dict[str, Any] = {"tasks": 5}
    with pytest.raises(ConfigurationError, match=r"a worker has no option 'tasks' .did you mean 'tasks_limit'"):
        await app.run_worker(**wrong)
    with pytest.raises(ConfigurationError, match="no server named 'x'"):
        await app.run_worker(server_name="x")


async def test_category_names_are_known(app: Repid) -> None:
    category: Any = "daed"
    with pytest.raises(ConfigurationError, match=r"category must be one of .*did you mean 'dead'"):
        await Queue().get_messages(category)


async def test_a_limit_is_a_whole_number_and_what_is_requeued_a_list(app: Repid) -> None:
    await app.send_message(channel="default", payload=b"")
    [message] = await Queue().get_messages()
    one: Any = message
    with pytest.raises(ConfigurationError, match="the messages to be requeued must be a list of several"):
        await Queue().requeue(one)
    for limit in (-1, 1.5, "all"):
        no_limit: Any = limit
        with pytest.raises(ConfigurationError, match="limit must be a whole number of at least 0"):
            await Queue().get_messages(limit=no_limit)
    all_of_them: Any = float("inf")
    assert len(await Queue().get_messages(limit=all_of_them)) == 1


# Servers


def test_server_names_are_unique_and_valid() -> None:
    app = Repid()
    app.servers.register_server("one", InMemoryServer())
    with pytest.raises(ConfigurationError, match="'one' is registered already"):
        app.servers.register_server("one", InMemoryServer())
    with pytest.raises(ConfigurationError, match="is not a valid server name"):
        app.servers.register_server("no spaces", InMemoryServer())
    for wrong in (InMemoryServer, None, Connection(InMemoryServer())):
        server: Any = wrong
        with pytest.raises(ConfigurationError, match="server 'two' must be a server such as InMemoryServer"):
            app.servers.register_server("two", server)
    with pytest.raises(ConfigurationError, match=r"no server named 'on' .did you mean 'one'"):
        app.servers.set_default_server("on")
    no_name: Any = None
    with pytest.raises(ConfigurationError, match="no server named None"):
        app.servers.set_default_server(no_name)
    assert app.servers.default is app.servers["one"]
    assert (list(app.servers), len(app.servers)) == (["one"], 1)


def test_the_first_server_is_the_default_until_another_is_made_so() -> None:
    app = Repid()
    first, second, third = (InMemoryServer() for _ in range(3))
    app.servers.register_server("first", first)
    app.servers.register_server("second", second)
    assert app.servers.default is first
    app.servers.register_server("third", third, is_default=True)
    assert app.servers.default is third
    app.servers.set_default_server("second")
    assert app.servers.default is app.servers["second"] is second


async def test_an_app_without_a_server_says_how_to_have_one() -> None:
    app = Repid()

    async def magic() -> None:
        async with app.magic():
            pass

    for call in (
        magic,
        app.run_worker,
        lambda: app.send_message(channel="x", payload=b""),
        Job("x", app=app).enqueue,
        Queue(app=app).size,
    ):
        with pytest.raises(ConfigurationError, match=r"the app has no server: .* or app\.servers\.register_server"):
            await call()


@pytest.mark.parametrize("no_app", [InMemoryServer(), Repid, "shop:app"])
def test_what_is_no_app_is_refused_by_name(no_app: Any) -> None:
    for make, who in (
        (partial(Queue, "q"), "queue 'q'"),
        (partial(Job, "x"), "job 'x'"),
        (Worker, "the worker"),
    ):
        with pytest.raises(ConfigurationError, match=f"the app of {who} must be a Repid, but is "):
            make(app=no_app)


SERVERS = [
    InMemoryServer,
    partial(SQLiteServer, "jobs.db"),
    partial(RedisServer, "redis://localhost"),
    partial(PostgresServer, "host=localhost"),
]


@pytest.mark.parametrize(
    ("option", "values", "text"),
    [
        ("lease_timeout", ["60", None, True, Decimal(5)], "lease_timeout must be seconds or a timedelta"),
        ("lease_timeout", [0, -1, float("nan"), timedelta(0)], "lease_timeout must be positive"),
        ("lease_timeout", [10**400], "lease_timeout must be less than 1e308 seconds"),
        ("lease_timeout", [float("inf")], "lease_timeout must be finite"),
        ("dead_ttl", ["60", True], "dead_ttl must be seconds or a timedelta"),
        ("dead_ttl", [0, -1, float("nan")], "dead_ttl must be positive"),
        ("dead_ttl", [10**400], "dead_ttl must be less than 1e308 seconds"),
        ("instruments", [5, None, print], "instruments must be a list of several"),
        ("instruments", [[5]], "each of the instruments must be callable, but is 5"),
        ("instruments", [[lambda: None]], "each of the instruments is called with (call)"),
    ],
)
@pytest.mark.parametrize("make", SERVERS)
def test_an_option_of_a_server_is_checked_where_it_is_given(
    make: Any, option: str, values: Sequence[Any], text: str
) -> None:
    for value in values:
        with pytest.raises(ConfigurationError) as raised:
            make(**{option: value})
        assert text in str(raised.value)


# Use at the wrong time


async def test_a_message_cannot_be_used_once_its_worker_is_gone(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    kept: list[Message] = []

    @router.actor
    async def job(message: Message) -> None:
        kept.append(message)

    await send(app, "job")
    await app.run_worker(burst=True)
    with pytest.raises(AlreadySettled):
        await kept[0].nack()


async def test_a_worker_opens_the_connection_it_needs(server: UnreliableServer, autojump_clock: Any) -> None:
    app = Repid()
    app.servers.register_server("default", server)
    router = Router()

    @router.actor
    async def job() -> None: ...

    app.include_router(router)
    assert await app.run_worker(burst=True) == Report()
    assert not server.is_connected
    with pytest.raises(NotConnected):
        await server.counts("default")


async def test_wrong_signals_are_refused_before_anything_starts(
    app: Repid, router: Router, server: UnreliableServer
) -> None:
    @router.actor
    async def job() -> None: ...

    await send(app, "job")
    found = signal.getsignal(signal.SIGTERM)
    wrong: Any = [signal.SIGTERM, "SIGINT"]
    with pytest.raises(ConfigurationError, match="handle_signals"):
        await app.run_worker(handle_signals=wrong, burst=True)
    assert signal.getsignal(signal.SIGTERM) is found
    assert await server.counts("default") == Counts(ready=1)


async def test_a_payload_no_codec_knows_does_not_stop_the_worker(app: Repid, router: Router) -> None:
    done: list[int] = []

    @router.actor
    async def job(x: int) -> None:
        done.append(x)
        await trio.lowlevel.checkpoint()

    for x in range(20):
        await app.send_message(channel="default", payload=bytes([x]), headers={"topic": "job"})
        await send(app, "job", x=x)
    report = await app.run_worker(burst=True)
    assert (report.succeeded, report.dead, sorted(done)) == (20, 20, list(range(20)))


@pytest.mark.parametrize(
    ("value", "shown"), [(timedelta(hours=-1), "-3600 seconds"), (-1, "-1"), (timedelta(0), "0 seconds")]
)
def test_a_duration_below_zero_is_shown_in_seconds(value: Any, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=f"x must be positive, but is {shown}$"):
        check_duration("x", value, positive=True)
