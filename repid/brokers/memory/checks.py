"""What callers hand in, looked at before anything is changed: a bad message must not leave half a batch behind."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ...delivery import Ack, DeadLetter, Release, Retry, Settlement
from ...envelope import NO_OPTIONS, Envelope
from ...errors import ConfigurationError, InternalError

_DISPOSITIONS = frozenset({Ack, Retry, Release, DeadLetter})


def check_envelopes(envelopes: Iterable[Envelope]) -> None:
    """Raise `ConfigurationError` for a payload that is not bytes, headers that are no dict, options that are no numbers."""
    for envelope in envelopes:
        if type(envelope.payload) is not bytes or type(envelope.headers) is not dict:
            _check_types(envelope)
        if envelope.options is not NO_OPTIONS:
            _check_options(envelope)


def check_settlements(settlements: Iterable[Settlement]) -> None:
    """Raise `InternalError` for what is no disposition, and `ConfigurationError` for an outbox as above."""
    for settlement in settlements:
        if type(settlement.disposition) not in _DISPOSITIONS:
            raise InternalError(f"{settlement.disposition!r} is no disposition")
        if settlement.outbox:
            check_envelopes(settlement.outbox)


def _check_types(envelope: Envelope) -> None:
    for name, value, kind in (("payload", envelope.payload, bytes), ("headers", envelope.headers, dict)):
        given: object = value  # whatever the annotation says
        if not isinstance(given, kind):
            wrong = type(given).__name__
            raise ConfigurationError(
                f"the {name} of message {envelope.id!r} must be {kind.__name__}, but is of type {wrong}"
            )


def _check_options(envelope: Envelope) -> None:
    options = envelope.options
    for name, value in (("priority", options.priority), ("delay", options.delay), ("ttl", options.ttl)):
        number: object = value
        if number is not None and (not isinstance(number, int | float) or math.isnan(number)):
            raise ConfigurationError(f"the {name} of message {envelope.id!r} must be a number, but is {number!r}")
