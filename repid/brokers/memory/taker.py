"""What the store knows of a consumer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...ports import Topics


class Taker:
    """What one open consumer takes, and which of its runs somebody has cancelled. Compared by identity.

    `requests` are the tokens of leases that are to be cancelled and whose consumer has not been told yet. `waiting`
    is what to call when there is one more.
    """

    __slots__ = ("queues", "requests", "waiting")

    def __init__(self, queues: Mapping[str, Topics]) -> None:
        self.queues = {name: None if topics is None else frozenset(topics) for name, topics in queues.items()}
        self.requests: dict[int, None] = {}
        self.waiting: dict[Callable[[], None], None] = {}

    def request(self, token: int) -> None:
        """Have the run under this lease cancelled."""
        self.requests[token] = None
        self.wake()

    def wake(self) -> None:
        """Have all who wait for requests look again."""
        for wake in self.waiting:
            wake()

    def take_requests(self) -> list[int]:
        """The tokens nobody was told of yet."""
        tokens = list(self.requests)
        self.requests.clear()
        return tokens
