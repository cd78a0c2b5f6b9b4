"""What is wrong with a Redis server is told in words, where it is found, and nothing is lost by it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from engines.proxy import proxy_to
from engines.redis import Redis, embedded

from repid import (
    BrokerRefused,
    BrokerUnavailable,
    ConfigurationError,
    Connection,
    InternalError,
    Job,
    Queue,
    Repid,
    RepidError,
    Router,
)
from repid.brokers.redis import RedisServer
from repid.brokers.redis.address import Address, parse_address
from repid.brokers.redis.errors import Refused, explain
from repid.brokers.redis.layout import keys_of
from repid.delivery import Ack, Bounds, Settlement

from .broker_aids import message


async def opening(server: RedisServer) -> RepidError:
    """What opening it raises."""
    with pytest.raises(RepidError) as caught:
        async with server.connection():
            pass
    return caught.value


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    error = await opening(RedisServer("redis://me:secret@127.0.0.1:1/3"))
    assert isinstance(error, BrokerUnavailable)
    assert "redis://127.0.0.1:1/3" in str(error)
    assert "Connection refused" in str(error)
    assert "exception" not in str(error)
    assert "secret" not in str(error)


def test_an_answer_that_did_not_come_in_time_is_told_in_words() -> None:
    told = explain(trio.TooSlowError(), "rediss://here:6379/0")
    assert str(told) == "rediss://here:6379/0 cannot be reached or does not answer: no answer came in time"


async def test_a_queue_with_too_long_a_name_is_refused_with_bounds_and_without(redis: Redis, prefix: str) -> None:
    name = "q" * 60_001
    async with RedisServer(redis.url, prefix=prefix).connection() as server:
        with pytest.raises(ConfigurationError, match="longer than 60000 bytes"):
            await server.declare([name])
        with pytest.raises(ConfigurationError, match="longer than 60000 bytes"):
            await server.set_bounds({name: Bounds(max_size=1)})
        assert await server.queues() == []


async def test_a_wrong_password_and_a_missing_one_are_told(redis: Redis) -> None:
    port = parse_address(redis.url).port
    redis.execute_all(("ACL", "SETUSER", "ann", "on", ">right", "~*", "&*", "+@all"))
    error = await opening(RedisServer(f"redis://ann:wrong@127.0.0.1:{port}"))
    assert isinstance(error, ConfigurationError)
    assert "right user and password" in str(error)
    with embedded("--requirepass", "secret") as locked:
        bare = RedisServer(locked.url)
        error = await opening(bare)
        assert isinstance(error, ConfigurationError)
        assert "redis://USER:PASSWORD@HOST:PORT" in str(error)
    assert await opens(RedisServer(f"redis://ann:right@127.0.0.1:{port}", prefix="ann"))
    redis.execute("DEL", *keys_of("ann"))


async def opens(server: RedisServer) -> bool:
    async with server.connection():
        await server.declare(["q"])
        async with server.consume({"q": None}) as consumer:
            await server.publish([message("1")])
            [delivery] = await consumer.receive(1)
            await consumer.settle([Settlement(delivery, Ack())])
        return True


async def test_a_user_with_the_rights_that_the_documentation_names_may_do_everything(redis: Redis, prefix: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    rights = (
        next(line for line in text.splitlines() if "ACL SETUSER" in line)
        .strip("` .")
        .replace("{repid}", f"{{{prefix}}}")
    )
    redis.execute(*rights.removesuffix("`.").split())
    port = parse_address(redis.url).port
    assert await opens(RedisServer(f"redis://worker:secret@127.0.0.1:{port}", prefix=prefix))
    for lacking in ("another", prefix):
        error = await opening(RedisServer(f"redis://worker:secret@127.0.0.1:{port}", prefix=lacking))
        assert isinstance(error, ConfigurationError)
        assert "needs the keys and channels" in str(error)
        redis.execute("ACL", "SETUSER", "worker", "resetchannels")


async def test_a_server_that_evicts_messages_is_refused(redis: Redis, prefix: str) -> None:
    redis.execute("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        error = await opening(RedisServer(redis.url, prefix=prefix))
    finally:
        redis.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert isinstance(error, ConfigurationError)
    assert "allkeys-lru" in str(error)


async def test_a_server_that_has_no_connection_left_is_away() -> None:
    with embedded("--maxclients", "2") as small:
        async with RedisServer(small.url).connection():
            error = await opening(RedisServer(small.url))
    assert isinstance(error, BrokerUnavailable)
    assert "raise its maxclients" in str(error)


async def test_a_server_that_knows_only_resp2_is_refused() -> None:
    with embedded("--rename-command", "HELLO", "") as old:
        error = await opening(RedisServer(old.url))
    assert isinstance(error, ConfigurationError)
    assert "RESP3" in str(error)


async def test_a_server_whose_commands_were_renamed_is_refused() -> None:
    with embedded("--rename-command", "EVALSHA", "") as limited:
        error = await opening(RedisServer(limited.url))
    assert isinstance(error, ConfigurationError)
    assert "lacks a command that repid needs" in str(error)


async def test_a_user_who_may_not_do_what_scripts_do_is_told(redis: Redis, prefix: str) -> None:
    redis.execute("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-time")
    port = parse_address(redis.url).port
    error = await opening(RedisServer(f"redis://limited:secret@127.0.0.1:{port}", prefix=prefix))
    assert isinstance(error, ConfigurationError)
    assert "needs the keys and channels" in str(error)


async def test_a_database_that_does_not_exist_is_told(redis: Redis) -> None:
    error = await opening(RedisServer(redis.url[:-1] + "99"))
    assert isinstance(error, ConfigurationError)
    assert "another number" in str(error)


async def test_a_read_only_replica_is_told_and_a_missing_replica_too(redis: Redis, prefix: str) -> None:
    port = parse_address(redis.url).port
    error = await opening(RedisServer(redis.url, prefix=prefix, wait_replicas=1))
    assert isinstance(error, BrokerUnavailable)
    assert "wait_replicas=1" in str(error)
    with embedded("--replicaof", f"127.0.0.1 {port}", "--repl-diskless-sync-delay", "0") as replica:
        for _ in range(100):
            if b"master_link_status:up" in replica.execute("INFO", "replication"):
                break
        error = await opening(RedisServer(replica.url, prefix=prefix))
        assert isinstance(error, BrokerUnavailable)
        assert "replica" in str(error) or "loading" in str(error)


async def test_a_key_of_another_program_is_told(redis: Redis, prefix: str) -> None:
    redis.execute("SET", f"{{{prefix}}}:ready", "mine")
    server = RedisServer(redis.url, prefix=prefix)
    async with server.connection():
        await server.declare(["q"])
        with pytest.raises(BrokerRefused, match="prefix="):
            raise (await server.publish([message("1")]))[0] or AssertionError("it was accepted")


async def accepts(job: Job) -> bool:
    try:
        await job.enqueue()
    except BrokerRefused:
        return False
    return True


async def test_workers_go_on_when_the_memory_is_full_and_nothing_accepted_is_lost(prefix: str) -> None:
    with embedded() as small:
        used = int(
            dict(line.split(b":", 1) for line in small.execute("INFO", "memory").splitlines() if b":" in line)[
                b"used_memory"
            ]
        )
        small.execute("CONFIG", "SET", "maxmemory", used + 3_000_000)
        app, router, seen = Repid(Connection(RedisServer(small.url, prefix=prefix))), Router(), []

        @router.actor
        async def work(number: int, filling: str) -> None:
            seen.append(number)

        app.include_router(router)
        accepted: list[int] = []
        refused = ""
        async with app.magic():
            await Queue().declare()
            for number in range(10_000):
                try:
                    await Job("work", args={"number": number, "filling": "x" * 10_000}).enqueue()
                except BrokerRefused as error:
                    refused = str(error)
                    break
                accepted.append(number)
            assert "maxmemory" in refused
            assert 50 < len(accepted) < 1000
            await app.run_worker(burst=True)
            assert sorted(seen) == accepted
            with trio.fail_after(10):  # the server frees the buffers of its clients a little later
                while not await accepts(Job("work", args={"number": -1, "filling": ""})):
                    await trio.sleep(0.05)


async def test_a_server_that_cannot_save_is_told_and_survived(tmp_path: Path) -> None:
    with embedded() as failing:
        folder = failing.execute("CONFIG", "GET", "dir")[1].decode()
        (Path(folder) / "dump.rdb").mkdir()  # a snapshot cannot take the place of a folder
        server = RedisServer(failing.url)
        failing.execute("CONFIG", "SET", "save", "3600 1")
        failing.execute("SET", "x", "1")
        failing.execute("BGSAVE")
        while b"rdb_last_bgsave_status:err" not in failing.execute("INFO", "persistence"):
            pass
        error = await opening(server)
        assert isinstance(error, BrokerUnavailable)
        assert "cannot save its data" in str(error)
        failing.execute("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        assert await opens(server)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (Refused("LOADING Redis is loading the dataset in memory"), BrokerUnavailable, "is loading its data"),
        (Refused("MOVED 1234 10.0.0.7:6380"), BrokerUnavailable, "10.0.0.7:6380"),
        (
            Refused("TRYAGAIN Multiple keys request during rehashing of slot"),
            BrokerUnavailable,
            "hands repid's keys over",
        ),
        (Refused("MASTERDOWN Link with MASTER is down"), BrokerUnavailable, "lost its primary"),
        (Refused("ERR Error running script: user_script:7: no"), InternalError, "a script failed"),
        (TimeoutError("timed out"), BrokerUnavailable, "does not answer"),
    ],
    ids=lambda value: "" if isinstance(value, str) else getattr(value, "__name__", type(value).__name__),
)
def test_what_a_server_rarely_says_is_told(error: Exception, kind: type[RepidError], words: str) -> None:
    told = explain(error, "redis://host/0")
    assert type(told) is kind
    assert words in str(told)
    assert "redis://host/0" in str(told)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RedisServer("http://localhost"), "begins with 'http'"),
        (lambda: RedisServer("127.0.0.1:6379"), "that does not begin with redis://"),
        (lambda: RedisServer("localhost:6379"), "that does not begin with redis://"),
        (lambda: RedisServer("redis+sentinel://localhost"), "must be like redis.sentinel://"),
        (lambda: RedisServer("redis+sentinel://localhost/mymaster/0/1"), "must be like redis.sentinel://"),
        (lambda: RedisServer("redis+sentinel://a,,b/mymaster"), "'' is no host"),
        (lambda: RedisServer("redis+sentinel://a:x/mymaster"), "'a:x' is no host"),
        (lambda: RedisServer("redis+sentinel://a/mymaster?timeout=3"), "sentinel_password, sentinel_user"),
        (lambda: RedisServer("redis+cluster://a,b/1"), "no database but 0"),
        (lambda: RedisServer("redis+proxy://a"), "begins with 'redis.proxy'"),
        (lambda: RedisServer("redis://localhost/0?timeout=3"), "timeout"),
        (lambda: RedisServer("redis://localhost/first"), "must be a number"),
        (lambda: RedisServer("redis://localhost:port"), "cannot be read"),
        (lambda: RedisServer("unix://"), "path of the socket"),
        (lambda: RedisServer(prefix="{a}"), "without braces"),
        (lambda: RedisServer(prefix=""), "without braces"),
        (lambda: RedisServer(wait_replicas=-1), "number of replicas"),
        (lambda: RedisServer(ssl_context=ssl.create_default_context()), "use rediss://"),
        (lambda: RedisServer(lease_timeout=0), "lease_timeout"),
    ],
)
def test_an_option_that_cannot_be_heeded_is_refused(make: Callable[[], RedisServer], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_an_address_is_read_in_all_its_forms() -> None:
    assert parse_address("redis://localhost") == Address()
    full = Address(host="h", port=1, secure=True, user="u@", password="p/", database=2)
    assert parse_address("rediss://u%40:p%2F@h:1/2") == full == parse_address("valkeys://u%40:p%2F@h:1/2")
    assert parse_address("redis://:p@h") == Address(host="h", password="p")
    assert parse_address("unix:///run/r.sock?db=3") == Address(path="/run/r.sock", database=3)


async def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with embedded("--unixsocket", str(socket)):
        assert await opens(RedisServer(f"unix://{socket}?db=2"))


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """What a server shows that calls itself localhost, and the certificate that its clients must trust."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_a_server_over_tls_is_checked(redis: Redis, prefix: str, tmp_path: Path) -> None:
    context, certificate = certified(tmp_path)
    async with proxy_to("127.0.0.1", parse_address(redis.url).port, context) as proxy:
        url = f"rediss://localhost:{proxy.port}/0"
        error = await opening(RedisServer(url, prefix=prefix))
        assert isinstance(error, BrokerUnavailable)
        assert "certificate verify failed" in str(error)
        assert await opens(RedisServer(url, prefix=prefix, ssl_context=ssl.create_default_context(cafile=certificate)))


def test_without_the_extra_its_name_is_told() -> None:
    program = "import sys; sys.modules['hiredis'] = None\nfrom repid import RedisServer"
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert "RedisServer needs an optional dependency: pip install 'repid-trio[redis]'" in run.stderr
