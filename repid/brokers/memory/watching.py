"""Who watches which message."""

from __future__ import annotations

from collections.abc import Callable


class Watchlist:
    """What to call when something of an id or result id changes. Told of all others, it does nothing.

    `watchers` is empty while nobody watches anything: then it need be told nothing.
    """

    __slots__ = ("watchers",)

    def __init__(self) -> None:
        self.watchers: dict[str, dict[Callable[[], None], None]] = {}

    def add(self, key: str, wake: Callable[[], None]) -> None:
        """From now on call `wake` for this id."""
        self.watchers.setdefault(key, {})[wake] = None

    def remove(self, key: str, wake: Callable[[], None]) -> None:
        """Call it no more. Harmless where it was never added."""
        watchers = self.watchers.get(key, {})
        watchers.pop(wake, None)
        if not watchers:
            self.watchers.pop(key, None)

    def tell(self, key: str) -> None:
        """What has this id has changed."""
        for wake in self.watchers.get(key, ()):
            wake()

    def wake_all(self) -> None:
        """Everything may have changed."""
        for watchers in self.watchers.values():
            for wake in watchers:
                wake()

    def clear(self) -> None:
        """Forget them all."""
        self.watchers.clear()
