"""No password of an address is shown: not in an error, a log line, a traceback, a repr, or by the command line."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from repid import InMemoryServer, JobFailed, PayloadError, Queue, Repid, RepidError, SQLiteServer
from repid.brokers import Server, server_at
from repid.brokers.memory.driver import MemoryDriver
from repid.brokers.postgres import PostgresServer
from repid.brokers.redis import RedisServer
from repid.logs import Log
from repid.runtime.failures import failure_of
from repid.tracebacks import explain, without_passwords

SECRET = "s3" + "cret"
"""In two parts, as tracebacks show the lines of this file."""

ADDRESSES = [
    "redis://u:s3cret@h",
    "redis://:s3cret@[h",
    "redis://u:s3cret@h:port",
    "redis://u:s3cret@h/x",
    "redis://u:s3cret@h?x=1",
    "redis://u:/s3cret@h",
    "redis://u:?s3cret@h",
    "redis://u:#s3cret@h",
    "redis://u:1/s3cret@h",
    "redis://u:@s3cret@h:x",
    "redis+foo://u:s3cret@h",
    "redis+sentinel://u:s3cret@h",
    "redis+sentinel://u:s3cret@h:1:2/x",
    "redis+sentinel://u:/s3cret@h:1/x",
    "redis+sentinel://h/x/y?sentinel_password=s3cret",
    "redis+cluster://u:s3cret@h/3",
    "rediss://u:s3cret@h/3",
    "postgresql://u:s3cret@h/d",
    "postgresql://u:s3cret@h:foo/d",
    "postgresql://u:1/s3cret@h/d",
    "postgresql://u:?s3cret@h/d",
    "postgresql://u:s3cret@[h/d",
    "postgresql://u:s3cret@h/d?password=s3cret&foo=1",
    "postgresql://u@h/d?password=s3cret",
    "postgresqlx://u:s3cret@h",
    "amqp://u:s3cret@h",
    "https://u:s3cret@h/x",
    "host=h password=s3cret",
    "host=h password=s3cret foo",
    "host=h password='a s3cret' foo",
    "host=h password = 's3cret foo=1",
    "PGPASSWORD=s3cret",
    "redis://u:" + "x" * 300 + "s3cret@h",
    "postgresql://u:" + "x" * 3000 + "s3cret@h",
]

TAKERS: list[Callable[[Any], object]] = [
    Repid,
    server_at,
    SQLiteServer,
    RedisServer,
    PostgresServer,
    Queue,
    lambda address: Repid(result_store=address),
    lambda address: Repid(schedule_store=address),
    lambda address: Repid().servers.register_server("x", address),
    lambda address: Repid().servers.register_server(address, InMemoryServer()),
    lambda address: Repid().server(address),
    lambda address: Repid().run_worker(server_name=address),
    lambda address: Server(MemoryDriver(30), state=address),
    lambda address: Server(MemoryDriver(30), place=address),
]


def all_that_is_said_by(function: Callable[[], object]) -> str:
    """Its repr, or what it raises, with all that Python would write about that."""
    try:
        found = function()
        if hasattr(found, "close"):
            found.close()
    except Exception as error:  # noqa: BLE001  it is looked at
        copy = pickle.loads(pickle.dumps(error)) if isinstance(error, RepidError) else None
        return f"{error} {error!r} {explain(error)} {error.__cause__} {copy}"
    return repr(found)


@pytest.mark.parametrize("address", ADDRESSES)
def test_whatever_takes_an_address_never_shows_the_password_in_it(address: str) -> None:
    for take in TAKERS:
        assert SECRET not in all_that_is_said_by(lambda take=take: take(address))  # type: ignore[misc]


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_text_of_an_error_or_of_the_log_hides_the_password(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in (RepidError, PayloadError):
        error = kind(f"cannot reach {address}")
        assert SECRET not in f"{error} {error!r} {explain(error)}"
    assert SECRET not in str(JobFailed("1", "dead", "OSError", f"no route to {address}"))
    foreign = OSError(f"no route to {address}")
    foreign.add_note(f"the address is {address}")
    failure = failure_of(foreign)
    assert SECRET not in failure.text + (failure.traceback or "")
    with caplog.at_level(logging.DEBUG):
        Log("repid.test").warning("cannot reach %s", address)
        Log("repid.test").error("cannot reach it", exc_info=foreign)
    assert SECRET not in caplog.text
    assert "cannot reach" in caplog.text


def test_a_line_of_source_in_a_traceback_hides_the_password_in_it() -> None:
    with pytest.raises(ValueError, match="could not convert") as raised:
        float("postgresql://u:s3cret@h")
    assert 'float("postgresql://u:***@h")' in explain(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing here", "nothing here"),
        ("redis://u:a@h and redis://:b@h/1", "redis://u:***@h and redis://:***@h/1"),
        ("write redis://USER:PASSWORD@HOST", "write redis://USER:PASSWORD@HOST"),
        ("redis://u@h:6379/0", "redis://u@h:6379/0"),
        ("https://u:a@h/x?mail=b@c", "https://u:***@h/x?mail=b@c"),
        ("http://h:80/@me", "http://h:80/@me"),
        ("postgresql://h/d?password=a&user=u", "postgresql://h/d?password=***&user=u"),
        ("connect(user='u', password='a b')", "connect(user='u', password=***)"),
        ('connect(password="a b", user="u")', 'connect(password=***, user="u")'),
        ("host=h password=a dbname=d", "host=h password=*** dbname=d"),
    ],
)
def test_only_the_password_of_an_address_is_hidden(text: str, expected: str) -> None:
    assert without_passwords(text) == expected


def test_a_password_with_a_sign_that_ends_a_host_is_refused_with_the_way_to_write_it() -> None:
    for take in (RedisServer, PostgresServer):
        with pytest.raises(RepidError, match="write / as %2F"):
            take("redis://u:a/b@h" if take is RedisServer else "postgresql://u:a/b@h/d")
    assert "h:6379" in repr(RedisServer("redis://u:a%2Fb@h"))


@pytest.mark.parametrize(
    "arguments", [["redis://u:s3cret@h"], ["version", "redis://u:s3cret@h"], ["move", "foo://u:s3cret@h", "x"]]
)
def test_the_command_line_never_shows_the_password_in_what_it_was_given(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from repid.cli import run

    with pytest.raises(SystemExit) as ended:
        run(arguments, "repid")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "://u:***@h" in said
    assert SECRET not in said
