"""Who watches which message."""

from __future__ import annotations

from collections.abc import Callable


class Watchlist:
    """What to call when something of an id or result id changes. Told of all others, it does nothing."""

    __slots__ = ("_watchers",)

    def __init__(self) -> None:
        self._watchers: dict[str, dict[Callable[[], None], None]] = {}

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def add(self, key: str, wake: Callable[[], None]) -> None:
        """From now on call `wake` for this id."""
        self._watchers.setdefault(key, {})[wake] = None

    def remove(self, key: str, wake: Callable[[], None]) -> None:
        """Call it no more. Harmless where it was never added."""
        watchers = self._watchers.get(key, {})
        watchers.pop(wake, None)
        if not watchers:
            self._watchers.pop(key, None)

    def tell(self, key: str) -> None:
        """What has this id has changed."""
        for wake in self._watchers.get(key, ()):
            wake()

    def wake_all(self) -> None:
        """Everything may have changed."""
        for watchers in self._watchers.values():
            for wake in watchers:
                wake()

    def clear(self) -> None:
        """Forget them all."""
        self._watchers.clear()
