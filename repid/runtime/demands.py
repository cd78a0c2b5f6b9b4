"""What actors demand of the server that they run on, and what is done where a server claims less.

A worker runs on any server. What an actor declares and the server cannot do is refused when the worker starts; what a
single message asks for and cannot have is left out, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..actors import Actor
from ..delivery import NewResult, StoredResult
from ..errors import NotSupported
from ..logs import Log
from ..ports import Broker, ResultStore, name_of

log = Log("repid.worker")


def check_demands(
    broker: Broker, actors: Iterable[Actor], result_store: ResultStore | None, *, has_schedules: bool
) -> None:
    """Raise `NotSupported` for an actor with a schedule, results or bounds, where nobody could keep them."""
    claimed, name = broker.capabilities, name_of(broker)
    for actor in actors:
        if actor.schedule is not None and not has_schedules:
            raise NotSupported(
                f"actor {actor.name!r} has a schedule, but {name} keeps no schedules: give the app a "
                "schedule_store=, give the server another one that does, as state=, or take the schedule away"
            )
        if not (actor.bounds.are_none or claimed.bounds):
            raise NotSupported(
                f"the channel {actor.channel!r} of actor {actor.name!r} is bounded ({actor.bounds}), but {name} "
                "cannot bound queues: leave max_size and max_bytes out, or use a server that can, such as "
                "InMemoryServer"
            )
        if actor.store_result and result_store is None and not claimed.has("results"):
            raise NotSupported(
                f"actor {actor.name!r} has store_result=True, but {name} keeps no results: give the app a "
                "result_store=, give the server another one that keeps them, as state=, or leave store_result out"
            )


class NoResultStore:
    """Stands for the store of results where there is none: results that single messages ask for are left out."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._has_warned = False

    async def store_results(self, results: Sequence[NewResult]) -> None:
        """Warn, once."""
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "the result of message %r is wanted, but %s keeps no results: it is left out, and so are all others",
                results[0].id,
                self._server,
            )

    async def fetch_results(self, ids: Sequence[str]) -> list[StoredResult | None]:
        """There are none."""
        return [None for _ in ids]
