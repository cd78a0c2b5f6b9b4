"""Coroutines stepped by hand: how an executor runs an actor without a task, and mostly without trio, for each run.

Most runs never wait. A task for each of them, or only a cancel scope, would cost more than the run. So the executor
makes the first step itself, `context.run(coroutine.send, None)`. If that step ends the run, trio has not been asked for
anything. If it yields a *trap* (what a coroutine yields to trio's run loop when it waits), `drive` does the rest as a
part of the executor's own task.

What this relies on:

1. A trap is answered by the task that yields it. So all steps of a coroutine, the first one included, are made in one
   task, and only `drive` steps it after the first. Cancel scopes and nurseries that the coroutine opens, in any
   step, therefore belong to that task, and its frames close them in order before the coroutine can end.
2. Traps and their answers are opaque and are passed on as they are, values to `send` and errors to `throw`. Errors are
   the coroutine's own affair: `trio.Cancelled` must reach its clean-up, which may wait again.
3. Each step runs in the context of the run. What an actor sets is seen by its later steps and by the tasks it starts,
   and by no other run. The context of the task itself stays as it was.
4. `CHECKPOINT` is what trio yields for a checkpoint: one object, always the same. It is recognised by identity, which
   is a detail of trio. If trio changes it, nothing breaks: every run that yields then counts as one that waits.

Who may do what: between two steps the coroutine is suspended and nobody may touch it but trio, through the answer to
the trap. The watcher is called between steps, never during one, and must not step it either.

Traps of trio that this avoids: a coroutine that is dropped (the run crashed, its generator is closed) is closed too, so
its `finally` blocks run; an error that was thrown in is let go when it has been delivered, because its traceback
holds this frame; and a run that only yields to others, as `await trio.lowlevel.checkpoint()` does, is not
taken for one that waits until it has done so `CHECKPOINTS_PER_RUN` times, since what follows from waiting (others take
over the batch, the timer watches the run) costs more than a few turns of the loop.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any, Protocol

import trio

CHECKPOINTS_PER_RUN = 4
"""A run may yield to others this many times before it counts as one that waits for something."""

CHECKPOINT: Any = trio.lowlevel.cancel_shielded_checkpoint().send(None)  # noqa: ASYNC105  its first step by hand
"""The trap of a coroutine that waits for nothing and only lets others run: it is resumed in the next turn."""


class Watcher(Protocol):
    """Who is told how a driven coroutine goes on."""

    def yields(self) -> None:
        """The coroutine is about to let others run for a turn."""
        ...

    def waits(self) -> None:
        """From now on the coroutine counts as one that waits for something. Called once at most."""
        ...

    def stepped(self, began: float, ended: float) -> None:
        """One step kept the event loop between these moments, on trio's clock."""
        ...


@types.coroutine
def drive(
    coroutine: Coroutine[Any, Any, Any], trap: Any, context: Context, watcher: Watcher
) -> Generator[Any, Any, Any]:
    """Await the rest of a coroutine whose first step has yielded `trap`: its value, or its error."""
    clock = trio.lowlevel.current_clock().current_time  # as trio.current_time, without looking for the clock each time
    resume: Any = coroutine.send
    argument: Any = None
    turns, began = 0, 0.0
    try:
        while True:
            if turns < CHECKPOINTS_PER_RUN and trap is CHECKPOINT:
                turns += 1
                watcher.yields()
            elif turns <= CHECKPOINTS_PER_RUN:
                turns = CHECKPOINTS_PER_RUN + 1
                watcher.waits()
            try:
                argument = yield trap
                resume = coroutine.send
            except BaseException as error:  # noqa: BLE001  it belongs to the coroutine
                argument, resume = error, coroutine.throw
            began = clock()
            trap = context.run(resume, argument)  # outside `except`, or the error would be the context of later ones
            argument = None
            watcher.stepped(began, clock())
    except StopIteration as stop:
        watcher.stepped(began, clock())
        return stop.value
    except BaseException:
        watcher.stepped(began, clock())
        raise
    finally:
        argument = trap = None  # an answer may hold an error, whose traceback holds this frame
