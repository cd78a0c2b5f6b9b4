"""Statements on the caller's own connection, in the caller's own transaction.

Theory. A psycopg connection, for blocking code or for asyncio, stands on libpq's calls that never block. While its
owner waits for us it is idle, whichever thread or event loop it belongs to; so trio waits for its socket meanwhile, and
nothing of its owner's loop is touched. The transaction is begun as psycopg would begin it, if it was not: psycopg looks
at libpq's own state, so its commit and rollback work as ever. Nothing is committed here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from ...errors import BrokerRefused, UsageError
from ...producer import psycopg_connection
from .binding import Step, bind, statement
from .errors import ServerError, lost
from .library import Error, ExecStatus, PGconn, PipelineStatus, TransactionStatus, Transformer
from .wire import Rows, flush, next_result, refusal

PATIENCE = 10.0
"""Seconds that a statement on the caller's connection may take: it waits for others who publish the same id. Then it is
cancelled.
"""

_COMMIT = Step(statement("COMMIT"))
_ROLLBACK = Step(statement("ROLLBACK"))


class Borrowed:
    """The caller's connection, while the caller waits for us."""

    def __init__(self, connection: Any, schema: str) -> None:
        self._connection = psycopg_connection(connection)
        self._pgconn: PGconn = self._connection.pgconn
        self._schema = schema
        status = self._pgconn.transaction_status
        if self._connection.lock.locked() or status == TransactionStatus.ACTIVE:
            raise UsageError("the connection= is in use: no other task or thread may use it during this call")
        if status == TransactionStatus.UNKNOWN:
            raise UsageError("the connection= is closed or broken")
        if status == TransactionStatus.INERROR:
            raise UsageError("the transaction of the connection= has failed: roll it back first")
        if self._pgconn.pipeline_status != PipelineStatus.OFF:
            raise UsageError("the connection= is in pipeline mode: leave that before")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Within the caller's transaction, which goes on; on a connection that commits by itself, in one of its own."""
        is_ours = self._connection.autocommit and self._pgconn.transaction_status == TransactionStatus.IDLE
        try:
            yield
        except BaseException:
            if is_ours and self._pgconn.transaction_status == TransactionStatus.INERROR:
                await self.run([_ROLLBACK])
            raise
        if is_ours:
            await self.run([_COMMIT])

    async def run(self, steps: Sequence[Step]) -> list[Rows]:
        """Carry statements out; the rows of each. Raises `BrokerRefused`: the caller's transaction has failed then."""
        try:
            if self._pgconn.transaction_status == TransactionStatus.IDLE:
                self._pgconn.send_query(_begin(self._connection))
                await self._rows()
            found = []
            for sql, arguments in steps:
                bound = bind(sql, self._schema)
                self._pgconn.send_query_params(bound.text, bound.encode(arguments), bound.oids, bound.formats, 1)
                found.append(await self._rows())
        except ServerError as error:
            raise BrokerRefused(
                f"PostgreSQL refused to publish on the connection= ({error}): it must be to the database and with a "
                "role that may use repid's schema; roll back now"
            ) from error
        except Error as error:
            raise BrokerRefused(f"nothing was published: {lost(error)}") from error
        return found

    async def _rows(self) -> Rows:
        found: list[Rows] = []
        with trio.CancelScope(shield=True):  # what is half done leaves the caller a connection that cannot be used
            with trio.move_on_after(PATIENCE):
                found.append(await self._wait())
            if not found:
                await trio.to_thread.run_sync(self._pgconn.get_cancel().cancel)
                found.append(await self._wait())
        return found[0]

    async def _wait(self) -> Rows:
        await flush(self._pgconn)
        rows: Rows = []
        refused: ServerError | None = None
        while (result := await next_result(self._pgconn)) is not None:
            if result.status == ExecStatus.FATAL_ERROR:
                refused = refusal(result)
            elif result.ntuples:
                transformer = Transformer(self._connection)
                transformer.set_pgresult(result)
                rows = transformer.load_rows(0, result.ntuples, tuple)
        if refused is not None:
            raise refused
        return rows


def _begin(connection: Any) -> bytes:
    """How psycopg begins a transaction on this connection."""
    parts = ["BEGIN"]
    if connection.isolation_level is not None:
        parts.append(f"ISOLATION LEVEL {connection.isolation_level.name.replace('_', ' ')}")
    if connection.read_only is not None:
        parts.append("READ ONLY" if connection.read_only else "READ WRITE")
    if connection.deferrable is not None:
        parts.append("DEFERRABLE" if connection.deferrable else "NOT DEFERRABLE")
    return " ".join(parts).encode()
