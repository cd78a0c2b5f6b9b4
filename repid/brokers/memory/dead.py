"""The dead messages of all queues, by their ids."""

from __future__ import annotations

from ...delivery import Failure, Reason
from .channel import Channel
from .record import Dead, Record


class DeadLetters:
    """Finds the dead of one id; each queue has its own by key, in the order in which they died."""

    __slots__ = ("_by_id",)

    def __init__(self) -> None:
        self._by_id: dict[str, list[Dead]] = {}

    def add(self, channel: Channel, record: Record, reason: Reason, failure: Failure | None) -> None:
        """Take in what is not live any more."""
        rare = record.rare
        if rare is None:
            dead = Dead(record.envelope, 1, 0, reason, failure, None)
        else:
            dead = Dead(record.envelope, rare.attempt, rare.lost, reason, failure, rare.progress)
        channel.dead[record.order] = dead
        self._by_id.setdefault(record.envelope.id, []).append(dead)

    def take(self, channel: Channel, key: int) -> None:
        """Take one out."""
        dead = channel.dead.pop(key)
        self._keep(dead.envelope.id, [other for other in self._by_id[dead.envelope.id] if other is not dead])

    def take_all(self, channel: Channel) -> set[str]:
        """Take out all of one queue; their ids."""
        ids = {dead.envelope.id for dead in channel.dead.values()}
        for id_ in ids:
            self._keep(id_, [other for other in self._by_id[id_] if other.envelope.queue != channel.name])
        channel.dead.clear()
        return ids

    def last(self, id_: str) -> Dead | None:
        """The one of this id that died last."""
        return self._by_id[id_][-1] if id_ in self._by_id else None

    def _keep(self, id_: str, namesakes: list[Dead]) -> None:
        if namesakes:
            self._by_id[id_] = namesakes
        else:
            del self._by_id[id_]
