"""A verdict that was sent and not answered: what is known afterwards is what the worker says, and no more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest
import trio

from repid import LeaseLost, Message, Repid, Report, Router
from repid.brokers.door import Server
from repid.brokers.memory.driver import MemoryDriver
from repid.delivery import Settlement
from repid.errors import NoAnswer
from repid.ports import Verdict


class SilentDriver(MemoryDriver):
    """Carries out every settlement, but keeps `silent` answers to itself."""

    silent = 1

    async def settle(self, consumer: str, settlements: Sequence[Settlement]) -> list[Verdict]:
        verdicts = await super().settle(consumer, settlements)
        if self.silent:
            self.silent -= 1
            raise NoAnswer("the line went dead")
        return verdicts


@pytest.fixture
async def silent_app(autojump_clock: object, router: Router) -> AsyncGenerator[Repid, None]:
    app = Repid()
    app.servers.register_server("default", Server(SilentDriver(60.0)), is_default=True)
    app.include_router(router)
    async with app.servers.default.connection():
        yield app


async def enqueue(app: Repid, *, times: int = 1) -> None:
    for _ in range(times):
        await app.send_message_json(channel="default", payload={}, headers={"topic": "job"})


async def test_a_verb_whose_verdict_was_not_answered_does_not_say_that_the_lease_was_lost(
    silent_app: Repid, router: Router
) -> None:
    lost: list[LeaseLost] = []

    @router.actor
    async def job(message: Message) -> None:
        try:
            await message.ack()
        except LeaseLost as error:
            lost.append(error)

    await enqueue(silent_app)
    assert await silent_app.run_worker(burst=True) == Report(processed=1, unknown=1)
    assert lost == []


async def test_each_verdict_without_an_answer_is_counted_and_named_once(
    silent_app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    @router.actor
    async def job() -> None: ...

    await enqueue(silent_app, times=3)
    assert await silent_app.run_worker(burst=True) == Report(processed=3, unknown=3)
    named = [record for record in caplog.records if "was sent and not answered" in record.getMessage()]
    assert len(named) == 3
    assert not any("came too late" in record.getMessage() for record in caplog.records)


async def test_ack_first_runs_nothing_that_may_belong_to_another_worker(silent_app: Repid, router: Router) -> None:
    ran: list[float] = []

    @router.actor(confirmation_mode="ack_first")
    async def job() -> None:
        ran.append(trio.current_time())

    await enqueue(silent_app)
    assert await silent_app.run_worker(burst=True) == Report(unknown=1)
    assert ran == []
