"""Who reads which queue: the open consumers of all processes."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from ...ports import Broker, Topics
from ..expecting import expect
from ..judging import check
from ..lab import Lab

Read = list[list[tuple[str, list[str] | None]]]


def in_order(*readers: Mapping[str, Topics]) -> Read:
    """What readers take, in a form that can be compared."""
    taken = [
        sorted((queue, None if topics is None else sorted(topics)) for queue, topics in reader.items())
        for reader in readers
    ]
    return sorted(taken, key=repr)


async def read(broker: Broker) -> Read:
    """What the server tells."""
    return in_order(*await broker.readers())


@check("readers")
async def open_consumers_are_readers(lab: Lab) -> None:
    """Each open consumer is told with its queues and topics, also several alike, until it is closed."""
    expect("at first", await read(lab.broker), [])
    everything: Mapping[str, Topics] = {"q": None}
    some: Mapping[str, Topics] = {"q": frozenset({"a", "bé"}), "r": frozenset({"a"})}
    async with lab.broker.consume(everything), lab.broker.consume(some):
        expect("of two", await read(lab.broker), in_order(everything, some))
        async with lab.broker.consume(some):
            expect("of three", await read(lab.broker), in_order(everything, some, some))
        expect("after one was closed", await read(lab.broker), in_order(everything, some))
    expect("in the end", await read(lab.broker), [])


@check("readers", "another", "shared")
async def readers_of_another_client_are_told(lab: Lab) -> None:
    """The consumers of another client of the same storage are readers, and are none soon after it has closed them."""
    mine: Mapping[str, Topics] = {"q": frozenset({"a"})}
    theirs: Mapping[str, Topics] = {"r": None}
    async with lab.another() as other:
        async with lab.broker.consume(mine), other.consume(theirs):
            expect("what it is told", await read(lab.broker), in_order(mine, theirs))
            expect("what the other is told", await read(other), in_order(mine, theirs))
        with trio.move_on_after(lab.time.patience):
            while await read(lab.broker) or await read(other):  # noqa: ASYNC110  the broker has no event for it
                await trio.sleep(0.01)
        expect("in the end", (await read(lab.broker), await read(other)), ([], []))


@check("not readers")
async def telling_readers_is_refused(lab: Lab) -> None:
    """A server that does not know the consumers of its queues says so."""
    await lab.refused("readers", lab.broker.readers)
