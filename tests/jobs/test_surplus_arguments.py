"""A job that is enqueued by name with an argument that its actor does not take: it is told. A sentence each."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import msgspec
import pytest

from repid import Depends, Job, Message, Payload, Queue, Repid, Router


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if "has the argument" in record.getMessage()]
    assert all((record.name, record.levelno) == ("repid", logging.WARNING) for record in records)
    return [record.getMessage() for record in records]


async def send(address: str, subject: str = "") -> None: ...


class Args(msgspec.Struct):
    address: str
    subjetc: str = "hello"


@pytest.mark.parametrize("args", [{"address": "a", "subjetc": "hello"}, Args("a")])
async def test_an_argument_that_the_actor_does_not_take_is_told_once_with_the_name_that_was_meant_and_sent(
    args: Any, app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    router.actor(channel="mail")(send)
    await Queue("mail").declare()
    for _ in range(3):
        await Job("send", "mail", args=args).enqueue()
        await app.enqueue_many([Job("send", "mail", args=args)])
    assert told(caplog) == [
        "a job for actor 'send' on channel 'mail' has the argument 'subjetc', which send() in this app does not take "  # noqa: ISC004
        "(did you mean 'subject'?): its worker ignores the argument, or refuses the job if the actor is strict"
    ]
    report = await app.run_worker(burst=True)
    assert report.succeeded == 6


async def test_a_recurring_job_is_looked_at_too(app: Repid, router: Router, caplog: pytest.LogCaptureFixture) -> None:
    router.actor(send)
    await Job("send", args={"address": "a", "subjects": "b"}, every=60).enqueue()
    assert len(told(caplog)) == 1


async def test_nothing_is_told_of_actors_that_are_elsewhere_or_that_take_any_argument(
    app: Repid, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    def tenant(tenant_id: Annotated[int, Payload("tenant")]) -> int:
        return tenant_id

    @router.actor
    async def rest(a: int = 0, **others: int) -> None: ...

    @router.actor
    async def own(message: Message) -> None: ...

    @router.actor
    async def depends(a: int, owner: Annotated[int, Depends(tenant)]) -> None: ...

    @router.actor(batch=10)
    async def many(rows: list[dict[str, int]]) -> None: ...

    router.actor(channel="mail")(send)
    for name in ("rest", "own", "many", "elsewhere", "send"):
        await Job(name, args={"b": 1}).enqueue()
    await Job("depends", args={"a": 1, "tenant": 2}).enqueue()
    assert told(caplog) == []


async def test_odd_names_of_arguments_do_no_harm(app: Repid, router: Router, caplog: pytest.LogCaptureFixture) -> None:
    router.actor(send)
    await Job("send", args={"address": "a", 1: 2, "x": 3}).enqueue()
    assert len(told(caplog)) == 2
