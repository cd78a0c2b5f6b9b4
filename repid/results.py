"""Results as people see them: typed, and asked for by awaiting."""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Callable, Generator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeAlias, cast

import msgspec

from .codec import JSON_CODEC
from .delivery import Failure, ResultState, StoredResult
from .errors import JobFailed, Lacking, PayloadError, ResultError, UsageError, names_of
from .names import brief

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any, covariant=True)  # noqa: PLC0105  `Result`, `Job` or `JobHandle` alone is one of any type
else:
    T = typing.TypeVar("T", covariant=True)  # noqa: PLC0105

ANYTHING = cast("type[Any]", Any)
"""For a result whose type nobody has said."""


class Result(Generic[T]):
    """What became of one message: how it ended, and what its actor returned. Times are seconds since 1970."""

    def __init__(self, stored: StoredResult, type_: type[T], actor: str | None = None) -> None:
        self._stored = stored
        self._type = type_
        self._actor = actor

    def __repr__(self) -> str:
        why = "" if self.failure is None else f", {self.failure.type}: {brief(self.failure.text)}"
        return f"<Result {self.id!r}: {self.state}{why}>"

    @property
    def id(self) -> str:
        """The id it is stored under: the message's, or the `result_id` that was given."""
        return self._stored.id

    @property
    def state(self) -> ResultState:
        """success, failure, dead, expired, cancelled or dropped."""
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
        """When it ended, on the server's clock."""
        return self._stored.finished_at

    @property
    def expires_at(self) -> float:
        """When it will be forgotten, on the server's clock."""
        return self._stored.expires_at

    @property
    def payload(self) -> bytes:
        """What the actor returned, as JSON; empty where it did not."""
        return self._stored.payload

    @property
    def value(self) -> T:
        """What the actor returned. Raises `JobFailed` if it did not, and `ResultError` if that is of another type."""
        value: T = value_of(self._stored, self._type, self._actor)
        return value


def value_of(stored: StoredResult, type_: Any, actor: str | None) -> Any:
    """The value of a result, as `Result.value` gives it."""
    if stored.state != "success":
        raise failed(stored, actor)
    try:
        return _decoder_of(type_)(stored.payload)
    except PayloadError as error:
        text = (
            f"the result of message {stored.id!r} is not what was asked for (that is what its actor is annotated to "
            f"return, unless wait_as() or result_as() says otherwise): {error}"
        )
        if stored.payload == b"null":
            text += (
                "\nA result is stored with the acknowledgement: what an actor returns after message.ack() or a reply "
                "is not in it. Let the actor return its value without acknowledging the message itself"
            )
        raise ResultError(text) from error


def failed(stored: StoredResult, actor: str | None) -> JobFailed:
    """The error that stands for a result without a value."""
    failure = stored.failure
    if failure is None:
        return JobFailed(stored.id, stored.state, actor=actor)
    return JobFailed(stored.id, stored.state, failure.type, failure.text, failure.traceback, actor)


class Unreadable(msgspec.Struct, frozen=True):
    """In place of the type of a result: the actor's annotation cannot be read, and why."""

    why: str


def _decoder_of(type_: Any) -> Callable[[bytes], Any]:
    """The decoder to this type. Raises `ResultError` if there can be none."""
    try:
        return _compile(type_)
    except TypeError:  # it cannot be compared, so it is compiled anew; or there is none
        return _compile.__wrapped__(type_)


@lru_cache(maxsize=256)
def _compile(type_: Any) -> Callable[[bytes], Any]:
    if isinstance(type_, Unreadable):
        raise ResultError(f"{type_.why}: ask for it with result_as() or wait_as()")
    try:
        return JSON_CODEC.decoder(type_)
    except Exception as error:
        raise ResultError(f"no result can be decoded to {type_!r}: {error}") from error


JobState: TypeAlias = Literal["ready", "scheduled", "running", "cancelling", "gone", "unknown"] | ResultState
"""How a job may stand, see `Status`."""


class Status(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """How a job stands.

    `state` is ready, scheduled, running or cancelling; once all is over: success, failure, dead, expired, cancelled or
    dropped, and gone where no result is stored. It is unknown where the server has no message of this id and this job
    was not enqueued here: it may never have been, or it ended long ago. `done` of `total` (None: unknown) and `note`
    are what its actor last told of its progress.
    """

    state: JobState
    attempt: int = 0
    done: float | None = None
    total: float | None = None
    note: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in {"success", "failure", "dead", "expired", "cancelled", "dropped", "gone", "unknown"}


class Lazy(Generic[T]):
    """Something to await, as often as one likes; looked at without being awaited, nothing happens."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask

    def __repr__(self) -> str:
        return "<not asked for yet: await it>"

    def __await__(self) -> Generator[Any, Any, T]:
        return self._ask().__await__()

    if not TYPE_CHECKING:  # type checkers report it themselves

        def __call__(self, *_: object, **__: object) -> NoReturn:  # noqa: D102  not for calling
            raise UsageError(f"result is not called, but awaited: `await handle.result`; {HOW_TO_WAIT}")

        def __bool__(self) -> NoReturn:
            raise UsageError(f"this result was not awaited: `await handle.result`; {HOW_TO_WAIT}")

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"this result was not awaited, so it has no {name!r}: `await handle.result`; {HOW_TO_WAIT}",
                name=name,
                obj=self,
            )


def _result_has(handle: Any, name: str) -> str:
    return f"{handle!r} has no {name!r}, its result has: `{handle._waiting}.{name}` waits for it"  # noqa: SLF001  below


HOW_TO_WAIT = "it is None until the job has ended, and `(await handle.wait()).value` waits for its value"


class NoResult:
    """What has no result itself, but knows where it comes from. It says so where a program takes it for its result."""

    __slots__ = ()

    if not TYPE_CHECKING:  # type checkers report it themselves
        _waiting = "(await handle.wait())"  # what gives its result
        value = Lacking(_result_has)
        failure = Lacking(_result_has)
        is_success = Lacking(_result_has)
        state = Lacking(_result_has)
        __dir__ = names_of

        def __await__(self) -> NoReturn:
            raise UsageError(
                f"{self!r} is not awaited itself: `await handle.wait()` waits until the job has ended, and gives its "
                "`Result`"
            )
