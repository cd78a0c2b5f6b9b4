"""Checks of arguments, made before anything is changed: a bad message must not leave half a batch behind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta

from ..codec import JSON
from ..delivery import (
    UNBOUNDED,
    Ack,
    Bounds,
    Cancel,
    DeadLetter,
    Delivery,
    NewResult,
    Progress,
    Release,
    Retry,
    Settlement,
)
from ..envelope import NO_OPTIONS, Envelope
from ..errors import ConfigurationError, InternalError, NotSupported
from ..names import brief, check_duration, check_function, check_iterable, check_number, check_text
from ..ports import Capabilities, Instrument, Topics, make_bounds

LARGEST_MESSAGE = 32 * 2**20
"""Bytes of the payload and headers of a message, or of a result, that a remote engine is sent: what it takes within the
time of a call. A larger one would time out each time, and take the link from all other calls with it."""

_DISPOSITIONS = frozenset({Ack, Retry, Release, DeadLetter, Cancel})


def check_queue(queue: str) -> str:
    """The name of a queue itself. Raises `ConfigurationError` unless it is text that UTF-8 can write."""
    return check_text("the name of a queue", queue)


def check_queues(queues: Iterable[str]) -> list[str]:
    """The names of queues to be declared. Raises `ConfigurationError` unless each is text that UTF-8 can write."""
    if isinstance(queues, str):
        raise ConfigurationError(f"declare takes several names: declare([{queues!r}])")
    return [check_queue(name) for name in queues]


def check_bounds(bounds: Mapping[str, Bounds]) -> None:
    """Raise `ConfigurationError` for the name of a queue that is no text, and for bounds that are no numbers."""
    for queue, bound in bounds.items():
        check_queue(queue)
        if not isinstance(bound, Bounds):
            raise ConfigurationError(f"the bounds of queue {queue!r} must be Bounds(...), but are {bound!r}")
        if bound != UNBOUNDED:
            make_bounds(f"queue {queue!r}", bound.max_size, bound.max_bytes, bound.when_full)


def check_taken(queues: Mapping[str, Topics]) -> None:
    """Raise `ConfigurationError` unless all queues and topics that a consumer takes are text that UTF-8 can write."""
    for name, topics in queues.items():
        check_queue(name)
        for topic in topics or ():
            check_text(f"a topic of queue {name!r}", topic)


def check_schedule(name: str) -> str:
    """The name of a schedule itself. Raises `ConfigurationError` unless it is text that UTF-8 can write."""
    return check_text("the name of a schedule", name)


def check_progress(progress: Iterable[tuple[Delivery, Progress | None]]) -> None:
    """Raise `ConfigurationError` for numbers that are not finite and a note that is not text."""
    for _, how_far in progress:
        if how_far is not None:
            check_number("the done of a progress", how_far.done)
            if how_far.total is not None:
                check_number("the total of a progress", how_far.total)
            check_text("the note of a progress", how_far.note)


def check_envelopes(envelopes: Iterable[Envelope]) -> None:
    """Raise `ConfigurationError` for a payload that is not bytes, headers that do not map text to text, an id, content
    type or reply_to that is no text, options that are no numbers, and text that UTF-8 cannot write.
    """
    former: object = None
    options = NO_OPTIONS
    for envelope in envelopes:
        headers = envelope.headers
        if type(envelope.payload) is not bytes or type(headers) is not dict:
            _check_types(envelope)
        if not (type(envelope.id) is str and envelope.id.isascii()):
            _check_text(envelope, "id", envelope.id)
        if headers is not former:  # a batch that was made here shares them, and its content_type and reply_to
            former = headers
            if envelope.content_type is not None and envelope.content_type is not JSON:
                _check_text(envelope, "content_type", envelope.content_type)
            if envelope.reply_to is not None:
                _check_text(envelope, "reply_to", envelope.reply_to)
            for name, value in headers.items():
                if not (type(name) is type(value) is str and name.isascii() and value.isascii()):
                    _check_text(envelope, "name of a header", name)
                    _check_text(envelope, f"header {name!r}", value)
        if envelope.options is not options:
            options = envelope.options
            _check_options(envelope)


def takes_all(claimed: Capabilities) -> bool:
    """Whether `check_claimed` lets all messages pass."""
    return claimed.calls != "remote" and _honours_all_options(claimed)


def _honours_all_options(claimed: Capabilities) -> bool:
    return claimed.priorities != "none" and claimed.delays != "none" and claimed.ttl


def check_claimed(server: str, claimed: Capabilities, envelopes: Iterable[Envelope]) -> None:
    """Raise `NotSupported` for an option that the engine cannot honour.

    Results are checked by `check_settlements`, since a worker may keep them in another server. Raises
    `ConfigurationError` for a message that is too large for a remote engine.
    """
    if claimed.calls == "remote":
        check_sizes(server, envelopes)
    if _honours_all_options(claimed):
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
                    f"message {envelope.id!r} has the option {option!r}, which {server} does not support: leave it "
                    "out, or use a server that supports it, such as SQLiteServer"
                )


def check_sizes(server: str, envelopes: Iterable[Envelope]) -> None:
    """Raise `ConfigurationError` for a message with more bytes than `LARGEST_MESSAGE`."""
    headers, size_of_headers = None, 0
    for envelope in envelopes:
        if envelope.headers is not headers:  # a batch often shares them
            headers = envelope.headers
            size_of_headers = sum(map(len, headers.values()))
        size = len(envelope.payload) + size_of_headers
        if size > LARGEST_MESSAGE:
            raise _too_large(server, f"message {envelope.id!r}", size)


def _too_large(server: str, what: str, size: int) -> ConfigurationError:
    return ConfigurationError(
        f"{what} has {size} bytes, and {server} takes {LARGEST_MESSAGE} at most: keep large values elsewhere, in a "
        "file or an object store, and send where they are"
    )


def check_several(call: str, names: Iterable[str]) -> list[str]:
    """The names as a list; raise `ConfigurationError` for a single one, and for what is no text."""
    if isinstance(names, str | bytes):
        raise ConfigurationError(f"{call} takes several names: {call}([{names!r}])")
    several = list(names)
    for name in several:
        if not isinstance(name, str):
            raise ConfigurationError(f"{call} takes names or ids, which are text, but got {name!r}")
        check_text(f"a name or id for {call}", name)
    return several


def check_lease_timeout(value: float | timedelta) -> float:
    """The time-out in seconds; raise `ConfigurationError` unless it is a positive duration."""
    lease_timeout = check_duration("lease_timeout", value, positive=True)
    if lease_timeout == math.inf:
        raise ConfigurationError("lease_timeout must be finite: the messages of a dead worker would never come back")
    return lease_timeout


def check_dead_ttl(value: float | timedelta | None) -> float | None:
    """The ttl of dead letters in seconds; None: they stay. Raises `ConfigurationError` unless it is a positive
    duration.
    """
    if value is None:
        return None
    ttl = check_duration("dead_ttl", value, positive=True)
    return None if ttl == math.inf else ttl


def check_instruments(instruments: Iterable[Instrument]) -> list[Instrument]:
    """The instruments as a list; raise `ConfigurationError` for what cannot be called with one call."""
    check_iterable("instruments", instruments)
    several = list(instruments)
    for each in several:
        check_function("each of the instruments", each, "call")
    return several


def check_settlements(
    server: str, claimed: Capabilities, settlements: Iterable[Settlement], *, keeps_results: bool
) -> None:
    """Raise `InternalError` for what is no disposition, `ConfigurationError` for an outbox or result that is wrong, and
    `NotSupported` for one that the server does not claim.
    """
    ttl: object = None
    sent: list[Envelope] = []
    for settlement in settlements:
        result = settlement.result
        if type(settlement.disposition) not in _DISPOSITIONS:
            raise InternalError(f"{settlement.disposition!r} is no disposition")
        if settlement.outbox:
            sent += settlement.outbox
        if result is not None:
            if not keeps_results:
                raise NotSupported(
                    f"{server} cannot store the result of message {settlement.delivery.envelope.id!r}: it does not "
                    "have the role 'results'; give it another server that has it, as state=, or the app a result_store="
                )
            if result.ttl is not ttl or len(result.payload) > LARGEST_MESSAGE:  # those of one actor share it
                _check_result(server, claimed, result)
                ttl = result.ttl
    if sent:
        check_envelopes(sent)
        check_claimed(server, claimed, sent)


def check_results(server: str, claimed: Capabilities, results: Iterable[NewResult]) -> None:
    """Raise `ConfigurationError` for a ttl that is no number, and for a value that is too large for a remote engine."""
    for result in results:
        _check_result(server, claimed, result)


def _check_result(server: str, claimed: Capabilities, result: NewResult) -> None:
    if len(result.payload) > LARGEST_MESSAGE and claimed.calls == "remote":
        raise _too_large(server, f"the result {result.id!r}", len(result.payload))
    ttl = result.ttl
    if not (type(ttl) is float and ttl == ttl) and not _is_number(ttl):  # noqa: PLR0124  nan is no number
        raise ConfigurationError(f"the ttl of the result {result.id!r} must be a number, but is {ttl!r}")


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not math.isnan(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _check_types(envelope: Envelope) -> None:
    for name, value, kind in (("payload", envelope.payload, bytes), ("headers", envelope.headers, dict)):
        given: object = value  # whatever the annotation says
        if not isinstance(given, kind):
            wrong = type(given).__name__
            raise ConfigurationError(
                f"the {name} of message {envelope.id!r} must be {kind.__name__}, but is of type {wrong}"
            )


def _check_text(envelope: Envelope, what: str, text: object) -> None:
    if not isinstance(text, str):
        raise ConfigurationError(
            f"message {envelope.id!r} cannot be published: its {what} must be text, but is {brief(text)}"
        )
    try:
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
