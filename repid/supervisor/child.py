"""A worker process from inside: what `python -c` starts."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO

import msgspec
import trio

from ..application import Application
from ..errors import BrokerError, BrokerUnavailable, ConfigurationError, LifespanError, RepidError, UsageError
from ..hosts import run_on_loop
from ..run_token import call_soon_in
from ..runtime import Handle, Report
from ..runtime.outage import Patience
from ..runtime.signals import MOST_SIGNALS, end_process, let_in, take
from ..tracebacks import unwrapped
from .collector import spared_collector
from .memory import resident
from .orphan import end_with
from .process import Brief, ExitReport, inherited_pipe
from .target import Target, failure_of_import, load_target

log = logging.getLogger("repid.processes")

FORMAT = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"

ORPHAN_TIME = 5.0
"""Seconds a process has to release its jobs when its supervisor is no more."""

_MEMORY_INTERVAL = 0.5
_LONGEST_REFUSAL = 2000

is_child = False
"""Whether this process was started by a supervisor."""


def main() -> None:
    """Run the worker that the first line of standard input describes, until that says otherwise or ends."""
    global is_child  # noqa: PLW0603  it is a fact about the process
    is_child = True
    pipe = os.fdopen(os.dup(0), "rb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    brief = msgspec.json.decode(pipe.readline(), type=Brief)
    end_with(brief.supervisor)
    leave = partial(_leave, inherited_pipe(brief.exit_pipe))
    orders = Orders(partial(_end_now, leave))
    for number in brief.signals:  # from now on: none of them may end a process that is starting, or about to end
        take(number, orders.on_signal)
    let_in(brief.signals)
    threading.Thread(target=_listen, args=(pipe, orders), name="repid supervisor", daemon=True).start()
    sys.argv = brief.argv
    try:
        leave(_run(brief, orders))
    finally:
        for number in brief.signals:
            signal.signal(number, signal.SIG_IGN)  # else the interpreter's last steps restore what would kill it


def _run(brief: Brief, orders: Orders) -> ExitReport:
    try:
        app = _load(brief.target)
        orders.attach(None)
        configure_logging()
        with spared_collector(brief.tasks_limit):
            return run_on_loop(brief.loop, _work, app, brief, orders)
    except (ConfigurationError, UsageError) as error:
        return ExitReport(Report(), refused=str(error)[:_LONGEST_REFUSAL])
    except (BrokerError, LifespanError) as error:  # not our bug; the log has told of the program's
        log.error("worker %d has failed: %s", brief.number, error)  # noqa: TRY400  the text says it all
        if isinstance(error, BrokerUnavailable) and brief.worker.get("burst"):  # it was waited for
            return ExitReport(Report(), unavailable=str(error)[:_LONGEST_REFUSAL])
        sys.exit(1)


def _load(target: Target) -> Application:
    """The app. What the program itself raises is shown as the command line does; then this process ends."""
    try:
        return load_target(target)
    except RepidError:
        raise
    except Exception as error:  # noqa: BLE001  whatever the program raises
        what = target.main_path or target.main_module or target.name
        sys.stderr.write(failure_of_import(what, error) + "\n")
        sys.exit(1)


def _leave(pipe: int, report: ExitReport) -> None:
    with suppress(OSError):  # the supervisor is no more
        os.write(pipe, msgspec.json.encode(report))


def _end_now(leave: Callable[[ExitReport], None], _: str) -> None:
    """The program is still being imported, which may take longer than anybody waits, and nothing was begun."""
    leave(ExitReport(Report()))
    os._exit(0)


def configure_logging() -> None:
    """Let the log be seen on stderr, from INFO on, if the program has not said how."""
    if not logging.getLogger("repid").hasHandlers():
        logging.basicConfig(level=logging.INFO, format=FORMAT)


class Orders:
    """What the supervisor wants, whether or not there is a worker yet that could do it."""

    def __init__(self, carry_out: Callable[[str], object]) -> None:
        self._lock = threading.RLock()  # a signal handler may interrupt its thread here
        self._given: list[str] = []
        self._signals = 0
        self._carry_out: Callable[[str], object] | None = carry_out

    def give(self, order: str) -> None:
        """Have an order carried out, now or as soon as there is somebody to do it. Called in any thread."""
        with self._lock:
            self._given.append(order)
            if self._carry_out is not None:
                self._carry_out(order)

    def on_signal(self, number: int, _: object = None) -> None:
        """A signal that came to this process itself. The first stops, the second ends the grace, the third
        the process.
        """
        self._signals += 1
        if self._signals > MOST_SIGNALS:
            end_process(number)
        self.give("stop" if self._signals == 1 else "cut")

    def attach(self, carry_out: Callable[[str], object] | None) -> None:
        """Who carries them out from now on. None: nobody yet, so that they are kept."""
        with self._lock:
            self._carry_out = carry_out
            if carry_out is not None:
                for order in self._given:
                    carry_out(order)


def _listen(pipe: IO[bytes], orders: Orders) -> None:
    for line in pipe:
        orders.give(line.decode().strip())
    orders.give("cut")  # the supervisor is no more
    time.sleep(ORPHAN_TIME)
    os._exit(1)


async def _work(app: Application, brief: Brief, orders: Orders) -> ExitReport:
    token = trio.lowlevel.current_trio_token()
    report, is_too_large = Report(), False

    async def work(task_status: trio.TaskStatus[Handle]) -> None:
        nonlocal report
        report = await app.run_worker(
            server_name=brief.server_name,
            handle_signals=(),
            messages_limit=min(_or_inf(brief.messages_limit), _or_inf(brief.max_jobs)),
            task_status=task_status,
            tasks_limit=brief.tasks_limit,
            **brief.worker,
        )
        nursery.cancel_scope.cancel()

    def recycle() -> None:
        nonlocal is_too_large
        is_too_large = True
        handle.stop()

    starting = trio.CancelScope()

    def end_start() -> None:
        if not has_started:
            starting.cancel()

    has_started = False
    orders.attach(lambda _: call_soon_in(token, end_start))
    try:
        with starting:
            async with AsyncExitStack() as stack:
                await Patience(burst=brief.worker.get("burst", False))(lambda: stack.enter_async_context(app.magic()))
                async with trio.open_nursery() as nursery:
                    handle: Handle = await nursery.start(work)
                    has_started = True
                    log.info("worker %d has started", brief.number)
                    verbs = {"stop": handle.stop, "cut": handle.cut_short}
                    orders.attach(lambda order: call_soon_in(token, verbs[order]))
                    if brief.max_memory is not None:
                        nursery.start_soon(_watch_memory, brief.max_memory, recycle)
    except BaseExceptionGroup as group:
        raise unwrapped(group) from None
    if is_too_large:
        return ExitReport(report, "memory")
    has_run_all = brief.max_jobs is not None and report.processed + report.abandoned >= brief.max_jobs
    return ExitReport(report, "jobs" if has_run_all else None)


async def _watch_memory(limit: int, recycle: Callable[[], None]) -> None:
    while resident() <= limit:  # noqa: ASYNC110  the kernel sends no event for this
        await trio.sleep(_MEMORY_INTERVAL)
    log.info(
        "this process takes %d MB, more than the %d it may: it ends and is replaced", resident() >> 20, limit >> 20
    )
    recycle()


def _or_inf(limit: int | None) -> float:
    return float("inf") if limit is None else limit
