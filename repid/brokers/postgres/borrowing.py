"""Statements on the caller's own connection, in the caller's own transaction.

Theory. A psycopg connection, for blocking code or for asyncio, stands on libpq's calls that never block. While its
owner waits for us it is idle, whichever thread or event loop it belongs to; so trio waits for its socket meanwhile, and
nothing of its owner's loop is touched. The transaction is begun as psycopg would begin it, if it was not: psycopg looks
at libpq's own state, so its commit and rollback work as ever. Nothing is committed here, except on a connection that
commits by itself while no transaction is open: there a transaction of our own is begun, which has ended, in one way or
the other, when the owner has the connection back. The owner's next statements would be part of it, and never committed.

A statement that was sent is always seen through, because libpq can begin no other before its answer is there. A server
that does not even answer that it has cancelled the statement leaves nothing to be done with the connection: it is
closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from trio.lowlevel import wait_readable, wait_writable

from ...errors import BrokerRefused, PublishUnknown, UsageError
from ...producer import psycopg_connection
from .binding import Step, bind, statement
from .errors import ServerError, lost
from .library import (
    Error,
    ExecStatus,
    OperationalError,
    PGconn,
    PipelineStatus,
    PollingStatus,
    TransactionStatus,
    capabilities,
    reading,
)
from .wire import Rows, flush, next_result, refusal

PATIENCE = 10.0
"""Seconds that a statement on the caller's connection may take: it waits for others who publish the same id. Then it is
cancelled.
"""

LAST_PATIENCE = 4.0
"""Seconds that the server may then take to say so."""

_COMMIT = Step(statement("COMMIT"))
_ROLLBACK = Step(statement("ROLLBACK"))
_POLLED = {PollingStatus.READING: wait_readable, PollingStatus.WRITING: wait_writable}
_OPEN = {TransactionStatus.INTRANS, TransactionStatus.INERROR}
_ADVICE = {
    **dict.fromkeys(
        ("42501", "42P01", "3F000", "42703", "42883"),
        "it must be to the database and with a role that may use repid's schema",
    ),
    "25006": "its transaction must not be read-only",
    "57014": "it has waited for a lock too long, or longer than the connection's own statement_timeout allows",
    "55P03": "it has waited for a lock for longer than the connection's own lock_timeout allows",
    "40001": "its isolation level has transactions made again that others came in between",
    "40P01": "it and another transaction waited for each other",
}
"""By SQLSTATE, what to do, or what happened."""


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
    async def transaction(self, ids: Sequence[str]) -> AsyncIterator[None]:
        """Within the caller's transaction, which goes on; on a connection that commits by itself, in one of its own.

        Raises `PublishUnknown` of these ids where that one's end is not known.
        """
        is_ours = self._connection.autocommit and self._pgconn.transaction_status == TransactionStatus.IDLE
        try:
            yield
        except BaseException:
            if is_ours and self._pgconn.transaction_status in _OPEN:
                with suppress(ServerError, Error):
                    await self._carry_out(_ROLLBACK)
            raise
        if is_ours:
            await self._commit(ids)

    async def run(self, steps: Sequence[Step]) -> list[Rows]:
        """Carry statements out; the rows of each. Raises `BrokerRefused`: the caller's transaction has failed then."""
        try:
            if self._pgconn.transaction_status == TransactionStatus.IDLE:
                self._pgconn.send_query(_begin(self._connection))
                await self._rows()
            return [await self._carry_out(step) for step in steps]
        except ServerError as error:
            raise _refused(error) from error
        except Error as error:
            raise BrokerRefused(f"nothing was published: {lost(error)}") from error

    async def _commit(self, ids: Sequence[str]) -> None:
        try:
            await self._carry_out(_COMMIT)
        except ServerError as error:
            if error.code.startswith("57P"):  # it was told to end just then, before or after the commit
                raise PublishUnknown(ids) from error
            raise _refused(error) from error
        except Error as error:
            raise PublishUnknown(ids) from error

    async def _carry_out(self, step: Step) -> Rows:
        sql, arguments = step
        bound = bind(sql, self._schema)
        self._pgconn.send_query_params(bound.text, bound.encode(arguments), bound.oids, bound.formats, 1)
        return await self._rows()

    async def _rows(self) -> Rows:
        with trio.CancelScope(shield=True):  # what is half done leaves the caller a connection that cannot be used
            with trio.move_on_after(PATIENCE):
                return await self._wait()
            with trio.move_on_after(LAST_PATIENCE):
                if capabilities.has_cancel_safe():
                    await self._ask_to_cancel()
                return await self._wait()
        self._pgconn.finish()
        raise OperationalError(f"no answer within {PATIENCE + LAST_PATIENCE:g} s; the connection= was closed")

    async def _ask_to_cancel(self) -> None:
        """Ask the server, on a connection of its own, to cancel the statement. libpq can since version 17. Before, it
        could only in a call that returns when the server has answered, in which no thread of this process runs.
        """
        asking = self._pgconn.cancel_conn()
        try:
            asking.start()
            while (status := PollingStatus(asking.poll())) in _POLLED:
                await _POLLED[status](asking.socket)
        finally:
            asking.finish()

    async def _wait(self) -> Rows:
        await flush(self._pgconn)
        rows: Rows = []
        refused: ServerError | None = None
        while (result := await next_result(self._pgconn)) is not None:
            if result.status == ExecStatus.FATAL_ERROR:
                refused = refusal(result)
            elif result.ntuples:
                reader = reading()
                reader.set_pgresult(result)
                rows = reader.load_rows(0, result.ntuples, tuple)
        if refused is not None:
            raise refused
        return rows


def _refused(error: ServerError) -> BrokerRefused:
    advice = f"{_ADVICE[error.code]}; " if error.code in _ADVICE else ""
    return BrokerRefused(f"PostgreSQL refused to publish on the connection= ({error}): {advice}roll back now")


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
