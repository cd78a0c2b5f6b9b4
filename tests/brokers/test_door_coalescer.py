"""Many concurrent calls become one, and each caller gets its own answers, errors and cancellation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from aids import run_virtual, seed_scheduler
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from repid import BrokerUnavailable, ConfigurationError
from repid.brokers.shared.coalescer import Coalescer


class Call:
    """Doubles numbers; slowly, and never twice at the same time. It sees itself through, as it must."""

    def __init__(self, *, seconds: float = 1.0) -> None:
        self.batches: list[list[int]] = []
        self.error: Exception | None = None
        self.is_under_way = False
        self._seconds = seconds

    async def __call__(self, items: list[int]) -> Sequence[int]:
        assert not self.is_under_way
        self.is_under_way = True
        self.batches.append(items)
        with trio.CancelScope(shield=True):
            await trio.sleep(self._seconds)
        self.is_under_way = False
        if self.error is not None:
            raise self.error
        return [2 * item for item in items]


async def test_what_is_asked_while_a_call_is_under_way_goes_with_the_next(autojump_clock: MockClock) -> None:
    call = Call()
    coalescer = Coalescer(call, most=100)
    answers: dict[int, list[int]] = {}

    async def ask(number: int) -> None:
        answers[number] = await coalescer.ask([number, -number])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0)
        await wait_all_tasks_blocked()
        for number in range(1, 20):
            nursery.start_soon(ask, number)
            await wait_all_tasks_blocked()
    assert [len(batch) for batch in call.batches] == [2, 38]
    assert call.batches[1] == [sign * number for number in range(1, 20) for sign in (1, -1)]  # in order
    assert answers == {number: [2 * number, -2 * number] for number in range(20)}


async def test_a_lone_caller_does_not_wait_for_others_and_one_of_many_does(autojump_clock: MockClock) -> None:
    call = Call()
    coalescer = Coalescer(call, most=100)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(coalescer.ask, [number])
    await coalescer.ask([3])
    for first in (10, 20):
        async with trio.open_nursery() as nursery:
            for number in range(first, first + 3):
                nursery.start_soon(coalescer.ask, [number])
    assert [len(batch) for batch in call.batches] == [3, 1, 1, 2, 3]


async def test_a_call_is_about_so_big_at_most_and_a_bigger_request_goes_alone(autojump_clock: MockClock) -> None:
    call = Call()
    coalescer = Coalescer(call, most=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.ask, [0])
        await wait_all_tasks_blocked()
        for size in (3, 2, 9, 1):
            nursery.start_soon(coalescer.ask, [size] * size)
            await wait_all_tasks_blocked()
    assert [len(batch) for batch in call.batches] == [1, 5, 9, 1]


async def test_who_is_cancelled_before_its_request_is_taken_has_asked_for_nothing(autojump_clock: MockClock) -> None:
    call = Call()
    coalescer = Coalescer(call, most=100)
    waiting = trio.CancelScope()

    async def ask(scope: trio.CancelScope, number: int) -> None:
        with scope:
            await coalescer.ask([number])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, trio.CancelScope(), 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, waiting, 2)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, trio.CancelScope(), 3)
        await wait_all_tasks_blocked()
        waiting.cancel()
    assert waiting.cancelled_caught
    assert call.batches == [[1], [3]]


async def test_who_is_cancelled_after_its_request_was_taken_gets_the_answer(autojump_clock: MockClock) -> None:
    call = Call()
    coalescer = Coalescer(call, most=100)
    answers: list[list[int]] = []
    scopes = [trio.CancelScope() for _ in range(3)]

    async def ask(number: int) -> None:
        with scopes[number]:
            answers.append(await coalescer.ask([number]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, 1)
        nursery.start_soon(ask, 2)
        await trio.sleep(1.5)  # the second call is under way, led by one of the two
        for scope in scopes:
            scope.cancel()
    assert sorted(answers) == [[0], [2], [4]]
    assert not any(scope.cancelled_caught for scope in scopes)


async def test_an_error_is_told_to_each_caller_as_its_own(autojump_clock: MockClock) -> None:
    call = Call()
    call.error = BrokerUnavailable("gone")
    coalescer = Coalescer(call, most=100)
    errors: list[BrokerUnavailable] = []

    async def ask() -> None:
        with pytest.raises(BrokerUnavailable, match="gone") as info:
            await coalescer.ask([1])
        errors.append(info.value)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert len(call.batches) < 5
    assert len({id(error) for error in errors}) == 5
    call.error = None
    assert await coalescer.ask([4]) == [8]


@given(
    st.lists(st.tuples(st.sampled_from(["ask", "cancel", "pause", "sleep"]), st.integers(0, 9)), max_size=40),
    st.integers(0, 1000),
)
def test_each_request_is_carried_out_once_or_its_caller_was_cancelled(plan: list[tuple[str, int]], seed: int) -> None:
    async def main() -> None:
        call = Call(seconds=0.5)
        coalescer = Coalescer(call, most=3)
        scopes: dict[int, trio.CancelScope] = {}
        answered: set[int] = set()

        async def ask(number: int) -> None:
            with scopes[number]:
                assert await coalescer.ask([number]) == [2 * number]
                answered.add(number)

        async with trio.open_nursery() as nursery:
            for step, number in plan:
                if step == "ask":
                    scopes[len(scopes)] = trio.CancelScope()
                    nursery.start_soon(ask, len(scopes) - 1)
                elif step == "cancel" and scopes:
                    scopes[number % len(scopes)].cancel()
                elif step == "sleep":
                    await trio.sleep(number / 5)
                else:
                    for _ in range(number):
                        await trio.lowlevel.checkpoint()
        done = [number for batch in call.batches for number in batch]
        assert sorted(done) == sorted(set(done))
        assert set(done) == answered
        assert set(scopes) - answered == {number for number, scope in scopes.items() if scope.cancelled_caught}

    seed_scheduler(seed)
    run_virtual(main)


async def test_only_who_asks_for_what_is_wrong_is_told_so(autojump_clock: MockClock) -> None:
    async def call(items: list[int]) -> Sequence[int]:
        await trio.lowlevel.checkpoint()
        if wrong := [item for item in items if item < 0]:
            raise ConfigurationError(f"{wrong[0]} is wrong")
        return [2 * item for item in items]

    coalescer = Coalescer(call, most=100)
    answers: dict[int, object] = {}

    async def ask(number: int) -> None:
        try:
            answers[number] = await coalescer.ask([number])
        except ConfigurationError as error:
            answers[number] = str(error)

    async with trio.open_nursery() as nursery:
        for number in (0, 1, -2, 3, 4, -5, 6):
            nursery.start_soon(ask, number)
    assert answers == {0: [0], 1: [2], -2: "-2 is wrong", 3: [6], 4: [8], -5: "-5 is wrong", 6: [12]}
