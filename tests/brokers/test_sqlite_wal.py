"""The log of an SQLite file: when what is published can be seen, is on the disk, and is answered."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from repid.brokers import SQLiteServer
from repid.errors import BrokerUnavailable, DuplicateId, PublishUnknown

from .broker_aids import ids, now_ready
from .sqlite_aids import ack, consuming, messages, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SQLite itself syncs all elsewhere")


class Disk:
    """Notes which messages others see when the log is synced by repid; fails while `is_broken`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[str]] = []
        self.is_broken = False
        self._path = path
        self._sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._note_and_sync)

    def _note_and_sync(self, descriptor: int) -> None:
        other = sqlite3.connect(self._path)
        self.seen.append([id_ for (id_,) in other.execute("SELECT id FROM message ORDER BY seq")])
        other.close()
        if self.is_broken:
            raise OSError(errno.EIO, "Input/output error")
        self._sync(descriptor)


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(path, monkeypatch)


async def test_others_see_a_message_before_it_is_on_the_disk_and_its_sender_is_answered_after(
    path: Path, disk: Disk
) -> None:
    async with serving(path) as server:
        await server.publish(messages("1"))
        assert disk.seen == [["1"]]
        await server.publish(messages("23"))
        assert disk.seen == [["1"], ["1", "2", "3"]]


async def test_repid_syncs_nothing_of_claims_and_of_settlements_which_sqlite_has_synced(path: Path, disk: Disk) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages("1"))
        assert await ack(consumer, await now_ready(consumer)) == [True]
    assert disk.seen == [["1"]]


async def test_nothing_is_synced_at_normal(path: Path, disk: Disk) -> None:
    server = SQLiteServer(path, synchronous="NORMAL")
    async with server.connection():
        await server.declare(["q"])
        await server.publish(messages("1"))
    assert disk.seen == []


async def test_a_duplicate_is_refused_only_when_the_first_one_is_on_the_disk(path: Path, disk: Disk) -> None:
    async with serving(path) as server, serving(path) as other:
        await server.publish(messages("1"))
        [refused] = await other.publish(messages("1"))
        assert isinstance(refused, DuplicateId)
        assert disk.seen == [["1"], ["1"]]


async def test_what_must_be_durable_and_writes_nothing_is_answered_when_all_that_it_saw_is_on_the_disk(
    path: Path, disk: Disk
) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages("1"))
        [delivery] = await now_ready(consumer)
        assert await ack(consumer, [delivery]) == [True]
        synced = len(disk.seen)
        assert await ack(consumer, [delivery]) == [False]
        assert len(disk.seen) == synced + 1


async def test_a_publish_that_the_disk_did_not_take_is_unknown_to_its_sender(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        disk.is_broken = True
        with pytest.raises(PublishUnknown) as caught:
            await server.publish(messages("12"))
        assert caught.value.ids == ("1", "2")
        disk.is_broken = False
        await server.publish(messages("3"))
        assert ids(await now_ready(consumer)) == ["1", "2", "3"]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [f"{path}-wal could not be synced"]


async def test_nothing_is_written_behind_what_the_disk_did_not_take(
    path: Path, tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """What stands behind a gap in the log is lost with the power: SQLite reads the log up to the gap."""
    caplog.set_level(logging.CRITICAL, "repid.sqlite")
    reader = sqlite3.connect(path, isolation_level=None)
    async with serving(path) as server:
        reader.execute("SELECT count(*) FROM message")
        await server.publish(messages("1"))
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM message").fetchall()  # it keeps the log from beginning anew
        disk.is_broken = True
        with pytest.raises(PublishUnknown):
            await server.publish(messages("2"))
        disk.is_broken = False
        with pytest.raises(BrokerUnavailable, match="log cannot begin anew"):
            await server.publish(messages("3"))
        reader.execute("ROLLBACK")
        while True:
            with suppress(BrokerUnavailable):
                await server.publish(messages("3"))
                break
        alone = tmp_path / "alone.db"
        shutil.copy(path, alone)  # without its log
    with closing(reader), closing(sqlite3.connect(alone)) as without_log:
        assert [id_ for (id_,) in without_log.execute("SELECT id FROM message ORDER BY seq")] == ["1", "2"]
