"""Tests of an app: its real actors on a server in memory, in virtual time. pytest-trio would run them as they are.

Run it: python examples/testing_an_app.py
"""

import logging
from typing import Annotated

import trio
from trio.testing import MockClock

from repid import Depends, Message, Repid, Router
from repid.testing import TestClient

logging.getLogger("repid").setLevel(logging.CRITICAL)  # workers log each failure; here its traceback would distract
app, router = Repid(), Router(channel="orders")


def bank() -> str:
    raise ConnectionError("there is no bank here")


@router.actor(retries=1, timeout=30)
async def charge(order: int, bank: Annotated[str, Depends(bank)], message: Message) -> str:
    await message.outbox.send_message_json(channel="orders", payload={"order": order}, headers={"topic": "ship"})
    await trio.sleep(5)  # virtual: the test does not wait
    return f"order {order} charged by {bank}"


@router.actor
async def ship(order: int) -> None: ...


app.include_router(router)


async def test_an_order_that_was_charged_is_shipped() -> None:
    async with TestClient(app, overrides={bank: lambda: "a fake bank"}) as client:
        await app.send_message_json(channel="orders", payload={"order": 7}, headers={"topic": "charge"})
        run = await client.process_next(raise_errors=True)
        assert run is not None
        assert run.value == "order 7 charged by a fake bank"
        client.assert_enqueued(ship, order=7)
        assert [run.actor for run in await client.drain()] == ["ship"]


async def test_without_the_bank_nothing_is_shipped() -> None:
    async with TestClient(app) as client:
        await app.send_message_json(channel="orders", payload={"order": 7}, headers={"topic": "charge"})
        assert [run.fate for run in await client.advance(hours=1)] == ["retried", "dead"]
        assert isinstance(client.runs[-1].error, ConnectionError)
        client.assert_not_enqueued(ship)


if __name__ == "__main__":
    for test in (test_an_order_that_was_charged_is_shipped, test_without_the_bank_nothing_is_shipped):
        trio.run(test, clock=MockClock(autojump_threshold=0))
        print(f"{test.__name__}: passed")
