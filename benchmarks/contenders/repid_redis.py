"""repid on Redis, on trio, in the environment that runs the harness. `RedisServer` as it comes."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import hiredis

from repid import RedisServer

from ._repid_on_a_server import measure_growth, measure_size, measurements_on
from ._servers import memory_used
from ._shared import Arguments, Measurement, on_trio
from .repid_processes import measure_workers


def open_server(arguments: Arguments) -> RedisServer:
    return RedisServer(arguments["url"])


def memory_of_keys(arguments: Arguments) -> int:
    """Bytes of all that is stored, as MEMORY USAGE counts them."""
    address, parser = urlsplit(arguments["url"]), hiredis.Reader()
    with socket.create_connection((address.hostname, address.port), 5) as connection:

        def ask(*command: Any) -> Any:
            connection.sendall(hiredis.pack_command(command))
            while (reply := parser.gets()) is False:
                parser.feed(connection.recv(65_536))
            return reply

        return sum(ask("MEMORY", "USAGE", key, "SAMPLES", 0) or 0 for key in ask("KEYS", "*"))


MEASUREMENTS: dict[str, Measurement] = {
    **measurements_on("redis", open_server),
    "redis-workers": partial(measure_workers, None),
    "redis-growth": on_trio(partial(measure_growth, open_server, memory_of_keys)),
    "redis-size": on_trio(partial(measure_size, open_server, memory_used)),
}
DISTRIBUTIONS = ("repid-trio", "trio", "msgspec", "hiredis")
