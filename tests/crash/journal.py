"""What the children write down: one line for each step, appended with a single write, so that it survives SIGKILL.

Every time is read from CLOCK_BOOTTIME, so times of different processes compare. It is the clock of SQLite's leases, too.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec

Kind: TypeAlias = Literal["Ack", "Retry", "Release", "DeadLetter", "Cancel"]


class Lease(NamedTuple):
    """One delivery. Of two leases of one message the later one has the greater token."""

    id: str
    token: int
    attempt: int
    lost: int


class Judged(NamedTuple):
    """One verdict on its way, with the ids of its outbox."""

    id: str
    token: int
    kind: Kind
    outbox: tuple[str, ...]


class Entry(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A line of a journal. `at`: when it was written."""

    at: float


class Intended(Entry, frozen=True):
    """These will be published now, in one call."""

    ids: list[str]


class Confirmed(Entry, frozen=True):
    """The broker has said that these are published."""

    ids: list[str]


class Proved(Entry, frozen=True):
    """Calls that had no answer were made again. These exist from the first time; those are published anew, perhaps for
    the second time.
    """

    existed: list[str]
    anew: list[str]


class Claimed(Entry, frozen=True):
    """The broker has leased these; it was asked at `asked`."""

    asked: float
    leases: list[Lease]


class Extended(Entry, frozen=True):
    """The broker has said that these leases start anew; it was asked at `asked`."""

    asked: float
    tokens: list[int]


class Started(Entry, frozen=True):
    """The actor begins."""

    id: str
    token: int


class Finished(Entry, frozen=True):
    """The actor ends without an error."""

    id: str
    token: int


class Settling(Entry, frozen=True):
    """The broker will be told these verdicts now, in one call."""

    verdicts: list[Judged]


class Settled(Entry, frozen=True):
    """The broker has answered: these tokens were accepted, those refused.

    unanswered: the call with the verdict was not answered, or a former one was not and by now the lease is over.
    """

    accepted: list[int]
    refused: list[int]
    unanswered: list[int] = []


class Stepped(Entry, frozen=True):
    """A named step is reached: the process kills or stops itself now."""

    step: str


class Linked(Entry, frozen=True):
    """The link to the server is up, or is not any more."""

    up: bool


class Told(Entry, frozen=True):
    """A warning, or worse, was logged that is not about one message."""

    text: str


Line: TypeAlias = (
    Intended
    | Confirmed
    | Proved
    | Claimed
    | Extended
    | Started
    | Finished
    | Settling
    | Settled
    | Stepped
    | Linked
    | Told
)

_decode = msgspec.json.Decoder(Line).decode
_encode = msgspec.json.Encoder().encode


def now() -> float:
    """Seconds on the clock all processes share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Journal:
    """One process's own file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: Line) -> None:
        """Append the line; it is in the file when this returns."""
        data = _encode(line) + b"\n"
        written = os.write(self._file, data)
        assert written == len(data), "the disk is full"


def read_journal(path: Path) -> list[Line]:
    """The lines of a file. A torn last line is left out: what it would have said had not happened yet."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [_decode(line) for line in whole.split(b"\n")] if whole else []
