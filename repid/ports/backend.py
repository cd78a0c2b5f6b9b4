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

        Cancelling the awaitable asks the function to stop. It ends only when the function has ended, so a verdict that
        is given afterwards is about work that does not run any more.
        """
        ...


class HostBackend(Backend, Protocol):
    """The backend on which middlewares run too, because they are written for the event loop that calls them."""

    def back_in_trio(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Make `call` awaitable by a function that runs here; `call` itself runs where the worker does."""
        ...
