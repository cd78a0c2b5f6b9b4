"""The port through which any actor runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol


class Backend(Protocol):
    """One way to run a function: as part of the executor's task, in a thread, in a process."""

    def call(
        self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
    ) -> Awaitable[Any]:
        """Run `function(*arguments, **keywords)`; the awaitable gives what it returns and raises what it raises.

        Cancelling the awaitable asks the function to stop, and ends only when the function has ended: what is
        settled afterwards is settled about work that no longer runs.
        """
        ...


class Home(Backend, Protocol):
    """The backend on which middlewares run too, because they are written for the event loop they are called on."""

    def away(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """`call`, to be awaited by a function that runs here; it itself runs where the worker does."""
        ...
