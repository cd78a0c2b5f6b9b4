"""The few connections of one server object, and transactions that need more than one round trip."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from .binding import Statement, Step, statement
from .errors import ServerError, explain
from .wire import Rows, Wire

BEGIN = Step(statement("BEGIN"))
COMMIT = Step(statement("COMMIT"))
ROLLBACK = Step(statement("ROLLBACK"))


class Pool:
    """At most `most` connections; they are made when they are needed, and the last one used is used first."""

    def __init__(self, most: int, connect: Callable[[], Awaitable[Wire]]) -> None:
        self._connect = connect
        self._free = trio.Semaphore(most)
        self._idle: list[Wire] = []
        self._is_open = True

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """A connection for a block. What the server refuses is raised in repid's words, and its transaction is rolled
        back.
        """
        async with self._free:
            wire = await self._take()
            try:
                yield wire
            except ServerError as error:
                if wire.is_in_transaction:
                    await wire.run([ROLLBACK])
                raise explain(error) from error
            except BaseException:
                if wire.is_usable and wire.is_in_transaction:
                    wire.close()  # the server rolls back
                raise
            finally:
                if wire.is_usable and self._is_open:
                    self._idle.append(wire)
                else:
                    wire.close()

    async def run(self, *groups: Sequence[Step]) -> list[Rows]:
        """Carry out groups of statements on any connection, in one round trip."""
        async with self.wire() as wire:
            return await wire.run(*groups)

    async def ask(self, sql: Statement, *arguments: Any) -> Rows:
        """The rows of one statement."""
        [rows] = await self.run([Step(sql, arguments)])
        return rows

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not."""
        self._is_open = False
        while self._idle:
            self._idle.pop().close()

    async def _take(self) -> Wire:
        while self._idle:
            wire = self._idle.pop()
            if wire.is_alive():
                return wire
        return await self._connect()


@asynccontextmanager
async def in_transaction(wire: Wire, *after: Step) -> AsyncIterator[None]:
    """A transaction on this connection, committed at the end of the block. `after` is carried out behind it, alone."""
    await wire.run([BEGIN])
    yield
    await wire.run([COMMIT], *([step] for step in after))


@asynccontextmanager
async def transaction(pool: Pool, *after: Step) -> AsyncIterator[Wire]:
    """A transaction on any connection, as by `in_transaction`. It is rolled back where the block raises."""
    async with pool.wire() as wire, in_transaction(wire, *after):
        yield wire
