"""Bounded queues: what waits in them, and what has room. The rules are `repid.delivery.bounds`.

A transaction that sends to a bounded queue locks the row of that queue until it ends, so that two do not take the same
room. Then it counts what waits, and no further than the bound. Publishing in a transaction of the caller's own counts
without holding the row: it would keep all other senders waiting for as long as that transaction lasts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from ...delivery import Bounds, ever_fits, has_room, is_over, refusal
from ...delivery.shelf import DROPPED, Shelved
from ...errors import QueueFull
from ..shared.packing import pack
from .binding import Step, statement
from .directory import Directory, declaring
from .shelving import Taken, shelve, taking_waiting, to_taken
from .wire import Rows, Wire

Run: TypeAlias = Callable[[Sequence[Step]], Awaitable[list[Rows]]]

_LANES = "ANY(ARRAY(SELECT id FROM {s}.lane WHERE queue = $1))"
_WAITING = f"""
    SELECT seq FROM {{s}}.ready WHERE lane = {_LANES}
    UNION ALL SELECT seq FROM {{s}}.scheduled WHERE lane = {_LANES} LIMIT $2"""
_SIZE = "CROSS JOIN LATERAL (SELECT length(payload)::int8 AS bytes FROM {s}.message WHERE seq = w.seq OFFSET 0) AS m"
_COUNT = statement(f"SELECT count(*), 0::int8 FROM ({_WAITING}) AS w", "int8", "int8")
_COUNT_BYTES = statement(
    f"""
    SELECT count(*), coalesce(sum(m.bytes), 0)::int8 FROM ({_WAITING}) AS w {_SIZE}
    """,
    "int8",
    "int8",
)
_ALIVE = statement("SELECT id FROM {s}.message WHERE id = ANY($1)", "bytea[]")
_HOLD = statement("SELECT id FROM {s}.queue WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE", "int8[]")
_SET = statement("UPDATE {s}.queue SET bounds = $2 WHERE name = $1", "text", "bytea")
_DROPPED = statement("UPDATE {s}.queue SET dropped = dropped + $2 WHERE id = $1", "int8", "int8")
_OLDEST = statement(
    f"SELECT w.seq, m.bytes FROM (SELECT seq, rank FROM {{s}}.ready WHERE lane = {_LANES} ORDER BY rank, seq LIMIT $2) "
    f"AS w {_SIZE} ORDER BY w.rank, w.seq",
    "int8",
    "int8",
)
_OLDEST_SCHEDULED = statement(
    f"SELECT w.seq, m.bytes FROM (SELECT seq, due FROM {{s}}.scheduled WHERE lane = {_LANES} ORDER BY due, seq "
    f"LIMIT $2) AS w {_SIZE} ORDER BY w.due, w.seq",
    "int8",
    "int8",
)

_ALL = 2**62


def setting(bounds: dict[str, Bounds]) -> list[Step]:
    """What declares these queues and bounds them."""
    steps = declaring(sorted(bounds))
    return [*steps, *(Step(_SET, (name, None if one.are_none else pack(one))) for name, one in sorted(bounds.items()))]


def holding(directory: Directory, queues: Iterable[str]) -> Step:
    """What lets no other sender into these queues until the transaction ends."""
    return Step(_HOLD, (sorted(directory.number(queue) for queue in queues),))


async def measure(run: Run, directory: Directory, queues: Collection[str]) -> dict[str, tuple[int, int]]:
    """How many messages wait in these bounded queues, and the bytes of their payloads, as far as that matters."""
    rows = await run([_measuring(directory, queue) for queue in queues])
    return {queue: (size, volume) for queue, [(size, volume)] in zip(queues, rows, strict=True)}


def _measuring(directory: Directory, queue: str) -> Step:
    bounds = directory.bounds[queue]
    limit = _ALL if bounds.max_size is None or bounds.when_full == "drop_oldest" else bounds.max_size
    return Step(_COUNT if bounds.max_bytes is None else _COUNT_BYTES, (directory.number(queue), limit))


async def find_alive(run: Run, keys: Sequence[bytes]) -> set[bytes]:
    """Which of these ids are alive."""
    [rows] = await run([Step(_ALIVE, (list(keys),))])
    return {key for (key,) in rows}


class Admission:
    """Which messages have room, where so much waits."""

    def __init__(self, directory: Directory, waiting: dict[str, tuple[int, int]]) -> None:
        self._directory = directory
        self._waiting = waiting
        self._refused: dict[str, QueueFull] = {}

    def refuse(self, queue: str, more: int, volume: int) -> QueueFull | None:
        """Why `more` messages of `volume` bytes together are refused; None: they come in."""
        bounds = self._directory.bounds[queue]
        before = self._refused.get(queue)
        if before is None:  # what comes behind one that was refused must not overtake it
            size, present = self._waiting[queue]
            drops = bounds.when_full == "drop_oldest"
            if ever_fits(bounds, more, volume) if drops else has_room(bounds, size, present, more, volume):
                self._waiting[queue] = (size + more, present + volume)
                return None
        readers = self._directory.readers(queue) if before is None else before.readers
        refused = refusal(queue, bounds, more, volume, readers)
        if refused.can_fit and before is None:
            self._refused[queue] = refused
        return refused

    def refuse_whole(self, parts: dict[str, list[int]]) -> QueueFull | None:
        """Why messages of these sizes, by queue, are refused, which come in together or not at all."""
        before = dict(self._waiting)
        self._refused.clear()
        for queue, sizes in parts.items():
            refused = self.refuse(queue, len(sizes), sum(sizes))
            if refused is not None:
                self._waiting.update(before)
                return refused
        return None


async def drop_oldest(wire: Wire, directory: Directory, queues: Iterable[str]) -> dict[str, list[Taken]]:
    """Drop what those of these queues hold beyond their bounds that are bounded so; what was dropped."""
    dropped: dict[str, list[Taken]] = {}
    for queue in sorted(set(queues)):
        bounds = directory.bounds.get(queue)
        if bounds is not None and bounds.when_full == "drop_oldest":
            taken = await _drop(wire, directory, queue, bounds)
            if taken:
                dropped[queue] = taken
    return dropped


async def _drop(wire: Wire, directory: Directory, queue: str, bounds: Bounds) -> list[Taken]:
    number = directory.number(queue)
    size, volume = (await measure(wire.run, directory, [queue]))[queue]
    dropped: list[Taken] = []
    while is_over(bounds, size, volume):
        over = 1 if bounds.max_size is None else max(1, size - bounds.max_size)
        found, later = await wire.run([Step(_OLDEST, (number, over)), Step(_OLDEST_SCHEDULED, (number, over))])
        found = found or later
        ready, scheduled = await wire.run(taking_waiting([seq for seq, _ in found]))
        taken = to_taken([*ready, *scheduled])
        if not taken:  # others have taken it meanwhile
            break
        sizes: dict[int, int] = dict(found)
        await shelve(wire, [(one, Shelved(one.stored, end=DROPPED)) for one in taken])
        size -= len(taken)
        volume -= 0 if bounds.max_bytes is None else sum(sizes[one.seq] for one in taken)
        dropped += taken
    if dropped:
        await wire.run([Step(_DROPPED, (number, len(dropped)))])
    return dropped
