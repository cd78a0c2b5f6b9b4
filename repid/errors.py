"""Every error repid raises, in one tree, divided by who is to blame.

* `ConfigurationError`: a declaration is wrong; the text names it and what was probably meant.
* `UsageError`: a call came at the wrong time or in the wrong place.
* `PayloadError`: the bytes of one message do not fit; the text lists every fault with its path.
* `BrokerError`: the server was not there (`BrokerUnavailable`: worth another try) or said no (`BrokerRefused`).
* `ResultError`: a result is not what was asked for.
* `ProcessDied`: the process of an actor ended while it ran.
* `LifespanError`: what a worker opens for all its runs failed.
* `InternalError`: our bug. Please report it.

Exceptions of client libraries are mapped to these where a driver meets its library and nowhere else.

All of them survive `pickle` and `copy`, since they cross processes. Python makes an exception again by calling its
class with `args`, which hold the finished text here and not what `__init__` takes. So `RepidError` says itself how it
is made again: without `__init__`, from its args, its attributes and its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import getattr_static
from typing import Any, NoReturn, Self, TypeVar

from .tracebacks import without_passwords

_Error = TypeVar("_Error", bound=BaseException)


class RepidError(Exception):
    """The root of everything repid raises on purpose. Its texts show no password of an address."""

    def __init__(self, *args: object) -> None:
        super().__init__(*[without_passwords(each) if type(each) is str else each for each in args])

    def __reduce__(self) -> tuple[Callable[..., RepidError], tuple[Any, ...], dict[str, Any]]:
        """For `pickle` and `copy.deepcopy`. A cause that cannot be pickled is left out."""
        state = dict(self.__dict__)
        if self.__cause__ is not None and can_be_pickled(self.__cause__):
            state["__cause__"] = self.__cause__
        return made_again, (type(self), *self.args), state

    def __copy__(self) -> Self:
        copy = made_again(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        copy.__cause__ = self.__cause__
        return copy


def made_again(kind: type[_Error], *args: Any) -> _Error:
    """An error of this class with these args, made without its `__init__`, which takes others."""
    error: _Error = kind.__new__(kind, *args)
    error.args = args
    return error


def can_be_pickled(error: BaseException) -> bool:
    """Whether it can be sent to another process."""
    import pickle  # noqa: PLC0415  takes milliseconds, and is needed here only

    try:
        pickle.dumps(error)
    except Exception:  # noqa: BLE001  what an object raises when it is pickled is its own choice
        return False
    return True


class ConfigurationError(RepidError, ValueError):
    """A declaration (actor, router, server, option) is wrong."""


class MissingExtra(ConfigurationError, ImportError):
    """An optional dependency is not installed; the text names the extra to install."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'repid-trio[{extra}]'")
        self.extra = extra


class NotSupported(ConfigurationError):
    """The server does not claim to do this; the text says what to do instead."""


class UsageError(RepidError, RuntimeError):
    """A call came at the wrong time or in the wrong place."""


def misused(text: str) -> Callable[..., NoReturn]:
    """A method for a wrong use of an object that is likely: it raises `UsageError` with this text."""

    def method(*_: object) -> NoReturn:
        raise UsageError(text)

    return method


class Lacking:
    """An attribute that objects of a class do not have, though programs are likely to ask for it: the `AttributeError`
    has a text of its own, which `text` makes of the object and the name.

    With `__getattr__` in the class instead, CPython would look up all its other attributes several times slower.
    """

    def __init__(self, text: Callable[[Any, str], str]) -> None:
        self._text = text

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, holder: object, owner: type | None = None) -> NoReturn:
        asked = owner if holder is None else holder
        raise AttributeError(self._text(asked, self._name), name=self._name, obj=asked)


def names_of(holder: object) -> list[str]:
    """What `__dir__` is where names are `Lacking`: those are left out."""
    return [name for name in object.__dir__(holder) if not isinstance(getattr_static(holder, name, None), Lacking)]


class LifespanError(RepidError):
    """What a worker opens for all its runs (`app.lifespan`, a dependency of the scope "worker") failed to open or to
    close.

    The error itself is the `__cause__`.
    """


class NotConnected(UsageError):
    """The server was used outside its `connection()` block."""


class NoCurrentApp(UsageError):
    """A `Job`, `Queue` or `Worker` had no `app=` and ran outside `app.magic()`."""


class AlreadySettled(UsageError):
    """A second verdict was given for one delivery, or its outbox was used after the verdict."""


class PayloadError(RepidError, ValueError):
    """The payload of a message cannot be decoded, or does not fit the actor's signature.

    `faults` holds (path, text) pairs, one for each thing that is wrong; a path starts at `$`.
    """

    def __init__(self, summary: str, faults: Iterable[tuple[str, str]] = ()) -> None:
        self.faults = tuple(faults)
        lines = [f"{path}: {text}" for path, text in self.faults]
        super().__init__("\n  ".join([f"{summary}:", *lines]) if lines else summary)


class BrokerError(RepidError):
    """Something between us and the server went wrong."""

    is_logged = False
    """Whether the log tells of the outage already: a link does, once for each."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The server cannot be reached now; nothing was changed; the same call may succeed later."""


class NoAnswer(BrokerUnavailable):
    """The link broke or the server did not answer in time: whether the call was carried out is unknown."""

    is_logged = True


class PublishUnknown(BrokerError):
    """The connection broke before the server answered: the messages `ids` may or may not be published."""

    is_logged = True

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = tuple(ids)
        shown = ", ".join(map(repr, self.ids[:3])) + (", …" if len(self.ids) > 3 else "")
        super().__init__(
            f"no answer to the publishing of {len(self.ids)} message(s) ({shown}): they may or may not be there; "
            "publish them again under the same ids"
        )


class BrokerRefused(BrokerError):
    """The server answered, and the answer was no."""


class QueueNotDeclared(BrokerRefused, KeyError):
    """The queue does not exist on this broker."""

    __str__ = Exception.__str__  # KeyError would show the repr of the text

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue!r} is not declared on this server: await Queue({queue!r}).declare() first")
        self.queue = queue


class QueueFull(BrokerRefused):
    """The queue holds as much as its bounds allow: the message was not published.

    `when_full`: what the queue was declared with. `can_fit`: False if it would not fit into the empty queue either.
    `readers`: how many consumers of the queue are open, in any process; None: the server does not know.
    """

    def __init__(
        self, queue: str, text: str, *, when_full: str = "raise", can_fit: bool = True, readers: int | None = None
    ) -> None:
        super().__init__(text)
        self.queue = queue
        self.when_full = when_full
        self.can_fit = can_fit
        self.readers = readers

    @property
    def can_wait(self) -> bool:
        """Whether its sender is to wait for room."""
        return self.can_fit and self.when_full == "wait"


class SomeRefused(BrokerError, ExceptionGroup[BrokerRefused]):
    """Of several calls that were enqueued at once the server refused some; the others are enqueued.

    `outcomes` has one for each, in order: the handle of what was enqueued, or why it was refused. In another process,
    where a handle cannot go, the id of the message is in its place.
    """

    outcomes: list[Any]

    def __new__(  # noqa: D102  a group is made here
        cls, text: str, refused: Sequence[BrokerRefused], outcomes: Iterable[Any] = ()
    ) -> Self:
        self = super().__new__(cls, text, refused)
        self.outcomes = list(outcomes)
        return self

    def __init__(self, text: str, refused: Sequence[BrokerRefused], *_: Iterable[Any]) -> None:
        super().__init__(text, refused)

    def __reduce__(self) -> tuple[Callable[..., RepidError], tuple[Any, ...], dict[str, Any]]:
        make, args, state = super().__reduce__()
        outcomes = [each if isinstance(each, BrokerRefused) else getattr(each, "id", each) for each in self.outcomes]
        return make, args, {**state, "outcomes": outcomes}


class DuplicateId(BrokerRefused):
    """A message with this id is ready, scheduled or leased: the new one was not published."""

    def __init__(self, id_: str, queue: str) -> None:
        super().__init__(
            f"message {id_!r} was not published to {queue!r}: one with the same id is still alive; "
            "give it another id, or send it when that one has ended"
        )
        self.id = id_
        self.queue = queue


class LeaseLost(BrokerRefused):
    """The verdict came too late: the lease had ended and the delivery belongs to somebody else."""

    def __init__(self, id_: str) -> None:
        super().__init__(f"message {id_!r} is no longer leased to this worker: the verdict was refused")
        self.id = id_


class ResultError(RepidError):
    """There is no such result: none was stored, the run did not succeed, or its value has another type."""


class JobFailed(ResultError):
    """The job has ended without a value: its actor raised, it was cancelled, or it expired.

    `id`: under which its result is stored. `actor`: its name; None where it is not known. `state`: how it ended, as in
    `Result.state`. `type`, `text` and `traceback` are those of the error of its actor, as texts; empty where there was
    none.
    """

    def __init__(
        self, id_: str, state: str, type_: str = "", text: str = "", traceback: str = "", actor: str | None = None
    ) -> None:
        why = f": {type_}: {text}" if type_ else ""
        whose = "" if actor is None else f" of actor {actor!r}"
        super().__init__(f"message {id_!r}{whose} has no return value: it ended as {state!r}{why}")
        self.id = id_
        self.actor = actor
        self.state = state
        self.type = type_
        self.text = text
        self.traceback = traceback
        if traceback:
            self.add_note(f"The actor's own traceback:\n{traceback}")


class ProcessDied(RepidError):
    """The process of an actor with `run_in_process` ended while it ran. The text says how."""


class WorkersFailed(RepidError):
    """Worker processes crashed too often, or did not end as they should. `report`: what all of them told."""

    def __init__(self, text: str, report: object = None) -> None:
        super().__init__(text)
        self.report = report


class InternalError(RepidError):
    """A bug in repid. Please report it with its traceback."""


def shown(text: str) -> str:
    """The text for a log or a terminal: what cannot be printed is escaped, so it forges no line and moves no cursor."""
    return text if text.isprintable() else repr(text)[1:-1]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known word, else an empty string."""
    from difflib import get_close_matches  # noqa: PLC0415  needed only where something is wrong

    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
