"""What callers hand in, looked at before anything is changed: a bad message must not leave half a batch behind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta

from ..delivery import Ack, Cancel, DeadLetter, Delivery, NewResult, Progress, Release, Retry, Settlement
from ..envelope import NO_OPTIONS, Envelope
from ..errors import ConfigurationError, InternalError, NotSupported
from ..names import check_number, check_text
from ..ports import Capabilities
from ..retry import seconds

_DISPOSITIONS = frozenset({Ack, Retry, Release, DeadLetter, Cancel})


def check_queues(queues: Iterable[str]) -> list[str]:
    """The names of queues to be declared. Raises `ConfigurationError` unless each is text that UTF-8 can write."""
    if isinstance(queues, str):
        raise ConfigurationError(f"declare takes several names: declare([{queues!r}])")
    return [check_text("the name of a queue", name) for name in queues]


def check_progress(progress: Iterable[tuple[Delivery, Progress | None]]) -> None:
    """Raise `ConfigurationError` for numbers that are not finite and a note that is no text: nobody could wait for them."""
    for _, how_far in progress:
        if how_far is not None:
            check_number("the done of a progress", how_far.done)
            if how_far.total is not None:
                check_number("the total of a progress", how_far.total)
            check_text("the note of a progress", how_far.note)


def check_envelopes(envelopes: Iterable[Envelope]) -> None:
    """Raise `ConfigurationError` for a payload that is not bytes, headers that are no dict, options that are no numbers,
    and text that UTF-8 cannot write.
    """
    headers: object = None
    for envelope in envelopes:
        if type(envelope.payload) is not bytes or type(envelope.headers) is not dict:
            _check_types(envelope)
        if not envelope.id.isascii():
            _check_text(envelope, "id", envelope.id)
        if envelope.headers is not headers:  # a batch often shares them
            headers = envelope.headers
            for name, value in envelope.headers.items():
                if not (isinstance(value, str) and value.isascii() and name.isascii()):
                    _check_text(envelope, "header", name)
                    _check_text(envelope, f"header {name!r}", value)
        if envelope.options is not NO_OPTIONS:
            _check_options(envelope)


def check_claimed(server: str, claimed: Capabilities, envelopes: Iterable[Envelope]) -> None:
    """Raise `NotSupported` for an option that the engine cannot honour.

    That a result is wanted concerns the worker, which may keep it elsewhere: see `check_settlements`.
    """
    if claimed.priorities != "none" and claimed.delays != "none" and claimed.ttl:
        return
    for envelope in envelopes:
        options = envelope.options
        wanted = {
            "priority": claimed.priorities == "none" and options.priority is not None,
            "delay": claimed.delays == "none" and bool(options.delay),
            "ttl": not claimed.ttl and options.ttl is not None,
        }
        for option, is_refused in wanted.items():
            if is_refused:
                raise NotSupported(
                    f"message {envelope.id!r} has the option {option!r}, which {server} does not support: leave it out, or "
                    "use a server that supports it, such as SQLiteServer"
                )


def check_several(call: str, names: Iterable[str]) -> list[str]:
    """The names as a list; raise `ConfigurationError` for a single one, and for what is no text."""
    if isinstance(names, str | bytes):
        raise ConfigurationError(f"{call} takes several names: {call}([{names!r}])")
    several = list(names)
    for name in several:
        if not isinstance(name, str):
            raise ConfigurationError(f"{call} takes names or ids, which are text, but got {name!r}")
    return several


def check_lease_timeout(value: float | timedelta) -> float:
    """The time-out in seconds; raise `ConfigurationError` unless it is more than 0."""
    lease_timeout = seconds(value)
    if not lease_timeout > 0:
        raise ConfigurationError(f"lease_timeout must be more than 0 seconds, but is {lease_timeout}")
    if lease_timeout == math.inf:
        raise ConfigurationError("lease_timeout must be finite: the messages of a dead worker would never come back")
    return lease_timeout


def check_settlements(
    server: str, claimed: Capabilities, settlements: Iterable[Settlement], *, keeps_results: bool
) -> None:
    """Raise `InternalError` for what is no disposition, `ConfigurationError` for an outbox or result that is wrong, and
    `NotSupported` for one that the server does not claim.
    """
    for settlement in settlements:
        if type(settlement.disposition) not in _DISPOSITIONS:
            raise InternalError(f"{settlement.disposition!r} is no disposition")
        if settlement.outbox:
            check_envelopes(settlement.outbox)
            check_claimed(server, claimed, settlement.outbox)
        if settlement.result is not None:
            if not keeps_results:
                raise NotSupported(
                    f"{server} cannot store the result of message {settlement.delivery.envelope.id!r}: it does not have "
                    "the role 'results'; give it another server that has it, as state=, or the app a result_store="
                )
            check_results([settlement.result])


def check_results(results: Iterable[NewResult]) -> None:
    """Raise `ConfigurationError` for a ttl that is no number."""
    for result in results:
        if not _is_number(result.ttl):
            raise ConfigurationError(f"the ttl of the result {result.id!r} must be a number, but is {result.ttl!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _check_types(envelope: Envelope) -> None:
    for name, value, kind in (("payload", envelope.payload, bytes), ("headers", envelope.headers, dict)):
        given: object = value  # whatever the annotation says
        if not isinstance(given, kind):
            wrong = type(given).__name__
            raise ConfigurationError(
                f"the {name} of message {envelope.id!r} must be {kind.__name__}, but is of type {wrong}"
            )


def _check_text(envelope: Envelope, what: str, text: object) -> None:
    try:
        if isinstance(text, str):
            text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"message {envelope.id!r} cannot be published: its {what} holds a lone surrogate, {text!r}, which UTF-8 "
            "cannot write"
        ) from None


def _check_options(envelope: Envelope) -> None:
    options = envelope.options
    for name in ("priority", "delay", "ttl", "result_ttl"):
        number = getattr(options, name)
        if number is not None and not _is_number(number):
            raise ConfigurationError(f"the {name} of message {envelope.id!r} must be a number, but is {number!r}")
