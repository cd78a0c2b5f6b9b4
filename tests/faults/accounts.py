"""What was confirmed, refused, handed out and settled; and whether the file agrees."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import trio

from repid import BrokerRefused, BrokerUnavailable, ConfigurationError, Envelope, SQLiteServer
from repid.delivery import ACK, Delivery, Settlement
from repid.ports import Consumer

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds after which what has not come about will not."""


def is_fault(error: Exception) -> bool:
    """Whether it tells of a statement that failed. Nothing was changed then, and the next call may succeed."""
    is_damage = isinstance(error, BrokerRefused | ConfigurationError) and "is damaged" in str(error)
    return isinstance(error, BrokerUnavailable) or is_damage


class Account:
    """Every message of one server by its id. `troubles`: what does not add up."""

    def __init__(self, server: SQLiteServer) -> None:
        self.server = server
        self.confirmed: set[str] = set()
        self.refused: set[str] = set()
        self.cancelled: set[str] = set()
        self.settled: set[str] = set()
        self.handed_out: list[Delivery] = []
        self.troubles: list[str] = []

    @property
    def is_done(self) -> bool:
        """Whether nothing that was confirmed is left to do."""
        return self.confirmed <= self.settled | self.cancelled

    async def publish(self, envelopes: list[Envelope]) -> None:
        """Publish; what is refused is not tried again."""
        ids = {envelope.id for envelope in envelopes}
        try:
            outcomes = await self.server.publish(envelopes)
        except Exception as error:
            if not is_fault(error):
                raise
            self.refused |= ids
        else:
            self.troubles += [f"publishing said {outcome}" for outcome in outcomes if outcome is not None]
            self.confirmed |= ids

    async def cancel(self, id_: str) -> None:
        if await self.insist(lambda: self.server.cancel(id_)) == "cancelled":
            self.cancelled.add(id_)

    async def settle(self, consumer: Consumer, deliveries: list[Delivery]) -> None:
        """Acknowledge what was handed out, until the server has answered."""
        self.handed_out += deliveries
        for delivery in deliveries:
            settlement = Settlement(delivery, ACK)
            [verdict] = await self.insist(lambda: consumer.settle([settlement]))  # noqa: B023  called at once
            if verdict.accepted:
                self.settled.add(delivery.envelope.id)
            else:
                self.troubles.append(f"the verdict on {delivery.envelope.id} was refused, though its lease was ours")

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until no statement fails in it."""
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    return await call()
                except Exception as error:
                    if not is_fault(error):
                        raise
                    await trio.sleep(0.001)

    async def for_ever(self, call: Callable[[], Awaitable[object]]) -> None:
        """Make a call again and again, whatever fails; what ends it otherwise is a trouble."""
        while True:
            try:
                await call()
            except Exception as error:  # noqa: BLE001  told with everything else
                if not is_fault(error):
                    self.troubles.append(f"who waited was told {error!r}")
                    return
                await trio.sleep(0.001)

    def close(self, path: Path) -> list[str]:
        """Compare with the file; everything that does not add up."""
        handed_out = Counter(delivery.envelope.id for delivery in self.handed_out)
        tokens = Counter(delivery.token for delivery in self.handed_out)
        expected = self.confirmed - self.settled - self.cancelled
        checks: dict[str, Iterable[object]] = {
            "refused, yet handed out": handed_out.keys() & self.refused,
            "never sent, yet handed out": handed_out.keys() - self.confirmed,
            "handed out twice": [id_ for id_, times in handed_out.items() if times > 1],
            "tokens used twice": [token for token, times in tokens.items() if times > 1],
        }
        for what, found in checks.items():
            self.troubles += [f"{what}: {item}" for item in found]
        return [*self.troubles, *check_file(path, expected)]


def check_file(path: Path, expected: set[str]) -> list[str]:
    """What is wrong with the file: these messages, and no others, are to be in it, each in one place."""
    connection = sqlite3.connect(path)

    def ask(sql: str) -> list[object]:
        return [value for (value,) in connection.execute(sql)]

    troubles = [f"the file: {text}" for text in ask("PRAGMA integrity_check") if text != "ok"]
    present = Counter(map(str, ask("SELECT id FROM message UNION ALL SELECT id FROM dead")))
    troubles += [f"confirmed and lost: {id_}" for id_ in expected - present.keys()]
    troubles += [f"in the file, and should not be: {id_}" for id_ in present.keys() - expected]
    troubles += [f"in the file {times} times: {id_}" for id_, times in present.items() if times > 1]
    places = "SELECT seq FROM ready UNION ALL SELECT seq FROM scheduled UNION ALL SELECT seq FROM lease"
    troubles += [f"in two places: {seq}" for seq in ask(f"SELECT seq FROM ({places}) GROUP BY seq HAVING count(*) > 1")]
    troubles += [f"in no place: {seq}" for seq in ask(f"SELECT seq FROM message WHERE seq NOT IN ({places})")]
    troubles += [f"a place without a message: {seq}" for seq in ask(f"{places} EXCEPT SELECT seq FROM message")]
    connection.close()
    return troubles
