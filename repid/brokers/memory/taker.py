"""What the store knows of a consumer."""

from __future__ import annotations

from collections.abc import Mapping

from ...ports import Topics


class Taker:
    """What one open consumer takes, and which of its runs somebody has cancelled. Compared by identity.

    `requests` are the tokens of leases that are to be cancelled and whose consumer has not been told yet.
    """

    __slots__ = ("queues", "requests")

    def __init__(self, queues: Mapping[str, Topics]) -> None:
        self.queues = {name: None if topics is None else frozenset(topics) for name, topics in queues.items()}
        self.requests: dict[int, None] = {}

    def take_requests(self) -> list[int]:
        """The tokens nobody was told of yet."""
        tokens = list(self.requests)
        self.requests.clear()
        return tokens
