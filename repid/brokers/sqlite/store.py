"""The state of one file as one thread works on it: what every operation shares.

Rules. An operation runs inside a transaction that its caller began and will commit, maybe together with other
operations. It raises errors of repid only before it has changed anything. After the commit `committed` is called, and
after a rollback `forget`: then what is remembered of the file may be wrong, and none of it is used before `look` has
read it anew. What an earlier transaction committed stays: consumers opened by it are open. Numbers that were taken for
messages are never taken again, although the file offers them again after a rollback.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ...delivery import NewResult
from ...delivery.shelf import EXPIRED, End
from ...ports import Topics, UnderWay
from ..shared.dropping import DropLog
from ..shared.packing import pack
from .clock import MICRO, Clock
from .directory import VERSION, Directory
from .heads import Heads
from .results import conclude, forget_old, store_results
from .rows import LISTED, to_list

LEASES_TOLD_APART = 4096
"""A token is `seq * 4096 + n`, n being the number of the message's lease modulo 4096."""

CONSUMER_TIME = 30 * MICRO
"""A consumer that was silent for this long counts as dead: messages that only it takes may go to others."""

BEATS = 4
"""How often our consumers renew their entry in that time, and in each lease."""

_NOBODY: Mapping[str, UnderWay] = {}

_SEQ_BLOCK = 4096
"""Numbers that are taken from the file at once. Those left over when the file is closed are never used."""

_NEVER = 2**62

BITE = 1000
"""Messages that one transaction moves because they are due or expired: that takes some ten milliseconds (measured).
Other processes get the lock before the next ones are moved."""

_LOOK = f"""
SELECT {VERSION}, EXISTS (SELECT 1 FROM result), (SELECT min(due) FROM scheduled),
    (SELECT min(expires_at) FROM message WHERE expires_at > 0)
FROM meta
"""  # noqa: S608
_LAST_DUE = "SELECT due, seq FROM scheduled WHERE due <= ? ORDER BY due, seq LIMIT 1 OFFSET ?"
_PROMOTE = """
INSERT INTO ready SELECT scheduled.lane, message.rank, message.seq
FROM scheduled JOIN message ON message.seq = scheduled.seq WHERE (scheduled.due, scheduled.seq) <= (?, ?)
"""
_EXPIRED = """
SELECT seq, EXISTS (SELECT 1 FROM lease WHERE lease.seq = message.seq)
FROM message WHERE expires_at > 0 AND expires_at <= ? ORDER BY expires_at LIMIT ?
"""
_EXPIRED_ON_LEASE = f"UPDATE message SET expires_at = 0 WHERE seq IN {LISTED}"  # noqa: S608
_WAITING = f"""
SELECT seq FROM message WHERE seq IN {LISTED} AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.seq = message.seq)
"""  # noqa: S608
_REMOVE_ALL = f"DELETE FROM message WHERE seq IN {LISTED}"  # noqa: S608
_TAKE_OUT_ALL = (
    f"DELETE FROM scheduled WHERE (due, seq) IN (SELECT due, seq FROM message WHERE seq IN {LISTED})",  # noqa: S608
    f"DELETE FROM ready WHERE (lane, rank, seq) IN (SELECT lane, rank, seq FROM message WHERE seq IN {LISTED})",  # noqa: S608
)
_STRIKE_OUT_ALL = (
    f"DELETE FROM scheduled WHERE seq IN {LISTED}",  # noqa: S608
    f"DELETE FROM ready WHERE seq IN {LISTED}",  # noqa: S608
)
"""These read the whole table."""

_BURY = """
INSERT INTO dead (queue, lane, id, payload, content_type, headers, extra, result_id, attempt, lost, reason, failure,
    died_at, enqueued_at, progress)
SELECT lane.queue, lane, message.id, payload, content_type, headers, extra, result_id, attempt, lost, ?,
    ?, ?, enqueued_at, progress
FROM message JOIN lane ON lane.id = message.lane WHERE seq"""
_BURY_ONE = f"{_BURY} = ?"
_BURY_ALL = f"{_BURY} IN {LISTED} ORDER BY expires_at, seq"


class Store:
    """One connection, the time, and what is remembered of the file between transactions.

    `now` and `boot_now` are those of the present transaction, in microseconds. Since `begin_noting`, `arrived` says
    whether anything became ready, `has_moved` whether time moved any message, `has_requests` whether a cancellation was
    requested. `waiting`: of bounded queues, by their ids, how many messages wait and with how many bytes, as far as
    that was counted in the present transaction. `next_event`: when the next message falls due or expires, or earlier.
    `has_results`: whether any result may be stored. `consumers`: ours, with what they take, and `beat_due`: when they
    have to be heard of again, on the boot clock.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        clock: Clock,
        lease_timeout: int,
        earlier: Store | None = None,
        *,
        vouchers: Mapping[str, UnderWay] = _NOBODY,
    ) -> None:
        """`earlier`: the store of a connection that had to be given up; its consumers are this one's now.

        `vouchers`: what our consumers are working on.
        """
        self.connection = connection
        self.execute = connection.execute
        self.write = connection.cursor().execute
        """As `execute`, for statements that have no rows to read: it makes no cursor for each."""
        self._ask_version = partial(connection.cursor().execute, "PRAGMA data_version")
        self._data_version: int | None = None  # at the last look
        self.clock = clock
        self.lease_timeout = lease_timeout
        self._vouchers = vouchers
        self._beat_time = max(MICRO // 100, min(CONSUMER_TIME, lease_timeout) // BEATS)
        self.directory = Directory(connection)
        self.heads = Heads(connection)
        self.now = 0
        self.boot_now = 0
        self.boot = 0
        self.next_event: float = _NEVER
        self.has_results = True
        self.arrived = self.has_moved = self.has_requests = False
        self.waiting: dict[int, tuple[int, int]] = {}
        self.drop_log: DropLog = DropLog() if earlier is None else earlier.drop_log
        self.consumers: dict[int, bytes] = {} if earlier is None else earlier.consumers
        self.leaving: set[int] = set() if earlier is None else earlier.leaving  # closed, and they stand in the file yet
        self.beat_due = self.clock.boot() if self.has_consumers else _NEVER
        self.reported: set[str] = set()  # the schedules that cannot be read, of which that was said
        self._opening: dict[int, bytes] = {}  # consumers that the present transaction opens
        self._struck_off: set[int] = set()  # those of the leaving that the present transaction strikes off
        self._boot_id = ""
        self._free: range = range(0)
        self.unused: int = 0 if earlier is None else earlier.unused  # what was taken for messages is below this

    # Transactions

    def begin_noting(self) -> int:
        """Note from now on what changes for those who wait. Returns the version of the directory."""
        self.arrived = self.has_moved = self.has_requests = False
        self.waiting = {}
        return self.directory.version

    def look(self) -> None:
        """Bring what is remembered up to date. It is read anew if another connection has committed since the last look:
        of what this one does all is noted.
        """
        self.now = self.clock.wall()
        self.boot_now = self.clock.boot()
        (version,) = self._ask_version().fetchone()
        if version != self._data_version:
            self._read_anew()
            self._data_version = version
        if self._boot_id != self.clock.boot_id:
            self._find_boot()

    def _read_anew(self) -> None:
        *version, has_results, due, expiry = self.execute(_LOOK).fetchone()
        self.has_results = bool(has_results)
        moments = [moment for moment in (due, expiry) if isinstance(moment, int | float)]
        self.next_event = min(moments, default=_NEVER)
        self.directory.refresh(*version)

    @property
    def is_due(self) -> bool:
        """Whether only a write transaction can bring the file up to date."""
        return self.next_event <= self.now

    def advance(self) -> None:
        """Make ready what is due, bury what has expired, and tell that our consumers are alive."""
        if self._boot_id != self.clock.boot_id:
            self._register_boot()
        if self.is_due:
            self.has_moved = True
            self._promote()
            self._expire()
            self._read_anew()
        if self.beat_due <= self.boot_now:
            self._beat()

    def committed(self) -> None:
        """The transaction that wrote was committed."""
        if self._opening:
            self.consumers.update(self._opening)
            self._opening.clear()
        if self._struck_off:
            self.leaving -= self._struck_off
            self._struck_off.clear()

    def forget(self) -> None:
        """Forget what is remembered of the file: the transaction was rolled back."""
        self._data_version = None
        self.directory.forget()
        self.heads.forget()
        self._free = range(0)
        self._boot_id = ""
        self._opening.clear()
        self._struck_off.clear()
        self.beat_due = self.boot_now + MICRO if self.has_consumers else _NEVER
        self.next_event = 0

    # Consumers

    def open(self, queues: Mapping[str, Topics], known: int | None = None) -> int:
        """Enter a consumer; its id, which is the one it is known by if it has one. Raises `QueueNotDeclared`."""
        id_, takes = self.directory.open(queues, self.boot, self.boot_now + CONSUMER_TIME, known)
        self._opening[id_] = takes
        self.beat_due = min(self.beat_due, self.boot_now + self._beat_time)
        return id_

    def close(self, ids: Iterable[int]) -> None:
        """Let consumers of ours take nothing more; what they leased stays leased.

        Nothing is written, so this waits for no other process. The next write transaction strikes them off, and that
        is due now.
        """
        ours = self.consumers.keys() & set(ids)
        for id_ in ours:
            del self.consumers[id_]
        if ours:
            self.leaving |= ours
            self.beat_due = self.clock.boot()

    @property
    def has_consumers(self) -> bool:
        """Whether consumers of ours stand in the file."""
        return bool(self.consumers or self.leaving)

    def _beat(self) -> None:
        """Tell the other processes which of our consumers are present."""
        if self.leaving:
            self.directory.close(self.leaving)
            self._struck_off = set(self.leaving)
        if self.consumers:
            self.directory.renew(self.consumers, self.boot, self.boot_now + CONSUMER_TIME)
            self._extend_what_is_under_way()
        self.beat_due = self.boot_now + self._beat_time if self.consumers else _NEVER

    def _extend_what_is_under_way(self) -> None:
        """Extend the leases of running work: while the event loop of a worker is blocked, nothing else does."""
        for under_way in list(self._vouchers.values()):
            self.each(
                "UPDATE lease SET until = max(until, ?) WHERE seq = ? AND n = ? AND boot = ?",
                [
                    (self.boot_now + int(min(left * MICRO, self.lease_timeout)), *split(token), self.boot)
                    for token, left in under_way().items()
                ],
            )

    # Time

    def _register_boot(self) -> None:
        self.execute("INSERT INTO boot (name) VALUES (?) ON CONFLICT DO NOTHING", (self.clock.boot_id,))
        self._find_boot()

    def _find_boot(self) -> None:
        name = self.clock.boot_id
        row = self.execute("SELECT id FROM boot WHERE name = ?", (name,)).fetchone()
        self.boot, self._boot_id = (0, "") if row is None else (row[0], name)

    def _promote(self) -> None:
        last = self.execute(_LAST_DUE, (self.now, BITE - 1)).fetchone() or (self.now, _NEVER)
        if self.execute(_PROMOTE, last).rowcount > 0:
            self.execute("DELETE FROM scheduled WHERE (due, seq) <= (?, ?)", last)
            self.note_arrival()

    def _expire(self) -> None:
        """Bury the first that have expired. What is leased is looked at when it comes back: it expired at 0 then."""
        found = self.execute(_EXPIRED, (self.now, BITE)).fetchall()
        leased = [seq for seq, is_leased in found if is_leased]
        waiting = [seq for seq, is_leased in found if not is_leased]
        if leased:
            self.execute(_EXPIRED_ON_LEASE, (to_list(leased),))
        if waiting:
            self._take_out_all(waiting)
            self.execute(_BURY_ALL, (EXPIRED.reason, None, self.now, to_list(waiting)))
            self._conclude(waiting, EXPIRED)
            self.remove_all(waiting)

    # Messages

    def note_arrival(self) -> None:
        """Note that a message has become ready."""
        self.arrived = True
        self.heads.forget()

    def reserve(self, count: int) -> int:
        """The first of `count` consecutive numbers that no message ever had."""
        if len(self._free) < count:
            size = max(count, _SEQ_BLOCK)
            start = max(self.execute("SELECT next_seq FROM meta").fetchone()[0], self.unused)
            self.unused = start + size
            self.execute("UPDATE meta SET next_seq = ?", (self.unused,))
            self._free = range(start, self.unused)
        first = self._free.start
        self._free = self._free[count:]
        return first

    def schedule(self, seq: int, lane: int, due: int) -> None:
        """Make a message ready at that time; it is in no other place now."""
        self.waiting.clear()
        self.execute("INSERT INTO scheduled (due, seq, lane) VALUES (?, ?, ?)", (due, seq, lane))
        self.next_event = min(self.next_event, due)

    def make_ready(self, seq: int, lane: int, rank: int) -> None:
        """Make a message ready; it is in no other place now."""
        self.waiting.clear()
        self.execute("INSERT INTO ready (lane, rank, seq) VALUES (?, ?, ?)", (lane, rank, seq))
        self.note_arrival()

    def take_out(self, seq: int) -> None:
        """Take a message out of `ready` or `scheduled`."""
        self.waiting.clear()
        self.heads.forget()
        lane, rank, due = self.execute("SELECT lane, rank, due FROM message WHERE seq = ?", (seq,)).fetchone()
        if due is not None and self.execute("DELETE FROM scheduled WHERE due = ? AND seq = ?", (due, seq)).rowcount:
            return
        self.execute("DELETE FROM ready WHERE lane = ? AND rank = ? AND seq = ?", (lane, rank, seq))

    def _take_out_all(self, seqs: Sequence[int]) -> None:
        self.waiting.clear()
        self.heads.forget()
        for take_out in _TAKE_OUT_ALL:
            self.execute(take_out, (to_list(seqs),))

    def remove_all(self, seqs: Sequence[int]) -> None:
        """Remove messages that are in no place."""
        self.execute(_REMOVE_ALL, (to_list(seqs),))

    def remove_waiting(self, seqs: Sequence[int]) -> int:
        """Forget those of these messages that are ready or scheduled; how many.

        The others have left meanwhile; or the file is damaged, and a place has no message.
        """
        waiting = [seq for (seq,) in self.execute(_WAITING, (to_list(seqs),))]
        self._take_out_all(waiting)
        self.remove_all(waiting)
        if len(waiting) < len(seqs):
            others = to_list(sorted(set(seqs).difference(waiting)))
            for strike_out in _STRIKE_OUT_ALL:
                self.execute(strike_out, (others,))
        return len(waiting)

    def remove(self, seq: int) -> None:
        """Remove a message that is in no place."""
        self.execute("DELETE FROM message WHERE seq = ?", (seq,))

    def end(self, seq: int, end: End) -> None:
        """Carry out the end of a message that is in no place."""
        self._conclude([seq], end)
        if end.reason is not None:
            failure = None if end.failure is None else pack(end.failure)
            self.execute(_BURY_ONE, (end.reason, failure, self.now, seq))
        self.remove(seq)

    def _conclude(self, seqs: Sequence[int], end: End) -> None:
        self.has_results = True
        conclude(self.connection, self.now, seqs, end)

    def store_results(self, new: Sequence[NewResult]) -> None:
        """Store results, in place of those with the same ids."""
        self.has_results = True
        store_results(self.connection, self.now, new)

    def forget_old_results(self, first: int, last: int) -> None:
        """Remove what is stored under the result ids of the messages with these numbers: it was another message's."""
        if self.has_results:
            self.has_results = forget_old(self.connection, first, last)

    def each(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> int:
        """Run one statement with each of the rows; returns how many rows of the file changed."""
        return self.connection.executemany(sql, rows).rowcount


def split(token: int) -> tuple[int, int]:
    """Seq and n of a token; for a number that is no token, those of a lease that does not exist."""
    return divmod(token, LEASES_TOLD_APART) if 0 <= token < 2**63 else (-1, -1)
