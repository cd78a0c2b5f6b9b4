"""What an actor has raised: judged, put into words, logged. Nothing here trusts the error, see `tracebacks`."""

from __future__ import annotations

import logging

import trio

from ..delivery import Ack, Cancel, DeadLetter, Delivery, Disposition, Failure, Release, Retry
from ..logs import Log, in_seconds
from ..tracebacks import explain, family, is_a, leaves, name_of, text_of
from .holding import about
from .parcels import RaisedInProcess

log = Log("repid.worker")


def is_cancellation(error: BaseException) -> bool:
    """Whether it says nothing but that something was cancelled."""
    return all(is_a(each, trio.Cancelled) for each in leaves(error))


def stems_from_cancellation(error: BaseException, *, openly: bool) -> bool:
    """Whether a cancellation is in it, or it was raised while one was being handled: by a clean-up, say.

    `openly`: look only at what a traceback shows, not behind `from None`.
    """
    return any(is_a(each, trio.Cancelled) for each in family(error, openly=openly))


def failure_of(error: BaseException) -> Failure:
    """The error as it is stored."""
    if type(error) is RaisedInProcess:  # others may run code where they are asked what they are
        return error.failure
    text = text_of(error)
    return Failure(name_of(error), text, explain(error, text, in_program=True))


def stray_cancellation(error: BaseException) -> Failure:
    """The failure of an actor that raised a cancellation when nothing of ours was cancelled."""
    text = "the actor raised trio.Cancelled, but nothing had cancelled it: an old one must not be kept and raised again"
    return Failure(name_of(error), text, explain(error))


def in_words(disposition: Disposition | None) -> str:
    """What becomes of a message. None: nothing more, since its verdict was given before."""
    match disposition:
        case Ack(failure=failure):
            fate = "succeeded" if failure is None else "failed, and acknowledged"
        case Retry(delay=delay):
            fate = f"again in {in_seconds(delay)} s"
        case Release():
            fate = "released"
        case Cancel():
            fate = "cancelled"
        case DeadLetter(reason=reason):
            fate = f"dead letter ({reason})"
        case None:
            fate = "nothing more, its verdict was given before"
    return fate


def log_failure(
    actor: str, delivery: Delivery, disposition: Disposition, error: BaseException, failure: Failure
) -> None:
    """Say what failed and what becomes of the message."""
    if not log.is_enabled(logging.ERROR):
        return
    fate = "acknowledged all the same" if isinstance(disposition, Ack) else in_words(disposition)
    log.about(about(delivery, actor)).error(
        "actor %r failed on message %r in attempt %d: %s",
        actor,
        delivery.envelope.id,
        delivery.attempt,
        fate,
        exc_info=error,
        explained=failure.traceback,
    )
