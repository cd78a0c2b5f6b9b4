"""The process that looks after worker processes."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from ..errors import ConfigurationError, WorkersFailed
from ..runtime import Report
from ..runtime.signals import listen
from ..tracebacks import unwrapped
from .process import Brief, ExitReport, Order, Process
from .restarts import Restarts

log = logging.getLogger("repid.processes")

MARGIN = 10.0
"""Seconds a process has, after its grace, to settle and to close its connections. Then it is killed."""


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor runs: how many processes, and the brief of each.

    `grace`: seconds that their actors have after a stop. `watched`: folders whose changes reload.
    """

    brief: Brief
    processes: int
    grace: float
    signals: Sequence[signal.Signals]
    burst: bool
    watched: Sequence[Path]


class Post:
    """The place of one worker, which one process after another takes."""

    def __init__(self, number: int, messages_limit: float) -> None:
        self.number = number
        self.left = messages_limit
        self.restarts = Restarts()
        self.process: Process | None = None
        self.is_reloading = False
        self.patience = trio.CancelScope()
        self.wake = trio.Event()


class Supervisor:
    """Keeps its processes running until a signal stops them, or all of them are done.

    The first signal stops every process at the same time, so that they share one grace; the second ends the grace.
    The third ends this process at once, and the others see that.
    """

    def __init__(self, settings: SupervisorSettings) -> None:
        self._settings = settings
        limit = settings.brief.messages_limit
        self._posts = [Post(n + 1, math.inf if limit is None else limit) for n in range(settings.processes)]
        self._is_stopping = False
        self._report = Report()
        self._failures: list[str] = []
        self._refusal: str | None = None
        self._no_more_changes = trio.Event()

    async def run(self) -> Report:
        """What all processes did together. Raises `WorkersFailed` if they did not all end well, and
        `ConfigurationError` if there can be no worker, however often it is tried.

        When it returns or raises none of them is running any more. Cancelled: they are cut short.
        """
        try:
            with listen(self._settings.signals, self._on_signal):
                async with trio.open_nursery() as watching:
                    if self._settings.watched:
                        watching.start_soon(self._watch)
                    async with trio.open_nursery() as posts:
                        for post in self._posts:
                            posts.start_soon(self._hold, post)
                    self._no_more_changes.set()
        except BaseExceptionGroup as group:
            raise unwrapped(group) from None
        if self._refusal is not None:
            raise ConfigurationError(self._refusal)
        if self._failures:
            raise WorkersFailed("; ".join(self._failures), self._report)
        return self._report

    def _on_signal(self) -> None:
        if self._is_stopping:
            log.info("stopping at once, without waiting for the grace: another signal has come")
            self._tell_all("cut")
        else:
            log.info(
                "stopping: %d worker(s) have %g s to end what they do, or until another signal comes",
                self._running,
                self._settings.grace,
            )
            self._stop()

    def _stop(self) -> None:
        self._is_stopping = True
        self._tell_all("stop")

    @property
    def _running(self) -> int:
        return sum(post.process is not None for post in self._posts)

    def _tell_all(self, order: Order) -> None:
        for post in self._posts:
            self._tell(post, order)

    def _tell(self, post: Post, order: Order) -> None:
        post.wake.set()
        if post.process is not None:
            bound = MARGIN if order == "cut" else MARGIN + self._settings.grace
            post.patience.deadline = min(post.patience.deadline, trio.current_time() + bound)
            post.process.tell(order)

    async def _hold(self, post: Post) -> None:
        """Run one process after another until no more is wanted."""
        delay: float | None = 0.0
        while delay is not None:
            with trio.move_on_after(delay):
                await post.wake.wait()
            if self._is_stopping:
                return
            post.wake, post.patience, post.is_reloading = trio.Event(), trio.CancelScope(), False
            try:
                process = Process(self._brief(post))
            except OSError as error:  # too many processes, or too little memory, for now
                delay = self._after_crash(post, f"worker {post.number} could not be started: {error}")
                continue
            post.process = process
            name = f"worker {post.number} (process {process.pid})"
            log.debug("%s was started", name)
            try:
                code = await self._wait(post, process, name)
            finally:
                post.process = None
                exit_report = await process.close(MARGIN)
            delay = self._judge(post, name, code, exit_report)

    def _brief(self, post: Post) -> Brief:
        return msgspec.structs.replace(
            self._settings.brief,
            number=post.number,
            messages_limit=None if post.left == math.inf else int(post.left),
        )

    async def _wait(self, post: Post, process: Process, name: str) -> int:
        with post.patience:
            return await process.wait()
        if self._is_stopping:
            self._failures.append(f"{name} did not end in time and was killed")
        log.error("%s did not end in time and is killed", name)
        process.kill()
        return await process.wait()

    def _judge(self, post: Post, name: str, code: int, exit_report: ExitReport | None) -> float | None:
        """What follows from the end of a process: seconds until the next one is started; None: no other one is."""
        if exit_report is not None:
            self._report = _sum(self._report, exit_report.report)
            post.left -= exit_report.report.processed + exit_report.report.abandoned
            if exit_report.refused is not None:
                return self._after_refusal(post, exit_report.refused)
            if exit_report.unavailable is not None:
                self._failures.append(f"{name} ended: {exit_report.unavailable}")
                return None
        if self._is_stopping:
            had_begun = -code not in self._settings.signals  # once it has, it handles these
            ended_well = code == 0 and exit_report is not None
            if had_begun and not ended_well and not post.patience.cancel_called:
                self._failures.append(f"{name} failed while it was stopping: {describe(code)}")
            return None
        if code != 0 or exit_report is None:
            return self._after_crash(post, f"{name} ended: {describe(code)}")
        return self._after_good_end(post, name, exit_report)

    def _after_good_end(self, post: Post, name: str, exit_report: ExitReport) -> float | None:
        if post.left <= 0 or (self._settings.burst and exit_report.recycled is None and not post.is_reloading):
            return None
        if exit_report.recycled == "memory" and exit_report.report.processed == 0:
            return self._after_crash(post, f"{name} took more than max_memory before it had run anything")
        if exit_report.recycled is None:
            return self._after_crash(post, f"{name} ended, though nobody had told it to")
        log.info("%s is replaced: it has reached its limit (%s)", name, exit_report.recycled)
        return 0.0

    def _after_refusal(self, post: Post, why: str) -> float | None:
        if post.is_reloading:
            return 0.0
        if self._settings.watched and not self._is_stopping:
            log.error("no worker can run: %s; it is tried again at the next change", why)
            return math.inf
        self._refusal = why  # all of them say the same
        self._stop()
        return None

    def _after_crash(self, post: Post, what: str) -> float | None:
        if post.is_reloading:
            return 0.0
        if self._settings.watched:
            log.error("%s; it is started at the next change", what)
            return math.inf
        delay = post.restarts.after_crash(trio.current_time())
        if delay is not None:
            log.error("%s; again in %g s", what, delay)
            return delay
        log.error("%s; that is too often within a minute: giving up", what)
        self._failures.append(f"{what}, and that too often within a minute")
        self._stop()
        return None

    async def _watch(self) -> None:
        from watchfiles import PythonFilter, awatch  # noqa: PLC0415  an extra; `run_app` has checked that it is there

        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it would tell of each change, too
        async for changes in awatch(
            *self._settings.watched, watch_filter=PythonFilter(), stop_event=self._no_more_changes
        ):
            log.info("%s changed: reloading", ", ".join(sorted({Path(path).name for _, path in changes})))
            for post in self._posts:
                post.is_reloading = True
                self._tell(post, "stop")


def describe(code: int) -> str:
    """The exit code of a process that did not end well, in words."""
    if code == 0:
        return "exit code 0, in the middle of its work"
    if code > 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _sum(one: Report, other: Report) -> Report:
    return Report(**{name: getattr(one, name) + getattr(other, name) for name in Report.__struct_fields__})
