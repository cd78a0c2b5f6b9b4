"""Redis with a replica and a sentinel: the primary is stopped or killed, its replica takes over, and it comes back as the replica.

The children ask the sentinel where the primary is, so there is no proxy, and connections are not cut.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .journal import now
from .network import QUIET, Cut, Outage

if TYPE_CHECKING:
    from engines.redis import Redis

NAME = "mymaster"
DOWN_AFTER = 2.0
"""Seconds of silence after which the sentinel lets the replica take over. With half a second it sometimes does so right after a
failover, while the primary runs, and again and again: then there are two primaries for ten seconds."""

PATIENCE = 30.0
"""Seconds within which the group must be whole."""


@dataclass
class Group:
    """A primary and its replica, by turns, and their sentinel. `wait_replicas`: that of the clients.

    With 1 nobody can write until the former primary is back, and an outage lasts so long.
    """

    members: list[Redis]
    sentinel: Redis
    wait_replicas: int
    returning: Callable[[], None] = lambda: None
    outages: list[Outage] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    astray: list[float] = field(default_factory=list)
    """When the sentinel let the replica take over although nobody had ended the primary, which goes on beside it for a while."""
    _known: Redis | None = None
    _away: Redis | None = None
    _return_at: float = math.inf
    _not_there_at: float = 0.0
    _quiet_until: float = 0.0

    @property
    def can_end(self) -> bool:
        """Whether servers may be stopped: they are our own."""
        return True

    @property
    def primary(self) -> Redis:
        """The one that the sentinel names."""
        _, port = self.sentinel.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return next(one for one in self.members if port_of(one) == int(port))

    @property
    def is_calm(self) -> bool:
        """Whether the group is whole, has been for a while, and the sentinel knows that."""
        return self._away is None and not self._is_in_outage and now() > self._quiet_until and self.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether the replica is in step, and the sentinel would let it take over."""
        [replica] = self.sentinel.execute("SENTINEL", "REPLICAS", NAME) or [()]
        told = dict(zip(replica[::2], replica[1::2], strict=True))
        is_linked = (told.get(b"flags"), told.get(b"master-link-status")) == (b"slave", b"ok")
        return is_linked and b"state=online" in self.primary.execute("INFO", "replication")

    def way_to(self, address: str) -> str:
        """Where the children find the primary: the sentinel tells them, as it tells everybody."""
        return address

    def cut(self, kind: Cut) -> None:
        """Connections are not cut here."""
        raise AssertionError(kind)

    def take_away(self, seconds: float, *, killed: bool) -> None:
        """Stop or kill the primary. `tend` starts it again after this time, as a replica."""
        self._away = self.primary
        assert self._away.process is not None
        self._known = None
        self._not_there_at = now()
        self.outages.append(Outage(now(), crashed=killed))
        if killed:
            self._away.process.crash()
        else:
            self._away.process.stop(signal.SIGTERM)
        self._return_at = now() + seconds

    def tend(self) -> None:
        """See whether there is a primary again, and have the former one follow it when its time has come."""
        if self._away is None and not self._is_in_outage:
            known, self._known = self._known, self.primary
            if known not in (None, self._known):
                self.astray.append(now())
        if self._is_in_outage:
            asked = now()
            if self._takes_writes():
                self.outages[-1].back = self._not_there_at  # children may have found it before we did
                self.returning()
                self._quiet_until = now() + QUIET
            else:
                self._not_there_at = asked
        if self._away is not None and now() >= self._return_at and self.primary is not self._away:
            assert self._away.process is not None
            self._away.process.start()
            self._away.execute("REPLICAOF", "127.0.0.1", port_of(self.primary))
            self._away = None

    @property
    def _is_in_outage(self) -> bool:
        return bool(self.outages) and self.outages[-1].back == math.inf

    def _takes_writes(self) -> bool:
        primary = self.primary
        if primary is self._away:
            return False
        told = primary.execute("INFO", "replication")
        return b"role:master" in told and (not self.wait_replicas or b"state=online" in told)


@contextmanager
def group_of_two(wait_replicas: int) -> Iterator[Group]:
    """Two servers of our own and a sentinel."""
    from engines.redis import embedded, sentinel

    with ExitStack() as stack:
        members = [stack.enter_context(embedded("--repl-diskless-sync-delay", "0")) for _ in range(2)]
        members[1].execute("REPLICAOF", "127.0.0.1", port_of(members[0]))
        group = Group(members, stack.enter_context(sentinel(members[0], NAME, DOWN_AFTER)), wait_replicas)
        deadline = now() + PATIENCE
        while not group.is_whole:
            assert now() < deadline, "the replica did not come into step"
            time.sleep(0.1)
        yield group


def port_of(redis: Redis) -> int:
    port = urlsplit(redis.url).port
    assert port is not None
    return port
