"""One connection to PostgreSQL, driven by trio.

Theory. psycopg's own connections wait with asyncio or in threads. What is below them, `psycopg.pq`, is documented:
libpq's calls that never block. So this module waits with trio and lets libpq do the rest: it sends statements, asks
whether the answer is there, and waits for the socket. A connection is made on a thread, since libpq looks up names and
reads password files then, which may block.

Statements are sent in libpq's pipeline mode: those of one group are one transaction, unless they say otherwise, and all
groups go in one round trip. Each statement is prepared once for each connection, unless a pooler is between us and the
server.

A wire that was cancelled while it waited for an answer cannot be used any more, and is closed.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeAlias

import trio
from trio.lowlevel import wait_readable, wait_writable

from .binding import Bound, Statement, Step, bind
from .errors import ServerError, explain_connect, is_only_late, lost
from .library import Connection, DiagnosticField, Error, ExecStatus, PGconn, PGresult, TransactionStatus, reading

log = logging.getLogger("repid.postgres")

Rows: TypeAlias = list[tuple[Any, ...]]


class Awaited(NamedTuple):
    """An answer to come: that a statement is prepared, its rows, or the end of a group, with which it is committed."""

    kind: Literal["prepared", "rows", "end"]
    is_hint: bool = False


_PREPARED, _PREPARED_HINT = Awaited("prepared"), Awaited("prepared", is_hint=True)
_ROWS, _ROWS_OF_HINT = Awaited("rows"), Awaited("rows", is_hint=True)
_END, _END_OF_HINTS = Awaited("end"), Awaited("end", is_hint=True)
_NOT_DONE = {ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED}


class Wire:
    """One connection. It is used by one task at a time. `prepares`: whether statements are kept by the server."""

    def __init__(self, connection: Connection[Any], schema: str, *, prepares: bool) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()
        self._schema = schema
        self._prepares = prepares
        self._bound: dict[Statement, tuple[bytes, Bound]] = {}
        self._names = itertools.count(1)
        self._rows = reading()
        self.is_usable = True

    def is_alive(self) -> bool:
        """Whether the connection stands, as far as that can be seen without waiting."""
        if not self.is_usable:
            return False
        with suppress(Error):
            self._pgconn.consume_input()  # maybe the server's last words,
            self._pgconn.consume_input()  # and then the end
            return True
        self.close()
        return False

    def close(self) -> None:
        """Close the connection; the server ends what it was doing for it."""
        self.is_usable = False
        self._connection.close()

    async def run(self, *groups: Sequence[Step]) -> list[Rows]:
        """Carry out the statements of all groups in one round trip; the rows of each statement.

        A group is one transaction. Raises `ServerError` where the server refused one: the rest of its group was not
        done.
        """
        expected = self._send(groups)
        self.is_usable = False  # until all answers are here
        try:
            await flush(self._pgconn)
            answers = await self._answers(expected)
        except Error as error:
            self.close()
            raise lost(error) from error
        except BaseException:
            self.close()
            raise
        self.is_usable = True
        for answer in answers:
            if isinstance(answer, ServerError):
                raise answer
        return [answer for answer in answers if isinstance(answer, list)]

    @property
    def is_in_transaction(self) -> bool:
        """Whether a transaction was begun and has not ended."""
        return self._pgconn.transaction_status != TransactionStatus.IDLE

    async def notified(self) -> list[bytes]:
        """Wait until the server says something by itself; what its notifications say. Cancelling loses nothing."""
        await wait_readable(self._pgconn.socket)
        found: list[bytes] = []
        try:
            self._pgconn.consume_input()
            while (notification := self._pgconn.notifies()) is not None:
                found.append(notification.extra)
        except Error as error:
            self.close()
            raise lost(error) from error
        return found

    def _send(self, groups: Sequence[Sequence[Step]]) -> list[Awaited]:
        """Hand the statements to libpq. Returns the answers to come."""
        expected: list[Awaited] = []
        send = self._pgconn
        try:
            for group in groups:
                for statement, arguments in group:
                    name, bound = self._bound.get(statement) or self._bind(statement, expected)
                    send.send_query_prepared(name, bound.encode(arguments), bound.formats, 1)
                    expected.append(_ROWS_OF_HINT if statement.is_hint else _ROWS)
                send.pipeline_sync()
                expected.append(_END_OF_HINTS if all(step.statement.is_hint for step in group) else _END)
        except Error as error:
            self.close()
            raise lost(error) from error
        return expected

    def _bind(self, statement: Statement, expected: list[Awaited]) -> tuple[bytes, Bound]:
        bound = bind(statement, self._schema)
        name = b"repid_%d" % next(self._names) if self._prepares else b""
        self._pgconn.send_prepare(name, bound.text, bound.oids)
        expected.append(_PREPARED_HINT if statement.is_hint else _PREPARED)
        if self._prepares:
            self._bound[statement] = name, bound
        return name, bound

    async def _answers(self, expected: Sequence[Awaited]) -> list[Rows | ServerError]:
        answers: list[Rows | ServerError] = []
        for kind, is_hint in expected:
            result = await next_result(self._pgconn)
            assert result is not None, "libpq has no result for a statement that was sent"
            status = result.status
            if status == ExecStatus.FATAL_ERROR:
                self._bound.clear()  # what was to be prepared may not be
                refused = refusal(result)
                if is_hint and is_only_late(refused):
                    log.warning("other processes were not woken, and look within some seconds: %s", refused)
                else:
                    answers.append(refused)
            elif kind == "rows" and status != ExecStatus.PIPELINE_ABORTED:
                answers.append(self._load(result))
            if kind == "rows" and is_hint and status in _NOT_DONE:
                answers.append([])
            if kind == "end":
                await self._reach_end(status)
            elif await next_result(self._pgconn) is not None:
                raise AssertionError("one statement gave two results")
        return answers

    async def _reach_end(self, status: int) -> None:
        """See that all answers to a group are read. A commit that fails (NOTIFY, a deferred trigger) has one more."""
        if status == ExecStatus.FATAL_ERROR:
            assert await next_result(self._pgconn) is None
            end = await next_result(self._pgconn)
            status = ExecStatus.FATAL_ERROR if end is None else end.status
        if status != ExecStatus.PIPELINE_SYNC:
            raise AssertionError("libpq gave another result in the place of the end of a group")

    def _load(self, result: PGresult) -> Rows:
        if not result.ntuples:
            return []
        self._rows.set_pgresult(result)
        return self._rows.load_rows(0, result.ntuples, tuple)


async def flush(pgconn: PGconn) -> None:
    """Have everything sent. What the server says meanwhile is read: otherwise both might wait for each other."""
    while pgconn.flush():
        async with trio.open_nursery() as nursery:

            async def until_readable(scope: trio.CancelScope) -> None:
                await wait_readable(pgconn.socket)
                pgconn.consume_input()
                scope.cancel()

            nursery.start_soon(until_readable, nursery.cancel_scope)
            await wait_writable(pgconn.socket)
            nursery.cancel_scope.cancel()


async def next_result(pgconn: PGconn) -> PGresult | None:
    """The next result of a statement; None behind its last one."""
    while pgconn.is_busy():
        await wait_readable(pgconn.socket)
        pgconn.consume_input()
    return pgconn.get_result()


def refusal(result: PGresult) -> ServerError:
    """Why the server refused a statement."""
    code = result.error_field(DiagnosticField.SQLSTATE) or b""
    return ServerError(code.decode(), result.get_error_message())


async def connect(conninfo: str, options: Mapping[str, Any], schema: str, *, prepares: bool) -> Wire:
    """A new connection. Raises what `explain_connect` makes of a failure. Cancelled: none is left open."""
    lock, abandoned = threading.Lock(), False
    made: Connection[Any] | None = None
    # A common one would be short of a place whenever a run ends before its thread does.
    limiter = trio.CapacityLimiter(1)

    def make() -> None:
        nonlocal made
        connection: Connection[Any] = Connection.connect(conninfo, autocommit=True, **options)
        with lock:
            if not abandoned:
                made = connection
                return
        connection.close()

    try:
        await trio.to_thread.run_sync(make, abandon_on_cancel=True, limiter=limiter)
    except Error as error:
        raise explain_connect(error) from error
    except BaseException:
        with lock:
            abandoned = True
        if made is not None:  # in the moment of the cancellation
            made.close()
        raise
    assert made is not None
    return Wire(made, schema, prepares=prepares)
