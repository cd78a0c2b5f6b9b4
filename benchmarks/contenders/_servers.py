"""What servers tell of themselves, with nothing but the standard library. `pid` in the arguments: the server's process."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from ._shared import Arguments, Figures, now, rate


def info(arguments: Arguments) -> dict[str, str]:
    """Its figures, by name."""
    address = urlsplit(arguments["url"])
    with (
        socket.create_connection((address.hostname, address.port), 5) as connection,
        connection.makefile("rwb") as stream,
    ):
        stream.write(b"INFO everything\r\n")
        stream.flush()
        text = stream.read(int(stream.readline()[1:])).decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def processor_time(arguments: Arguments) -> float | None:
    """Seconds that the server has worked; None where there is none, or nothing tells: of PostgreSQL, only Linux does."""
    if "url" not in arguments:
        return None
    if arguments["url"].startswith("redis"):
        found = info(arguments)
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])
    return _time_of_family(arguments["pid"]) if Path("/proc/self/stat").exists() else None


def _time_of_family(pid: int) -> float:
    """Seconds that a process and its children have worked, also those that have ended."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields = file.read_text().rpartition(")")[2].split()
            if file.parent.name == str(pid):
                ticks += sum(map(int, fields[11:15]))
            elif fields[1] == str(pid):
                ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def counting_queries(arguments: Arguments) -> Iterator[Callable[[], int]]:
    """Counts what clients ask of the server in the block. PostgreSQL counts statements, of those that have them logged:
    see `logged`.
    """
    if not arguments["url"].startswith("redis"):
        log = Path(arguments["log"])
        start = log.stat().st_size
        yield lambda: len(re.findall(rb"LOG:  (execute|statement)", log.read_bytes()[start:]))
        return
    address = urlsplit(arguments["url"])
    with socket.create_connection((address.hostname, address.port), 5) as connection:
        connection.sendall(b"MONITOR\r\n")
        connection.recv(16)
        connection.settimeout(0)

        def count() -> int:
            told = bytearray()
            with suppress(BlockingIOError):
                while some := connection.recv(65_536):
                    told += some
            return sum(b" lua] " not in line for line in told.splitlines() if line)

        yield count


def logged(url: str) -> str:
    """The same address, of a PostgreSQL that logs all statements of these connections."""
    return f"{url}?options=-c%20log_statement%3Dall"


class Watch:
    """Times a part of a measurement from now on, and how long the server works meanwhile."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._used = processor_time(arguments)
        self._start = now()

    def rate(self, count: int) -> Figures:
        """Messages a second until now, and the microseconds of processor time that the server took for each."""
        end, used = now(), processor_time(self._arguments)
        figures = rate(count, self._start, end)
        if used is not None and self._used is not None:
            figures["server"] = (used - self._used) / count * 1e6
        return figures


def memory_used(arguments: Arguments) -> int:
    """Bytes that the server has allocated."""
    return int(info(arguments)["used_memory"])
