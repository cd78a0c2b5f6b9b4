"""Who waits for a job under a `TestClient` has it run."""

from __future__ import annotations

import asyncio

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repid import INJECTED, JobFailed, Message, Repid, Router
from repid.testing import TestClient

router = Router(channel="work", store_result=True)
app = Repid()


@router.actor
async def double(number: int) -> int:
    return 2 * number


@router.actor
def double_in_a_thread(number: int) -> int:
    return 2 * number


@router.actor
async def slow(seconds: float) -> float:
    await trio.sleep(seconds)
    return seconds


@router.actor(retries=2, retry_policy=lambda _: 60)
async def odd_ones_fail(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


@router.actor
async def ask(number: int) -> int:
    return await app.call(double, number) + 1


@router.actor
async def ask_many(numbers: list[int]) -> int:
    async with app.map(double, numbers, limit=2) as doubled:
        return sum([each async for each in doubled])


app.include_router(router)

bounded = Router(channel="bounded", max_size=2)
bounded_app = Repid()


@bounded.actor
async def keep(number: int) -> int:
    return number


@router.actor
async def pass_on(number: int, message: Message = INJECTED) -> None:
    await message.enqueue(keep, number)


bounded_app.include_router(bounded)
bounded_app.include_router(router)


async def test_a_call_comes_back(autojump_clock: object) -> None:
    async with TestClient(app) as client:
        assert await app.call(double, 3) == 6
        assert [run.actor for run in client.runs] == ["double"]
        await app.enqueue(double, 5)
        assert len(client.runs) == 1  # nobody waits for it
        assert len(await client.drain()) == 1


async def test_a_call_fails_after_its_retries(autojump_clock: object) -> None:
    async with TestClient(app) as client:
        began = trio.current_time()
        with pytest.raises(JobFailed, match="3 is odd"):
            await app.call(odd_ones_fail, 3)
        assert trio.current_time() - began == 120
        assert [run.fate for run in client.runs] == ["retried", "retried", "dead"]


async def test_a_run_takes_its_time_while_somebody_waits(autojump_clock: object) -> None:
    async with TestClient(app):
        began = trio.current_time()
        assert await app.call(slow, 100) == 100
        assert trio.current_time() - began == 100
        with pytest.raises(TimeoutError):
            await app.using(call_timeout=5).call(slow, 100)
        assert trio.current_time() - began == 105


async def test_waiting_for_many_runs_them(autojump_clock: object) -> None:
    async with TestClient(app) as client:
        one, two = await app.enqueue(double, 1), await app.enqueue(double, 2)
        assert await app.gather(one, two) == [2, 4]
        assert (await app.first_of([await app.enqueue(double, 5)])).value == 10
        async with app.map(double, range(20), limit=3) as doubled:
            assert [each async for each in doubled] == [2 * number for number in range(20)]
        assert (await (await app.enqueue(ask_many, [1, 2, 3])).wait()).value == 12
        assert len(client.runs) == 27


async def test_who_waits_has_a_job_run_although_another_one_who_waits_gives_up(autojump_clock: object) -> None:
    async with TestClient(app) as client:
        late = await app.using(delay=3).enqueue(double, 4)

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                await app.using(call_timeout=1).call(slow, 100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            await wait_all_tasks_blocked()
            with trio.fail_after(5):
                assert await app.gather(late) == [8]
        assert [run.actor for run in client.runs] == ["slow", "double"]


@pytest.mark.parametrize("how", ["call", "process_next", "drain"])
async def test_an_actor_may_wait_for_another_one(autojump_clock: object, how: str) -> None:
    async with TestClient(app) as client:
        if how == "call":
            assert await app.call(ask, 4) == 9
        else:
            await app.enqueue(ask, 4)
            run = await client.process_next() if how == "process_next" else (await client.drain())[0]
            assert run is not None
            assert (run.actor, run.value) == ("ask", 9)
        assert {run.actor for run in client.runs} == {"ask", "double"}


def test_a_call_comes_back_under_asyncio_and_from_a_thread() -> None:
    async def main() -> None:
        async with TestClient(app):
            assert await app.call(double, 3) == 6
            assert await app.call(double_in_a_thread, 3) == 6
            async with app.map(ask, range(5), limit=2) as answers:
                assert [each async for each in answers] == [1, 3, 5, 7, 9]

    asyncio.run(main())


async def test_sends_into_a_full_queue_have_its_messages_run_until_there_is_room(autojump_clock: object) -> None:
    async with TestClient(bounded_app) as client:
        for number in range(5):
            await bounded_app.enqueue(keep, number)
        await bounded_app.enqueue_many(keep, range(5, 10))
        await bounded_app.enqueue(pass_on, 10)
        await client.drain()
        assert sorted(run.value for run in client.runs if run.actor == "keep") == list(range(11))


async def test_a_run_that_waits_for_room_has_others_make_it(autojump_clock: object) -> None:
    async with TestClient(bounded_app) as client:
        await bounded_app.enqueue(pass_on, 1)
        for number in (2, 3):
            await bounded_app.enqueue(keep, number)
        run = await client.process_next(raise_errors=True)
        assert run is not None
        assert (run.actor, run.fate) == ("pass_on", "acked")


def test_a_send_into_a_full_queue_comes_back_under_asyncio() -> None:
    async def main() -> None:
        async with TestClient(bounded_app) as client, asyncio.timeout(10):
            await bounded_app.enqueue_many(keep, range(5))
            await bounded_app.enqueue(keep, 5)
            await client.drain()
            assert len(client.runs) == 6

    asyncio.run(main())
