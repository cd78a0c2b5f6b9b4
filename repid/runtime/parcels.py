"""What goes to a process of an actor and comes back: pickled, or said in words where it cannot be.

trio-parallel pickles a call, and what came of it. Where that fails, it gives the error of pickle in the place of what
the actor returned or raised. That error says neither whose value it was nor, of an error, what had happened.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..delivery import Failure
from ..errors import ConfigurationError, ProcessDied
from ..inject import Supplied
from ..tracebacks import explain, name_of, text_of


class RaisedInProcess(Exception):  # noqa: N818  it stands for any error
    """What an actor raised in a process that could not send it. `failure`: how it is recorded."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(failure, reason)
        self.failure = failure

    def __str__(self) -> str:
        return f"{self.failure.type}: {self.failure.text} (raised in a process that cannot send it: {self.args[1]})"


class Parcel:
    """A value that is pickled by itself, and is itself when it arrives. `refuse` makes the error if it cannot be."""

    def __init__(self, value: Any, refuse: Callable[[BaseException], Exception]) -> None:
        self._value = value
        self._refuse = refuse

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        import _trio_parallel_workers as workers  # noqa: PLC0415  an extra

        try:
            return workers.loads, (_pickled(self._value),)
        except Exception as fault:  # noqa: BLE001  what an object raises when it is pickled is its own choice
            raise self._refuse(fault) from None


def call_parcel(function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Parcel:
    """A call for a process."""
    return Parcel((function, tuple(arguments), dict(keywords)), partial(_no_call, function))


def _no_call(function: Callable[..., Any], fault: BaseException) -> ConfigurationError:
    try:
        _pickled(function)
    except Exception as fault_of_function:  # noqa: BLE001  as above
        return ConfigurationError(
            f"{name_in_errors(function)} cannot be sent to its process, which finds a function by its name in its "
            f"module: {text_of(fault_of_function)}. Let that name in that module stand for this function"
        )
    return ConfigurationError(
        f"what {name_in_errors(function)} is given cannot be sent to its process: {text_of(fault)}. Give it what "
        "pickle can take; a dependency that is a plain function (def) is called in the process"
    )


def value_parcel(function: Callable[..., Any], value: Any) -> Parcel:
    """What a function returned in a process."""
    return Parcel(
        value,
        lambda fault: ConfigurationError(
            f"what {name_in_errors(function)} returned cannot be sent from its process: {text_of(fault)}. Return what "
            "pickle can take"
        ),
    )


def sendable(error: BaseException) -> BaseException:
    """An error that was raised in a process; or, if it would not arrive as it is, what is known of it."""
    import _trio_parallel_workers as workers  # noqa: PLC0415  an extra

    try:
        workers.install_pickling_support(error)
        workers.loads(_pickled(error))
    except BaseException as fault:  # noqa: BLE001  as above
        text = text_of(error)
        failure = Failure(name_of(error), text, explain(error, text, in_program=True))
        return RaisedInProcess(failure, text_of(fault))
    return error


def death_of(function: Callable[..., Any], exit_code: int | None) -> ProcessDied:
    """The error for a run whose process has ended."""
    if exit_code is None or exit_code >= 0:
        return ProcessDied(
            f"the process that ran {name_in_errors(function)} ended with exit code {exit_code} before the run did"
        )
    try:
        killer = signal.Signals(-exit_code).name
    except ValueError:
        killer = f"signal {-exit_code}"
    hint = ", as the system does where memory runs out" if -exit_code == getattr(signal, "SIGKILL", None) else ""
    return ProcessDied(f"the process that ran {name_in_errors(function)} was killed by {killer}{hint}")


def _pickled(value: Any) -> bytes:
    import _trio_parallel_workers as workers  # noqa: PLC0415  an extra; it takes cloudpickle if that is there

    data: bytes = workers.dumps(value, protocol=workers.HIGHEST_PROTOCOL)
    return data


def name_in_errors(function: Callable[..., Any]) -> str:
    """What the function of an actor is called in the text of an error."""
    actor = function.function if isinstance(function, Supplied) else function
    return f"{getattr(actor, '__qualname__', repr(actor))}()"
