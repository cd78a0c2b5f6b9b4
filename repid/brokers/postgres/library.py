"""psycopg, imported once the first server is made: without the extra `postgres` that says what to install."""

from __future__ import annotations

from ...errors import MissingExtra

try:
    from psycopg import Connection, Error, OperationalError, capabilities
    from psycopg.abc import Transformer as RowReader
    from psycopg.adapt import AdaptersMap, Transformer
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.postgres import register_default_adapters, register_default_types
    from psycopg.pq import Conninfo, DiagnosticField, ExecStatus, PipelineStatus, PollingStatus, TransactionStatus
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.types import TypesRegistry
    from psycopg.types.array import register_all_arrays
except ImportError:
    raise MissingExtra("PostgresServer", "postgres") from None

__all__ = [
    "Connection",
    "Conninfo",
    "DiagnosticField",
    "Error",
    "ExecStatus",
    "OperationalError",
    "PGconn",
    "PGresult",
    "PipelineStatus",
    "PollingStatus",
    "TransactionStatus",
    "capabilities",
    "conninfo_to_dict",
    "reading",
]

_OURS = AdaptersMap(types=TypesRegistry())
register_default_types(_OURS.types)
register_default_adapters(_OURS)
register_all_arrays(_OURS)


def reading() -> RowReader:
    """What reads rows. It knows nothing of loaders that the program has registered, for all connections or for its own:
    they are for the program's columns.
    """
    return Transformer(_OURS)
