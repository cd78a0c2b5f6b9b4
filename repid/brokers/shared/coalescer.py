"""Many concurrent calls become one: what asks while a call is under way goes with the next one.

Theory. There is no background task: one of the calling tasks leads. It takes all requests that wait, carries them out
in one call and hands out the answers; then the first request that came meanwhile leads. A request is waiting, taken or
answered. A caller that is cancelled while its request waits takes it back, and nothing has happened; once the request
is taken, the caller waits for the answer, which comes within the bound of the call. The door shields the call and
bounds it. A call that is refused as wrong (`ConfigurationError`) has done nothing, so it is made again in halves: only
who asked for what is wrong is told so.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from trio.lowlevel import (
    Abort,
    Task,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from ...errors import ConfigurationError

A = TypeVar("A")
B = TypeVar("B")


class _Request(Generic[A, B]):
    __slots__ = ("answers", "error", "is_taken", "items", "task")

    def __init__(self, items: Sequence[A], task: Task) -> None:
        self.items = items
        self.task = task
        self.is_taken = False
        self.answers: list[B] = []
        self.error: Exception | None = None


class Coalescer(Generic[A, B]):
    """Calls `call` with the items of all waiting requests; gives each caller its answers.

    Requests go together up to `most`, as `weigh` counts; one that is more than that goes alone. `call` must see itself
    through: others wait for its answers, too, so it must not end because the task that makes it is cancelled.
    """

    def __init__(
        self, call: Callable[[list[A]], Awaitable[Sequence[B]]], *, most: int, weigh: Callable[[Sequence[A]], int] = len
    ) -> None:
        self._call = call
        self._most = most
        self._weigh = weigh
        self._waiting: dict[_Request[A, B], None] = {}
        self._has_leader = False
        self._is_lonely = False  # whether the last call was made for one request, while no other one waited

    async def ask(self, items: Sequence[A]) -> list[B]:
        """The answers to these items, in their order. Cancelled before its request was taken: nothing has happened."""
        await checkpoint_if_cancelled()
        request: _Request[A, B] = _Request(items, current_task())
        self._waiting[request] = None
        if self._has_leader:

            def take_back(_: object) -> Abort:
                if request.is_taken:
                    return Abort.FAILED
                del self._waiting[request]
                return Abort.SUCCEEDED

            await wait_task_rescheduled(take_back)
        if not request.is_taken:
            await self._lead()
        if request.error is not None:
            raise request.error
        return request.answers

    async def _lead(self) -> None:
        self._has_leader = True
        if not self._is_lonely:
            await cancel_shielded_checkpoint()  # what else wants to ask now comes along
        batch = self._take()
        try:
            await self._carry_out(batch)
        finally:
            me = current_task()
            for request in batch:
                if request.task is not me:
                    reschedule(request.task)
            self._is_lonely = len(batch) == 1 and not self._waiting
            if self._waiting:
                reschedule(next(iter(self._waiting)).task)  # it leads now
            else:
                self._has_leader = False

    async def _carry_out(self, batch: list[_Request[A, B]]) -> None:
        items = [item for request in batch for item in request.items]
        try:
            answers = list(await self._call(items))
        except ConfigurationError as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            middle = len(batch) // 2  # nothing was done: those that ask for nothing wrong are not to blame
            await self._carry_out(batch[:middle])
            await self._carry_out(batch[middle:])
            return
        except Exception as error:  # noqa: BLE001  whatever it is, each caller is told
            for request in batch:
                request.error = _for_another_caller(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.items)
            request.answers = answers[start:end]
            start = end

    def _take(self) -> list[_Request[A, B]]:
        """The requests that go into the next call: the first one in any case, and what else fits."""
        batch: list[_Request[A, B]] = []
        size = 0
        for request in self._waiting:
            size += self._weigh(request.items)
            if batch and size > self._most:
                break
            request.is_taken = True
            batch.append(request)
        for request in batch:
            del self._waiting[request]
        return batch


def _for_another_caller(error: Exception) -> Exception:
    """A copy of its own: one exception raised in two tasks would mix up their tracebacks."""
    mine = copy.copy(error)
    mine.__cause__ = error
    return mine
