"""What a server can do, as data: the runtime, the facades and the conformance suite read it.

Roles are separate because engines differ in them: a facade asks for a role, and says so plainly if the server does not
have it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import msgspec

Role: TypeAlias = Literal["queue_admin", "tracking", "results", "schedules"]
"""queue_admin: list, count, browse, find, flush, delete, revive and pause. tracking: cancel, watch, report progress.
results: store and fetch results. schedules: keep schedules and tick each of them once."""

ROLES: tuple[Role, ...] = get_args(Role)


Calls: TypeAlias = Literal["local", "exact", "remote"]
"""What the calls of an engine are like.

local: synchronous work in this process; a call waits for nothing, so it cannot be cancelled in the middle.
exact: a call may wait; a cancelled one has either changed nothing and raises `Cancelled`, or was carried out and
returns.
remote: a cancelled call may or may not have been carried out, so the front door shields it and limits its time;
concurrent publishes are gathered into one; after `BrokerUnavailable` the link is opened anew."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a server claims to do. What is not claimed is refused with `NotSupported`, before anything is sent.

    priorities: "rank": claimed by `enqueued_at + priority`, so nothing starves; "classes": HIGH before MEDIUM before
        LOW; "none": in the order in which messages came.
    delays: "exact": a message is handed out as soon as its delay is over; "coarse": some seconds later; "none".
    ttl: a message that was not started in time becomes a dead letter.
    unique_ids: "live": no two messages with one id are ready, scheduled or leased; "window": for some time after
        publishing; "none".
    leases: "timed": a lease ends at its time and can be extended; "connection": it ends with the connection.
    outbox: "atomic": a settlement, its outbox and its result happen together or not at all; "publish_first": the
        outbox is published before the settlement, so a crash between the two publishes it twice.
    filters_topics: a claim never hands over what another open consumer takes and this one does not, and keeps to the
        limits that were set.
    wakes: "push": a waiting consumer is told of new messages; "poll": it looks now and then.
    calls: what cancelling does to a call: see `Calls`. Only a publish to a "remote" engine can end as `PublishUnknown`.
    isolates: a message that was lost twice is handed out alone: see `repid.delivery.blame`.
    dead_ttl: seconds after which a dead letter is removed, by `rescue` at the latest; None: it stays until it is
        revived or removed by hand. The program that opens the server chooses it.
    bounds: a queue may be bounded, and keeps that with its declaration: see `repid.delivery.bounds`.
    readers: it knows the open consumers of all processes, and what each takes.
    durable: what was accepted survives the end of the process. shared: several processes may use it at once.
    roles: what it can do beside that: see `Role`.
    """

    priorities: Literal["rank", "classes", "none"] = "none"
    delays: Literal["exact", "coarse", "none"] = "none"
    ttl: bool = False
    unique_ids: Literal["live", "window", "none"] = "none"
    leases: Literal["timed", "connection"] = "timed"
    outbox: Literal["atomic", "publish_first"] = "publish_first"
    filters_topics: bool = False
    wakes: Literal["push", "poll"] = "poll"
    calls: Calls = "remote"
    isolates: bool = False
    dead_ttl: float | None = None
    bounds: bool = False
    readers: bool = False
    durable: bool = False
    shared: bool = False
    roles: frozenset[Role] = frozenset()

    def has(self, role: Role) -> bool:
        """Whether the server has this role."""
        return role in self.roles


EVERYTHING = Capabilities(
    priorities="rank",
    delays="exact",
    ttl=True,
    unique_ids="live",
    outbox="atomic",
    filters_topics=True,
    wakes="push",
    calls="exact",
    isolates=True,
    durable=True,
    shared=True,
    bounds=True,
    readers=True,
    roles=frozenset(ROLES),
)
"""What an engine can claim that can do all of it."""
