"""What was enqueued, as code that blocks sees it: the names of `JobHandle`, as plain calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .envelope import Envelope
from .errors import misused
from .handle import JobHandle
from .results import NoResult, Result, Status, T

S = TypeVar("S")
R = TypeVar("R")


class Carry(Protocol):
    """Carries out an async call in the event loop and waits for it here. `is_waiting`: it may take long."""

    def __call__(self, function: Callable[[], Awaitable[R]], *, is_waiting: bool) -> R:
        """What it returns; raises what it raises."""
        ...


class SyncJobHandle(NoResult, Generic[T]):
    """A `JobHandle` for code that blocks: what `app.sync()` and `SyncMessage` give. Its verbs are plain calls.

    Each call asks the server, from any thread, and raises what that of `JobHandle` raises; also `UsageError` where a
    call would wait for ever, as those of the client do.
    """

    __slots__ = ("__weakref__", "_carry", "_handle")

    def __init__(self, handle: JobHandle[T], carry: Carry) -> None:
        self._handle = handle
        self._carry = carry

    if not TYPE_CHECKING:  # type checkers report it themselves
        _waiting = "handle.wait()"
        __await__ = misused(
            "the handles of app.sync() are for code that blocks: `handle.wait()` is a plain call, and async code gets "
            "its handle from `await app.enqueue(...)`"
        )
        __reduce__ = misused(
            "a handle has the connection of its process, so it cannot be pickled: send its `id`, and make another "
            "handle there with `client.handle(actor, id)`"
        )

    def __repr__(self) -> str:
        return f"<SyncJobHandle {self.id!r} on {self.queue!r}>"

    @property
    def envelope(self) -> Envelope:
        """What was sent."""
        return self._handle.envelope

    @property
    def id(self) -> str:
        """The id of the message, as `JobHandle.id`."""
        return self._handle.id

    @property
    def queue(self) -> str:
        """The name of the queue it went to."""
        return self._handle.queue

    @property
    def schedule_name(self) -> str | None:
        """That of a recurring job, as `JobHandle.schedule_name`."""
        return self._handle.schedule_name

    @property
    def result(self) -> Result[T] | None:
        """The result as it is now; None until there is one. `wait` waits for it."""
        handle = self._handle
        return self._carry(lambda: handle.result, is_waiting=False)

    def result_as(self, type_: type[S]) -> Result[S] | None:
        """Like `result`, with a value of this type."""
        return self._carry(partial(self._handle.result_as, type_), is_waiting=False)

    def wait(self, timeout: float | timedelta | None = None) -> Result[T]:
        """Wait until it has ended, in any way; its result. See `JobHandle.wait`.

        Raises `TimeoutError` if it has not ended after `timeout` (seconds or timedelta; None: no bound), which changes
        nothing, and `ResultError` if no result is stored.
        """
        return self._carry(partial(self._handle.wait, timeout), is_waiting=True)

    def wait_as(self, type_: type[S], timeout: float | timedelta | None = None) -> Result[S]:
        """Like `wait`, with a value of this type."""
        return self._carry(partial(self._handle.wait_as, type_, timeout), is_waiting=True)

    def status(self) -> Status:
        """How it stands now."""
        return self._carry(self._handle.status, is_waiting=False)

    def cancel(self) -> bool:
        """Cancel it, as `JobHandle.cancel`. Returns False if it is over already."""
        return self._carry(self._handle.cancel, is_waiting=False)

    def watch(self) -> Iterator[Status]:
        """`for status in handle.watch()`: how it stands now, and each change, until it is over."""
        watch = self._handle.watch()
        end: Any = None
        while (status := self._carry(partial(anext, watch, end), is_waiting=True)) is not None:
            yield status
