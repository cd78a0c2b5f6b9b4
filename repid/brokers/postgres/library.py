"""psycopg, imported once the first server is made: without the extra `postgres` that says what to install."""

from __future__ import annotations

from ...errors import MissingExtra

try:
    from psycopg import Connection, Error
    from psycopg.adapt import Transformer
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import DiagnosticField, ExecStatus, PipelineStatus, TransactionStatus
    from psycopg.pq.abc import PGconn, PGresult
except ImportError:
    raise MissingExtra("PostgresServer", "postgres") from None

__all__ = [
    "Connection",
    "DiagnosticField",
    "Error",
    "ExecStatus",
    "PGconn",
    "PGresult",
    "PipelineStatus",
    "TransactionStatus",
    "Transformer",
    "conninfo_to_dict",
]
