"""Freezing a process: none of its tasks runs for some time, as after SIGSTOP, a long garbage collection or a laptop's
lid.

Theory. A process of a simulated fleet is a set of tasks: those whose context says so, and all that they start. Each of
them runs inside a gate: when trio resumes a task of a frozen process, the gate keeps what the task was resumed with,
and hands it over when the process is thawed. A cancellation that comes meanwhile is seen then, too. The task cannot
tell it from a scheduler that was very slow. The gate is put around a task when trio announces it, before its first
step.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from .scenario import process


class Freezer(trio.abc.Instrument):
    """Freezes and thaws the processes of one trio run, of which it is an instrument."""

    def __init__(self) -> None:
        self._parked: dict[str, list[Task]] = {}
        """By the names of the processes that are frozen: the tasks that would run now."""

    def task_spawned(self, task: Task) -> None:
        """A task is about to begin."""
        name = task.context.get(process, "")
        if name:
            task.coro = _gated(task.coro, name, self._parked)  # type: ignore[assignment]

    def freeze(self, name: str) -> None:
        """No task of this process runs until it is thawed."""
        self._parked.setdefault(name, [])

    def thaw(self, name: str) -> None:
        """Its tasks go on where they were."""
        for task in self._parked.pop(name, ()):
            reschedule(task)


@types.coroutine
def _gated(coroutine: Coroutine[Any, Any, Any], name: str, parked: dict[str, list[Task]]) -> Generator[Any, Any, Any]:
    given: Any = None
    error: BaseException | None = None
    while True:
        try:
            trap = coroutine.send(given) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            return stop.value
        given, error = None, None
        try:
            given = yield trap
        except BaseException as thrown:  # noqa: BLE001  it belongs to the coroutine
            error = thrown
        while name in parked:
            parked[name].append(current_task())
            yield from wait_task_rescheduled(lambda _: Abort.FAILED).__await__()  # noqa: ASYNC105  a generator has no await
