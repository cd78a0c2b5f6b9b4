"""The short form of `python -m tests.faults`, and its accounts held against what is wrong on purpose."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from repid import Envelope, SQLiteServer
from repid.delivery import Delivery

from .accounts import Account, check_file
from .comparing import compare
from .disk import run_in_a_process
from .injection import KINDS, Kind
from .statements import plans, run_plan

pytestmark = pytest.mark.real_time

SEED = int(os.environ.get("REPID_TEST_SEED", "0"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", KINDS)
def test_whichever_statement_fails_every_message_is_accounted_for(tmp_path: Path, kind: Kind) -> None:
    chosen = [plan for plan in plans(SEED, 100) if plan.kind == kind][:10]
    troubles = []
    for number, plan in enumerate(chosen):
        troubles += trio.run(run_plan, plan, tmp_path / f"{number}.db")
    assert troubles == []


def test_while_the_disk_is_full_every_message_is_accounted_for(tmp_path: Path) -> None:
    assert run_in_a_process(SEED, tmp_path / "repid.db") == []


@pytest.mark.parametrize("number", range(4))
def test_both_brokers_give_the_same_answers(tmp_path: Path, number: int) -> None:
    assert compare(1000 * SEED + number, tmp_path / "repid.db") == []


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("DELETE FROM message; DELETE FROM ready", "confirmed and lost: 1"),
        ("UPDATE message SET id = '2'", "in the file, and should not be: 2"),
        ("DELETE FROM ready", "in no place: 1"),
        ("INSERT INTO scheduled SELECT 1, seq, lane FROM ready", "in two places: 1"),
        ("DELETE FROM message", "a place without a message: 1"),
        (
            "INSERT INTO message (seq, lane, rank, id, payload) VALUES (9, 1, 1, CAST('1' AS BLOB), x'')",
            "in no place: 9",
        ),
    ],
)
async def test_a_file_that_does_not_agree_is_found_out(tmp_path: Path, sql: str, found: str) -> None:
    path = tmp_path / "repid.db"
    server = SQLiteServer(path)
    async with server.connection():
        await server.declare(["q"])
        await server.publish([Envelope("1", "q", b"x")])
    assert check_file(path, {"1"}) == []
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.close()
    assert found in check_file(path, {"1"})


async def test_an_account_that_does_not_add_up_is_found_out(tmp_path: Path) -> None:
    server = SQLiteServer(tmp_path / "repid.db")
    async with server.connection():
        await server.declare(["q"])
    account = Account(server)
    account.refused.add("refused")
    account.handed_out = [
        Delivery(Envelope("refused", "q", b""), 1, 0, 7),
        Delivery(Envelope("unknown", "q", b""), 1, 0, 7),
        Delivery(Envelope("unknown", "q", b""), 1, 0, 8),
    ]
    assert set(account.close(tmp_path / "repid.db")) == {
        "refused, yet handed out: refused",
        "never sent, yet handed out: refused",
        "never sent, yet handed out: unknown",
        "handed out twice: unknown",
        "tokens used twice: 7",
    }
