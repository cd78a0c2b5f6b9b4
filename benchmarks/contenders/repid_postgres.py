"""repid on PostgreSQL, on trio, in the environment that runs the harness. `PostgresServer` as it comes."""

from __future__ import annotations

from functools import partial

from repid import PostgresServer

from ._repid_ageing import measure_ageing
from ._repid_on_a_server import measure_idle, measurements_on
from ._servers import logged
from ._shared import Arguments, Measurement, on_trio
from .repid_processes import measure_workers


def open_server(arguments: Arguments) -> PostgresServer:
    return PostgresServer(arguments["url"])


def open_logged(arguments: Arguments) -> PostgresServer:
    return PostgresServer(logged(arguments["url"]))


MEASUREMENTS: dict[str, Measurement] = {
    **measurements_on("postgres", open_server),
    "postgres-idle": on_trio(partial(measure_idle, open_logged)),
    "postgres-workers": partial(measure_workers, None),
    "postgres-ageing": on_trio(measure_ageing),
}
DISTRIBUTIONS = ("repid-trio", "trio", "msgspec", "psycopg")
