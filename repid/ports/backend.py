"""The port through which any actor runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context
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

    def begin(
        self, coroutine: Coroutine[Any, Any, Any], context: Context
    ) -> tuple[Coroutine[Any, Any, Any] | None, Any]:
        """Make the first step of a coroutine here and now. Returns what to await for the rest, as with `call`, and
        None; or None and what the coroutine returns, if it ends there. Raises what it raises.

        All its steps are made in the context, so the rest has to be awaited in another one.
        """
        ...

    def back_in_trio(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Make `call` awaitable by a function that runs here; `call` itself runs where the worker does."""
        ...
