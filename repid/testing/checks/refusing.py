"""What a server does not claim is refused with `NotSupported`, and nothing has happened then."""

from __future__ import annotations

from functools import partial

from ...delivery import ACK, NewResult
from ...envelope import Envelope, Options, PrioritiesT
from ...ports import SETTLED, Role
from ..expecting import expect
from ..judging import check
from ..lab import Lab, ids, message
from .connections import calls_of


async def _refuses_the_calls_of(lab: Lab, role: Role) -> None:
    for name, call in calls_of(lab.broker)[role].items():
        await lab.refused(name, call)


@check("not queue_admin")
async def looking_after_queues_is_refused(lab: Lab) -> None:
    """Without the role "queue_admin" each of its calls is refused, and harms no message."""
    await lab.publish(message("1"))
    await _refuses_the_calls_of(lab, "queue_admin")
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), ["1"])


@check("not tracking")
async def following_messages_is_refused(lab: Lab) -> None:
    """Without the role "tracking" each of its calls is refused; what a worker reports is passed over."""
    await _refuses_the_calls_of(lab, "tracking")
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        await consumer.report([(delivery, None)])
        expect("the verdict", await lab.settle(consumer, delivery, ACK), SETTLED)


@check("not results")
async def results_are_refused(lab: Lab) -> None:
    """Without the role "results" its calls are refused, and a settlement with a result is refused as a whole."""
    await _refuses_the_calls_of(lab, "results")
    async with lab.consumer() as consumer:
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        result = NewResult(id="1", state="success")
        await lab.refused("a settlement with a result", partial(lab.settle, consumer, delivery, ACK, result=result))
        expect("the verdict without one", await lab.settle(consumer, delivery, ACK), SETTLED)


@check("not schedules")
async def schedules_are_refused(lab: Lab) -> None:
    """Without the role "schedules" each of its calls is refused, and a tick publishes nothing."""
    await _refuses_the_calls_of(lab, "schedules")
    async with lab.consumer() as consumer:
        expect("what is received", ids(await lab.drain(consumer)), [])


@check("not priorities")
async def priorities_are_refused(lab: Lab) -> None:
    """A message with a priority is refused, in an outbox too, and so is its whole batch."""
    await _refuses_the_option(lab, Options(priority=PrioritiesT.HIGH))


@check("not delays")
async def delays_are_refused(lab: Lab) -> None:
    """A message with a delay is refused, in an outbox too, and so is its whole batch; a delay of 0 is none."""
    await _refuses_the_option(lab, Options(delay=lab.moment))
    async with lab.consumer() as consumer:
        await lab.publish(message("at once", options=Options(delay=0)))
        expect("what is received", ids(await lab.drain(consumer)), ["at once"])


@check("not ttl")
async def a_ttl_is_refused(lab: Lab) -> None:
    """A message with a time to live is refused, in an outbox too, and so is its whole batch."""
    await _refuses_the_option(lab, Options(ttl=1e6))


async def _refuses_the_option(lab: Lab, options: Options) -> None:
    batch: list[Envelope] = [message("plain"), message("asks for more", options=options)]
    await lab.refused("publish", partial(lab.broker.publish, batch))
    async with lab.consumer() as consumer:
        expect("what was published all the same", ids(await lab.drain(consumer)), [])
        await lab.publish(message("1"))
        delivery = await lab.take_one(consumer)
        await lab.refused("an outbox", partial(lab.settle, consumer, delivery, ACK, *batch))
        expect("what was published of the outbox", ids(await lab.drain(consumer)), [])
        expect("the verdict without it", await lab.settle(consumer, delivery, ACK), SETTLED)
