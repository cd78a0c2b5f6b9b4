"""What of a worker waits for room in full queues, and whether the worker itself could still make some.

Only claims make room. A worker whose runs all wait for room, and which can start no other run, claims nothing for long
that could help them: what it claims in advance it gives back. `repid.brokers.shared.lines` asks for that, and decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet


class Sending:
    """The sends of one worker.

    `can_start`: whether it could run a message of a queue now; the reader sets it. `count_busy`: how many runs are
    under way, except those whose verdict waits for room; the crew sets it. `aside`: the queues for which verdicts are
    set aside; those set it.
    """

    def __init__(self, queues: Collection[str]) -> None:
        self.can_start: Callable[[str], bool] = lambda _: True
        self.count_busy: Callable[[], int] = lambda: 0
        self.aside: AbstractSet[str] = frozenset()
        self.calls = 0
        """How many calls of its runs wait for room."""
        self._queues = frozenset(queues)

    def reads(self, queue: str) -> bool:
        """Whether its consumer takes messages of the queue."""
        return queue in self._queues

    def can_only_wait(self, queues: frozenset[str], runs: int) -> bool:
        """Whether it does nothing but wait, if `runs` of its runs wait for room in these queues. A verdict that was set
        aside a moment ago does not stand in line yet: then it is too early to say.
        """
        return (
            runs == self.count_busy()
            and self.aside <= queues
            and not any(self.reads(each) and self.can_start(each) for each in queues)
        )

    def waits(self, change: int) -> None:
        """`change` more calls of its runs wait for room; below 0: fewer."""
        self.calls += change
