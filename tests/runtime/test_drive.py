"""Coroutines stepped by hand behave as if trio ran them: against each of trio's traps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, current_task

from repid.runtime.drive import CHECKPOINT, CHECKPOINTS_PER_RUN, drive

word: ContextVar[str] = ContextVar("word", default="none")

Call = Callable[[], Coroutine[Any, Any, Any]]


class Watched(list[str]):
    """What the watcher was told, in order; `steps` counts those after the first."""

    def __init__(self) -> None:
        self.steps = 0

    def yields(self) -> None:
        self.append("yields")

    def waits(self) -> None:
        self.append("waits")

    def stepped(self, began: float, ended: float) -> None:
        assert began <= ended
        self.steps += 1


async def run(call: Call, watched: Watched | None = None) -> Any:
    """What an executor does with the coroutine of a run."""
    coroutine, context = call(), copy_context()
    try:
        trap = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    return await drive(coroutine, trap, context, Watched() if watched is None else watched)


async def test_trio_yields_one_object_for_every_checkpoint() -> None:
    first_steps = [cancel_shielded_checkpoint().send, checkpoint().send]  # noqa: ASYNC105  stepped by hand
    assert [step(None) is CHECKPOINT for step in first_steps] == [True, True]


@pytest.mark.parametrize("times", range(CHECKPOINTS_PER_RUN + 2))
async def test_a_run_that_only_yields_counts_as_waiting_after_the_last_checkpoint_it_has(times: int) -> None:
    async def call() -> str:
        for _ in range(times):
            await checkpoint()
        return "done"

    watched = Watched()
    assert await run(call, watched) == "done"
    free = min(times, CHECKPOINTS_PER_RUN)
    assert watched == ["yields"] * free + ["waits"] * (times > CHECKPOINTS_PER_RUN)
    assert watched.steps == times


async def test_a_run_that_sleeps_waits_at_once_and_only_once(autojump_clock: object) -> None:
    async def call() -> None:
        await trio.sleep(1)
        await checkpoint()
        await trio.sleep(1)

    watched = Watched()
    await run(call, watched)
    assert (watched, watched.steps) == (["waits"], 3)


async def test_what_the_coroutine_raises_comes_out_with_no_context_of_ours() -> None:
    async def call() -> None:
        await checkpoint()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        await run(call)
    assert caught.value.__context__ is None


async def test_an_error_raised_after_a_swallowed_cancellation_has_no_context(autojump_clock: object) -> None:
    async def call() -> None:
        with trio.move_on_after(1):
            await trio.sleep_forever()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        await run(call)
    assert caught.value.__context__ is None


async def test_a_cancellation_reaches_the_clean_up_which_may_wait(autojump_clock: object) -> None:
    seen: list[float] = []

    async def call() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            seen.append(trio.current_time())

    started = trio.current_time()
    with trio.move_on_after(1) as scope:
        await run(call)
    assert scope.cancelled_caught
    assert seen == [started + 3]


@pytest.mark.parametrize("turns", [0, 1, CHECKPOINTS_PER_RUN + 1])
async def test_scopes_and_nurseries_opened_in_any_step_are_those_of_the_task(
    autojump_clock: object, turns: int
) -> None:
    async def call() -> float:
        task = current_task()
        for _ in range(turns):
            await checkpoint()
        started = trio.current_time()
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
        assert current_task() is task
        return trio.current_time() - started

    assert await run(call) == 1
    await checkpoint()  # nothing of it is left on this task


async def test_a_child_that_fails_cancels_its_nursery_and_comes_out_as_a_group() -> None:
    async def fails() -> None:
        raise KeyError("child")

    async def call() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fails)

    with pytest.raises(ExceptionGroup) as caught:
        await run(call)
    assert [type(error) for error in caught.value.exceptions] == [KeyError]


async def in_thread() -> None:
    await trio.to_thread.run_sync(word.get)


async def acquire() -> None:
    await trio.Semaphore(1).acquire()


@pytest.mark.parametrize(
    "wait",
    [partial(trio.sleep, 0.001), in_thread, acquire, checkpoint_if_cancelled, trio.testing.wait_all_tasks_blocked],
    ids=["sleep", "thread", "semaphore", "checkpoint if cancelled", "blocked tasks"],
)
async def test_each_kind_of_wait_ends(wait: Callable[[], Awaitable[object]]) -> None:
    async def call() -> str:
        await wait()
        return "ended"

    assert await run(call) == "ended"


async def test_an_answer_is_passed_on_as_it_is() -> None:
    task = current_task()
    answer = object()

    async def call() -> object:
        return await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    async with trio.open_nursery() as nursery:

        async def wake() -> None:
            trio.lowlevel.reschedule(task, outcome.Value(answer))

        nursery.start_soon(wake)
        assert await run(call) is answer


async def test_what_a_run_sets_is_seen_by_its_steps_and_its_tasks_and_by_nobody_else() -> None:
    seen: list[str] = []

    async def child() -> None:
        seen.append(word.get())

    async def call() -> None:
        word.set("first")
        await checkpoint()
        seen.append(word.get())
        word.set("later")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        seen.append(await trio.to_thread.run_sync(word.get))

    await run(call)
    assert seen == ["first", "later", "later"]
    assert word.get() == "none"


@pytest.mark.parametrize("turns", [1, CHECKPOINTS_PER_RUN + 1], ids=["at its first checkpoint", "while it waits"])
def test_a_coroutine_whose_driver_is_closed_is_closed_too(turns: int) -> None:
    ended: list[str] = []

    async def call() -> None:
        try:
            while True:
                await checkpoint()
        finally:
            ended.append("closed")

    async def main() -> None:
        driven = run(call)
        driven.send(None)
        for _ in range(turns - 1):
            driven.send(outcome.Value(None))
        driven.close()

    trio.run(main)
    assert ended == ["closed"]


async def test_an_error_that_was_thrown_in_is_not_kept_while_the_run_goes_on(autojump_clock: object) -> None:
    class Held:
        """Something in a local variable of the actor, and so in the traceback of what it raises."""

    found: list[weakref.ref[Held]] = []

    async def interrupted() -> None:
        held = Held()
        found.append(weakref.ref(held))
        await trio.sleep_forever()

    async def call() -> None:
        with trio.move_on_after(1):
            await interrupted()
        await trio.sleep(2)

    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, call)
            await trio.sleep(2)
            assert found[0]() is None
    finally:
        gc.enable()


def test_an_error_thrown_at_the_driver_is_the_affair_of_the_coroutine() -> None:
    async def call() -> str:
        try:
            await checkpoint()
        except LookupError as error:
            return f"handled {error}"
        return "not told"

    async def main() -> None:
        driven = run(call)
        driven.send(None)
        with pytest.raises(StopIteration, match="handled x"):
            driven.throw(LookupError("x"))

    trio.run(main)


@pytest.mark.parametrize("order", [StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit])
async def test_errors_with_a_meaning_for_python_itself_come_out_as_from_a_task(order: type[BaseException]) -> None:
    async def call() -> None:
        await checkpoint()
        raise order

    expected = RuntimeError if order is StopIteration else order
    with pytest.raises(expected):
        await run(call)
