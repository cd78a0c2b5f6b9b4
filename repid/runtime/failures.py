"""What an actor has raised: taken apart, put into words, logged."""

from __future__ import annotations

import logging
import traceback

import trio

from ..delivery import Ack, Cancel, DeadLetter, Delivery, Disposition, Failure, Release, Retry

log = logging.getLogger("repid.worker")

LONGEST_TRACEBACK = 16_000
"""Characters of a traceback that are kept with a failure: its end, where the error is."""


def split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """The cancellation in an error, and the rest."""
    if isinstance(error, trio.Cancelled):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)
    return None, error


def stops_the_worker(error: BaseException) -> bool:
    """Whether it is, or holds, an order to end the process."""
    orders = (KeyboardInterrupt, SystemExit)
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(orders) is not None
    return isinstance(error, orders)


def failure_of(error: BaseException) -> Failure:
    """The error as it is stored."""
    explained = traceback.TracebackException.from_exception(error)  # bears errors whose text cannot be had
    text = "".join(explained.format())
    return Failure(type(error).__name__, _text(error), text[-LONGEST_TRACEBACK:])


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  whatever is wrong with it, the failure is to be recorded
        return "(its text cannot be had: __str__ raised)"


def log_failure(actor: str, delivery: Delivery, disposition: Disposition, error: BaseException) -> None:
    """Say what failed and what becomes of the message."""
    match disposition:
        case Ack():
            fate = "acknowledged all the same"
        case Retry(delay=delay):
            fate = f"again in {delay:.3g} s"
        case Release():
            fate = "released"
        case Cancel():
            fate = "cancelled"
        case DeadLetter(reason=reason):
            fate = f"dead letter ({reason})"
    log.error(
        "actor %r failed on message %r in attempt %d: %s",
        actor,
        delivery.envelope.id,
        delivery.attempt,
        fate,
        exc_info=error,
    )
