"""A verb is final when it is called, also in an asyncio task, whatever is cancelled in the same turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from repid import Connection, Counts, InMemoryServer, Message, Repid, Router, SyncMessage

from .hosting import nothing_is_left

VERBS: dict[str, Callable[[Message], Coroutine[Any, Any, None]]] = {
    "ack": lambda message: message.ack(),
    "nack": lambda message: message.nack(),
    "reject": lambda message: message.reject(),
    "retry": lambda message: message.retry(delay=60),
    "snooze": lambda message: message.snooze(60),
    "reply_json": lambda message: message.reply_json(channel="answers"),
}
FATES = {
    "ack": Counts(),
    "nack": Counts(dead=1),
    "reject": Counts(ready=1),
    "retry": Counts(scheduled=1),
    "snooze": Counts(scheduled=1),
    "reply_json": Counts(),
}


def make() -> tuple[Repid, Router]:
    app, router = Repid(Connection(InMemoryServer())), Router(channel="work", retries=1)
    app.include_router(router)
    return app, router


async def send(app: Repid, topic: str, **options: Any) -> None:
    await app.send_message_json(channel="work", headers={"topic": topic}, **options)


@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize("who", ["worker", "own task", "timeout"])
def test_what_is_cancelled_in_the_turn_of_a_verb_takes_nothing_back(run: Any, who: str, *, first: bool) -> None:
    async def try_out(verb: str) -> None:
        app, router = make()

        @router.actor(timeout=0.05 if who == "timeout" else 5)
        async def job(message: Message) -> None:
            if not first:
                await asyncio.sleep(0)
            await message.outbox.send_message_json(channel="answers")
            if who == "worker":
                worker.cancel()
            elif who == "own task":
                own = asyncio.current_task()
                assert own is not None
                own.cancel()
            else:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    _ = VERBS[verb](message)
                    raise
            await VERBS[verb](message)

        async with app.magic():
            await app.server().declare(["answers"])
            await send(app, "job")
            worker = asyncio.create_task(app.run_worker(messages_limit=1, handle_signals=[]))
            await asyncio.wait([worker], timeout=5)
            assert await app.server().counts("work") == FATES[verb], verb
            assert (await app.server().counts("answers")).ready == {"ack": 1, "reply_json": 2}.get(verb, 0), verb
        assert nothing_is_left()

    async def main() -> None:
        for verb in VERBS:
            await try_out(verb)

    run(main())


def test_a_worker_cancelled_at_any_step_gives_back_what_had_no_verdict_and_nothing_else(run: Any) -> None:
    async def try_out(steps: int) -> None:
        app, router = make()
        said: list[str] = []

        @router.actor
        async def job(message: Message) -> None:
            if int(message.message_id) % 2:
                await asyncio.sleep(0)
            said.append(message.message_id)
            await message.ack()

        async with app.magic():
            for number in range(20):
                await send(app, "job", message_id=str(number))
            worker = asyncio.create_task(app.run_worker(handle_signals=[]))
            for _ in range(steps):
                await asyncio.sleep(0)
            worker.cancel()
            await asyncio.wait([worker], timeout=5)
            ready = [each.envelope.id for each in await app.server().browse("work", "ready")]
            assert sorted(ready + said, key=int) == [str(number) for number in range(20)]
        assert nothing_is_left()

    async def main() -> None:
        for steps in range(32):
            await try_out(steps)

    run(main())


def test_a_verb_that_is_not_awaited_takes_effect_and_may_be_awaited_later_or_in_a_task(run: Any) -> None:
    app, router = make()

    @router.actor
    async def forgotten(message: Message) -> None:
        _ = message.progress(1)
        _ = message.nack()

    @router.actor
    async def later(message: Message) -> None:
        said = message.nack()
        await asyncio.sleep(0.01)
        await said

    @router.actor
    async def in_a_task(message: Message) -> None:
        await asyncio.create_task(message.nack())

    @router.actor
    async def in_a_thread(message: Message) -> None:
        await asyncio.to_thread(lambda: [message.nack()])

    async def main() -> None:
        async with app.magic():
            for topic in ("forgotten", "later", "in_a_task", "in_a_thread"):
                await send(app, topic)
            assert (await app.run_worker(burst=True, handle_signals=[])).dead == 4
        assert nothing_is_left()

    run(main())


def test_the_verbs_of_a_sync_actor_are_plain_calls_where_asyncio_is_the_host(run: Any) -> None:
    app, router = make()
    seen: list[str] = []

    @router.actor
    def job(message: SyncMessage) -> None:
        message.progress(1)
        message.outbox.send_message_json(channel="answers", payload=1)
        seen.append(message.send_message_json(channel="answers", payload=2).id)
        message.reply_json(3, channel="answers")

    async def main() -> None:
        async with app.magic():
            await send(app, "job")
            await app.run_worker(burst=True, handle_signals=[])
            answers = [each.envelope.payload for each in await app.server().browse("answers", "ready")]
            assert answers == [b"2", b"1", b"3"]
        assert nothing_is_left()

    run(main())
    assert len(seen) == 1


def test_a_reply_that_a_producer_middleware_lets_pass_is_final_when_it_has(run: Any) -> None:
    async def slow(call_next: Any, envelopes: Any) -> Any:
        await asyncio.sleep(0.001)
        return await call_next(envelopes)

    app, router = Repid(Connection(InMemoryServer()), producer_middlewares=[slow]), Router(channel="work")

    @router.actor
    async def job(message: Message) -> None:
        await message.reply_json(3, channel="answers")

    app.include_router(router)

    async def main() -> None:
        async with app.magic():
            await send(app, "job")
            await app.run_worker(burst=True, handle_signals=[])
            assert (await app.server().counts("answers")).ready == 1
        assert nothing_is_left()

    run(main())
