"""Results as people see them: typed, and asked for by awaiting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

import msgspec

from .codec import JSON_CODEC
from .delivery import Failure, ResultState, StoredResult
from .errors import PayloadError, ResultError

T = TypeVar("T")


class Result(Generic[T]):
    """What became of one message: how it ended, and what its actor returned. Times are seconds since 1970."""

    def __init__(self, stored: StoredResult, type_: type[T]) -> None:
        self._stored = stored
        self._type = type_

    def __repr__(self) -> str:
        return f"<Result {self.id!r}: {self.state}>"

    @property
    def id(self) -> str:
        """The id it is stored under: the message's, or the `result_id` that was given."""
        return self._stored.id

    @property
    def state(self) -> ResultState:
        """success, failure, dead, expired or cancelled."""
        return self._stored.state

    @property
    def is_success(self) -> bool:
        """Whether the actor returned."""
        return self._stored.state == "success"

    @property
    def failure(self) -> Failure | None:
        """The error's type, text and traceback, where there was one."""
        return self._stored.failure

    @property
    def finished_at(self) -> float:
        """When it ended, on the broker's clock."""
        return self._stored.finished_at

    @property
    def expires_at(self) -> float:
        """When it will be forgotten, on the broker's clock."""
        return self._stored.expires_at

    @property
    def payload(self) -> bytes:
        """What the actor returned, as JSON; empty where it did not."""
        return self._stored.payload

    @property
    def value(self) -> T:
        """What the actor returned. Raises `ResultError` if it did not, or returned something of another type."""
        if not self.is_success:
            failure = self._stored.failure
            why = f": {failure.type}: {failure.text}" if failure is not None else ""
            raise ResultError(f"message {self.id!r} has no return value: it ended as {self.state!r}{why}")
        try:
            value: T = JSON_CODEC.decoder(self._type)(self._stored.payload)
        except PayloadError as error:
            raise ResultError(f"the result of message {self.id!r} is not what was asked for: {error}") from error
        return value


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands.

    `state` is ready, scheduled, running or cancelling; once all is over: success, failure, dead, expired or
    cancelled, and gone where no result is stored. It is unknown where the server has no message of this id and this
    job was not enqueued here: it may never have been, or it ended long ago. `done` of `total` (None: unknown) and `note` are what its actor
    last told of its progress.
    """

    state: str
    attempt: int = 0
    done: float | None = None
    total: float | None = None
    note: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in {"success", "failure", "dead", "expired", "cancelled", "gone", "unknown"}


class Lazy(Generic[T]):
    """Something to await, as often as one likes; looked at without being awaited, nothing happens."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask

    def __repr__(self) -> str:
        return "<not asked for yet: await it>"

    def __await__(self) -> Generator[Any, Any, T]:
        return self._ask().__await__()
