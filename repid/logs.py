"""Loggers that cannot fail: a handler or filter that raises ends no worker and no message's run."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar

from .tracebacks import explain, inert, traceback_of, without_passwords

NOTHING: Mapping[str, object] = {}

context: ContextVar[Mapping[str, object]] = ContextVar("repid_log_context", default=NOTHING)
"""What `log_context` returns."""


def log_context() -> Mapping[str, object]:
    """Which message is spoken of: its `message_id`, `actor`, `queue` and `attempt`; nothing if none is.

    It is known while handlers and filters get a record of repid that is about a message, and in every run of a worker
    that logs its runs (`log_runs`): for a filter that adds it to the records of actors.
    """
    return context.get()


def in_seconds(duration: float) -> str:
    """A duration in seconds for a log, to three digits or a tenth of a millisecond, and never in powers of ten."""
    return f"{duration:.0f}" if duration >= 100 else f"{round(duration, 4):.3g}"


class Log:
    """The logger of that name. What its handlers raise is printed to stderr, as logging itself does with most of it.

    An error that is logged along is put into words here, once and within bounds: it may be one that cannot be
    formatted. What comes from payloads and errors cannot forge an entry: later lines are indented, control characters
    escaped. The record holds it as `exc_info` for those handlers that look at it themselves.
    """

    def __init__(self, name: str | logging.Logger, fields: Mapping[str, object] = NOTHING) -> None:
        self._logger = logging.getLogger(name) if isinstance(name, str) else name
        self._fields = fields

    def about(self, fields: Mapping[str, object]) -> Log:
        """The same logger, whose records have these fields as `extra`."""
        return Log(self._logger, fields)

    def is_enabled(self, level: int) -> bool:
        """Whether records of this level go anywhere."""
        return self._logger.isEnabledFor(level)

    def log(self, level: int, text: str, *values: object) -> None:
        """As `Logger.log`."""
        self._log(level, text, values)

    def debug(self, text: str, *values: object) -> None:
        """As `Logger.debug`."""
        self._log(logging.DEBUG, text, values)

    def info(self, text: str, *values: object) -> None:
        """As `Logger.info`."""
        self._log(logging.INFO, text, values)

    def warning(self, text: str, *values: object) -> None:
        """As `Logger.warning`."""
        self._log(logging.WARNING, text, values)

    def error(
        self, text: str, *values: object, exc_info: BaseException | None = None, explained: str | None = None
    ) -> None:
        """As `Logger.error`. `explained`: the error in words, if these are known."""
        self._log(logging.ERROR, text, values, exc_info, explained)

    def exception(self, text: str, *values: object, in_program: bool = False) -> None:
        """As `Logger.exception`: with the error that is being handled. `in_program`: code of the program has raised it,
        so its traceback begins there.
        """
        self._log(logging.ERROR, text, values, sys.exception(), in_program=in_program)

    def _log(
        self,
        level: int,
        text: str,
        values: tuple[object, ...],
        error: BaseException | None = None,
        explained: str | None = None,
        *,
        in_program: bool = False,
    ) -> None:
        logger = self._logger
        try:
            if not logger.isEnabledFor(level):
                return
            path, line, function, _ = logger.findCaller(stacklevel=3)
            details = None if error is None else (type(error), error, traceback_of(error))
            record = logger.makeRecord(logger.name, level, path, line, text, values, details, function)
            message = record.getMessage()
            harmless = inert(without_passwords(message))
            if harmless != message:
                record.msg, record.args = harmless, None
            if error is not None:
                record.exc_text = (explain(error, in_program=in_program) if explained is None else explained).rstrip(
                    "\n"
                )
            if not self._fields:
                logger.handle(record)
                return
            record.__dict__.update(self._fields)
            token = context.set(self._fields)
            try:
                logger.handle(record)
            finally:
                context.reset(token)
        except (Exception, SystemExit) as fault:  # noqa: BLE001  whatever a handler raises, but Ctrl-C
            _report(fault)


def _report(fault: BaseException) -> None:
    if not logging.raiseExceptions or sys.stderr is None:
        return
    try:
        last = traceback.extract_tb(fault.__traceback__)[-1]
        sys.stderr.write(f"--- logging failed in {last.filename}, line {last.lineno} ---\n{explain(fault)}")
    except Exception:  # noqa: BLE001, S110  there is nobody left to tell
        pass
