"""The worst texts and numbers, wherever an actor or a caller can put one: both servers behave alike, and no worker ends.

What a caller gives is refused in the call, by name. What an actor raises is recorded, whatever it is.
"""

from __future__ import annotations

import enum
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from engines.fixtures import POSTGRES
from engines.postgres import Postgres, running
from engines.redis import Redis
from hypothesis import given
from hypothesis import strategies as st

from repid import (
    BrokerRefused,
    ConfigurationError,
    Connection,
    Counts,
    Envelope,
    Failure,
    InMemoryServer,
    Job,
    Message,
    PayloadError,
    Queue,
    QueueNotDeclared,
    Repid,
    Router,
    Server,
    SQLiteServer,
)
from repid.brokers.postgres import PostgresServer
from repid.brokers.redis import RedisServer
from repid.delivery import Progress
from repid.names import check_id, check_number, check_text

SURROGATE = "caf\udce9.txt"  # what os.listdir() gives for a name that is not UTF-8
TEXTS = [
    "",
    "\x00",
    "\x1b[2J",
    "a\nb",
    "\u2028",
    "\u202e",
    "\U0010ffff",
    "\ufffe",
    "x" * 100_000,
    SURROGATE,
    "\ud800\udc00",
]


class Colors(enum.IntEnum):
    RED = 1


class SmallFloat(float):
    pass


GOOD_NUMBERS = [0, -1, 1.5, 2**53, 2**63 - 1, -(2.0**63), 1e-320, Colors.RED, SmallFloat(0.5)]
BAD_NUMBERS = [math.nan, math.inf, -math.inf, True, 10**30, 10**5000, Decimal(1), Fraction(1, 2), None, "7", b"7", 1j]


@pytest.fixture(scope="module")
def some_postgres() -> Iterator[tuple[Postgres, str]]:
    """A PostgreSQL server, started only if one of these tests runs there, and a schema."""
    with running(POSTGRES[0]) as postgres, postgres.schema() as schema:
        yield postgres, schema


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    match request.param:
        case "memory":
            return InMemoryServer()
        case "sqlite":
            return SQLiteServer(tmp_path / "jobs.db")
        case "postgres":
            postgres, schema = request.getfixturevalue("some_postgres")
            postgres.empty(schema)
            return PostgresServer(postgres.url, schema=schema)
    redis: Redis = request.getfixturevalue("redis")
    return RedisServer(redis.url, prefix=request.getfixturevalue("prefix"))


@pytest.fixture
async def app(server: Server) -> AsyncGenerator[Repid, None]:
    app = Repid(Connection(server))
    async with app.magic():
        yield app


async def outcomes_of(app: Repid, call: Callable[[Message, Any], Awaitable[Any]], values: list[Any]) -> list[str]:
    """How a run with each of the values ended, beside an innocent one: the type of its error, or "success"."""
    router = Router(queue="q", store_result=True)

    @router.actor
    async def tries(number: int, message: Message) -> None:
        await call(message, values[number])

    @router.actor
    async def innocent() -> None:
        await trio.sleep(0.05)

    app.include_router(router)
    await Queue("q").declare()
    handles = [await Job("tries", queue="q", args={"number": number}).enqueue() for number in range(len(values))]
    beside = await Job("innocent", queue="q").enqueue()
    report = await app.run_worker(burst=True)
    assert report.processed == len(values) + 1
    assert (await beside.wait()).is_success
    results = [await handle.wait() for handle in handles]
    assert (await Queue("q").counts()).leased == 0
    return ["success" if result.failure is None else result.failure.type for result in results]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
async def test_whatever_an_actor_raises_is_recorded(app: Repid, text: str) -> None:
    async def fail(_: Message, value: str) -> None:
        raise ValueError(value) from RuntimeError(value)

    assert await outcomes_of(app, fail, [text]) == ["ValueError"]
    [dead] = await Queue("q").get_messages("dead")
    assert dead.failure is not None
    assert dead.failure.text[:10] == text.encode("utf-8", "backslashreplace").decode()[:10]


async def test_a_result_that_cannot_be_written_is_a_failure(app: Repid) -> None:
    router = Router(queue="q", store_result=True)
    values: list[Any] = [SURROGATE, {"a": [SURROGATE]}, {SURROGATE: 1}, math.nan, 1j, "\x00\u2028"]

    @router.actor
    async def gives(number: int) -> Any:
        return values[number]

    app.include_router(router)
    await Queue("q").declare()
    handles = [await Job("gives", queue="q", args={"number": number}).enqueue() for number in range(len(values))]
    await app.run_worker(burst=True)
    results = [await handle.wait() for handle in handles]
    failures = [result.failure and result.failure.type for result in results]
    assert failures == ["PayloadError"] * 5 + [None]
    assert results[-1].value == "\x00\u2028"


async def test_a_progress_of_finite_numbers_is_told(app: Repid) -> None:
    async def tell(message: Message, value: Any) -> None:
        await message.progress(value, value, str(value))

    assert await outcomes_of(app, tell, GOOD_NUMBERS) == ["success"] * len(GOOD_NUMBERS)


async def test_a_progress_of_anything_else_is_refused_in_the_call(app: Repid) -> None:
    async def tell(message: Message, value: Any) -> None:
        await message.progress(value, 1)

    async def tell_total(message: Message, value: Any) -> None:
        await message.progress(1, value)

    assert await outcomes_of(app, tell, BAD_NUMBERS) == ["ConfigurationError"] * len(BAD_NUMBERS)
    [first, *_] = await Queue("q").get_messages("dead")
    assert first.failure is not None
    assert first.failure.text == "done must be a finite number up to 9.22337e+18, but is nan"
    totals = [number for number in BAD_NUMBERS if number is not None]
    other = Repid(Connection(app.server()))
    await Queue("q").delete()
    async with other.magic():
        assert await outcomes_of(other, tell_total, totals) == ["ConfigurationError"] * len(totals)


async def test_a_note_is_text_that_can_be_written(app: Repid) -> None:
    async def tell(message: Message, value: Any) -> None:
        await message.progress(1, 2, value)

    expected = ["success"] * (len(TEXTS) - 2) + ["ConfigurationError"] * 2
    assert await outcomes_of(app, tell, TEXTS) == expected
    assert "the note of a progress holds a lone surrogate" in str((await Queue("q").get_messages("dead"))[0].failure)


SENDS: dict[str, Callable[[Any, str], Awaitable[Any]]] = {
    "id": lambda sender, text: sender.send_message(channel="q", payload=b"", message_id=text),
    "header": lambda sender, text: sender.send_message(channel="q", payload=b"", headers={"x": text}),
    "name of a header": lambda sender, text: sender.send_message(channel="q", payload=b"", headers={text: "x"}),
    "topic": lambda sender, text: sender.send_message(channel="q", payload=b"", headers={"topic": text}),
    "content type": lambda sender, text: sender.send_message(channel="q", payload=b"", content_type=text),
    "reply_to": lambda sender, text: sender.send_message(channel="q", payload=b"", reply_to=text),
    "channel": lambda sender, text: sender.send_message(channel=text, payload=b""),
    "parameters": lambda sender, text: sender.send_message(
        channel="q", payload=b"", server_specific_parameters={"x": text}
    ),
    "payload": lambda sender, text: sender.send_message_json(channel="q", payload=text),
}


@pytest.mark.parametrize("place", SENDS)
async def test_a_surrogate_is_refused_wherever_something_is_sent(app: Repid, place: str) -> None:
    send = SENDS[place]
    expected = PayloadError if place == "payload" else ConfigurationError
    with pytest.raises(expected, match=r"surrogate|not a valid channel name|control characters"):
        await send(app, SURROGATE)

    async def from_actor(message: Message, value: str) -> None:
        with pytest.raises(expected):
            await send(message, value)
        with pytest.raises(expected):
            await send(message.outbox, value)

    assert await outcomes_of(app, from_actor, [SURROGATE]) == ["success"]
    assert await Queue("q").counts() == Counts()


JOBS: dict[str, Callable[[str], Any]] = {
    "id": lambda text: Job("x", id_=text),
    "result id": lambda text: Job("x", result_id=text),
    "name": Job,
    "queue": lambda text: Job("x", queue=text),
    "args": lambda text: Job("x", args={"x": text}),
}


@pytest.mark.parametrize("place", JOBS)
def test_a_surrogate_is_refused_wherever_a_job_is_declared(place: str) -> None:
    with pytest.raises((ConfigurationError, PayloadError)):
        JOBS[place](SURROGATE)


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(SURROGATE, "q", b""),
        Envelope("1", "q", b"", headers={"x": SURROGATE}),
        Envelope("1", "q", b"", headers={"topic": SURROGATE}),
        Envelope("1", "q", b"", headers={SURROGATE: "x"}),
    ],
)
async def test_a_server_refuses_what_it_could_not_write_whoever_made_it(app: Repid, envelope: Envelope) -> None:
    await app.server().declare(["q"])
    with pytest.raises(ConfigurationError, match=r"message .* cannot be "):
        await app.server().publish([Envelope("0", "q", b""), envelope])
    assert await app.server().counts("q") == Counts()


@pytest.mark.parametrize("name", [SURROGATE, 5, None])
async def test_a_server_declares_no_queue_whose_name_it_could_not_write(app: Repid, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="the name of a queue"):
        await app.server().declare(["q", name])
    with pytest.raises(QueueNotDeclared):
        await app.server().counts("q")


async def test_keys_of_no_dead_message_are_passed_over(app: Repid) -> None:
    await app.server().declare(["q"])
    keys = [str(10**30), "-1", "x", "1.5", "²", "", "1 "]
    assert await app.server().delete_messages("q", keys) == 0
    assert [type(answer) for answer in await app.server().revive("q", keys)] == [BrokerRefused] * len(keys)


@pytest.mark.parametrize("key", [1, None, b"1"])
async def test_a_key_that_is_no_text_is_refused_by_name(app: Repid, key: Any) -> None:
    await app.server().declare(["q"])
    with pytest.raises(ConfigurationError, match="takes names or ids, which are text"):
        await app.server().delete_messages("q", [key])


@given(st.text() | st.sampled_from(TEXTS), st.text() | st.sampled_from(TEXTS))
def test_a_failure_can_always_be_written_and_keeps_what_can_be(kind: str, text: str) -> None:
    failure = Failure(kind, text, text)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(failure), type=Failure) == failure
    assert failure.text.encode() == text.encode("utf-8", "backslashreplace")


@given(st.floats() | st.integers() | st.sampled_from(BAD_NUMBERS) | st.sampled_from(GOOD_NUMBERS))
def test_a_number_that_is_let_in_can_be_written_and_equals_itself(number: Any) -> None:
    try:
        checked = check_number("done", number)
    except ConfigurationError:
        assert type(number) not in {int, float} or not abs(number) <= 2.0**63
    else:
        assert type(checked) in {int, float}
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(checked)) == checked == number


@given(st.text(max_size=300) | st.sampled_from(TEXTS))
def test_a_text_that_is_let_in_can_be_written(text: str) -> None:
    checks: list[Callable[[], object]] = [lambda: check_text("x", text), lambda: check_id(text)]
    for check in checks:
        try:
            checked = check()
        except ConfigurationError:
            continue
        assert checked == text
        text.encode()


async def test_a_progress_that_a_consumer_reports_itself_is_checked_too(app: Repid) -> None:
    server = app.server()
    await Queue("q").declare()
    await app.send_message_json(channel="q")
    async with server.consume({"q": None}) as consumer:
        [delivery] = await consumer.receive(1)
        for wrong in (Progress(math.nan), Progress(1, math.inf), Progress(1, 2, "\ud800")):
            with pytest.raises(ConfigurationError, match="of a progress"):
                await consumer.report([(delivery, Progress(1)), (delivery, wrong)])
        await consumer.report([(delivery, Progress(1, 2, "half")), (delivery, None)])
