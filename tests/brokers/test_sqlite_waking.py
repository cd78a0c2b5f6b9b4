"""How a caller of the SQLite broker is woken by its answer: in how many turns of trio's loop, and that none is missed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from repid.brokers.sqlite.requests import Answer, Operation, Request, RequestQueue

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="a bell is an eventfd")


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def turns_until_answered(queue: RequestQueue, requests: Sequence[Request]) -> list[int]:
    """The turn in which each caller has its answer; all are answered together."""
    turns, counts = Turns(), []

    async def ask(request: Request, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        assert await queue.ask(request) is request
        counts.append(turns.count)

    async with trio.open_nursery() as nursery:
        for request in requests:
            await nursery.start(ask, request)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(turns)
        queue.answer([Answer(request, request) for request in queue.take(lambda _: True)])
    trio.lowlevel.remove_instrument(turns)
    return counts


@pytest.fixture
async def queue() -> RequestQueue:
    return RequestQueue(trio.lowlevel.current_trio_token())


def new_request() -> Request:
    return Operation(lambda _: None)


@only_linux
async def test_a_lone_caller_has_its_answer_in_the_first_turn(queue: RequestQueue) -> None:
    for _ in range(3):
        assert await turns_until_answered(queue, [new_request()]) == [1]


@only_linux
async def test_of_callers_that_are_answered_together_the_first_one_wakes_the_others(queue: RequestQueue) -> None:
    for _ in range(3):
        assert await turns_until_answered(queue, [new_request() for _ in range(3)]) == [1, 2, 2]


@only_linux
async def test_a_caller_that_is_cancelled_leaves_the_bell_to_the_next_one(queue: RequestQueue) -> None:
    for _ in range(3):
        with trio.move_on_after(0.01) as scope:
            await queue.ask(new_request())
        assert scope.cancelled_caught
        assert await turns_until_answered(queue, [new_request()]) == [1]


async def test_a_caller_that_is_cancelled_too_late_has_its_answer_and_is_cancelled_then(queue: RequestQueue) -> None:
    answers: list[Any] = []

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await queue.ask(new_request()))
            await trio.lowlevel.checkpoint()
            answers.append("not cancelled")

    for _ in range(3):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(ask, scope)
            await trio.testing.wait_all_tasks_blocked()
            taken = queue.take(lambda _: True)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            queue.answer([Answer(request, "an answer") for request in taken])
    assert answers == ["an answer"] * 3


async def test_a_caller_that_comes_while_another_one_listens_is_answered_before_it(queue: RequestQueue) -> None:
    answers: list[Any] = []

    async def ask(name: str) -> None:
        answers.append(await queue.ask(Operation(lambda _: name)))

    async with trio.open_nursery() as nursery:
        for name in ("first", "second"):
            nursery.start_soon(ask, name)
            await trio.testing.wait_all_tasks_blocked()
        first, second = queue.take(lambda _: True)
        for request in (second, first):
            queue.answer([Answer(request, request.carry_out)])
            await trio.testing.wait_all_tasks_blocked()
    assert [answer(None) for answer in answers] == ["second", "first"]


async def test_where_no_descriptor_can_be_opened_callers_are_woken_in_the_second_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", refuse, raising=False)
    queue = RequestQueue(trio.lowlevel.current_trio_token())
    assert await turns_until_answered(queue, [new_request()]) == [2]
