"""repid on PostgreSQL where asyncio is the host, in the environment that runs the harness."""

from __future__ import annotations

from ._repid_on_a_server import measurements_under_asyncio
from ._shared import Measurement
from .repid_postgres import DISTRIBUTIONS, open_server

__all__ = ["DISTRIBUTIONS", "MEASUREMENTS"]

MEASUREMENTS: dict[str, Measurement] = measurements_under_asyncio("postgres", open_server)
