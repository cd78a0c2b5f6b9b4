"""Acknowledging many messages of a file at once: the tokens decide, in whatever order and shape they come."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from repid.brokers.sqlite.store import LEASES_TOLD_APART
from repid.delivery import Delivery, Release, Settlement
from repid.ports import Counts

from .sqlite_aids import ack, consuming, messages, serving


def with_next_token(delivery: Delivery) -> Delivery:
    """The delivery under a token that its message has not had yet."""
    return msgspec.structs.replace(delivery, token=delivery.token + 1)


@pytest.mark.parametrize(
    ("chosen", "missing"),
    [
        ([2, 0, 1], []),
        ([0, 2, 4], []),
        ([1], []),
        ([0, 1, 2], [1]),
        ([0, 4], [4]),
        ([0, 1, 2, 3, 4], [0, 4]),
    ],
)
async def test_each_of_many_acks_is_carried_out_if_its_lease_is_there(
    path: Path, chosen: list[int], missing: list[int]
) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages(range(5)))
        deliveries = await consumer.receive(5)
        assert all(await ack(consumer, [deliveries[place] for place in missing]))
        answers = await ack(consumer, [deliveries[place] for place in chosen])
        assert answers == [place not in missing for place in chosen]
        assert await server.counts("q") == Counts(leased=5 - len({*chosen, *missing}))


async def test_a_wrong_token_between_two_right_ones_ends_no_lease_of_a_neighbour(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages(range(3)))
        first, second, third = await consumer.receive(3)
        assert third.token - first.token == 2 * LEASES_TOLD_APART
        assert await ack(consumer, [first, with_next_token(first), third]) == [True, False, True]
        assert await server.counts("q") == Counts(leased=1)
        assert await ack(consumer, [second]) == [True]


async def test_of_neighbours_one_may_have_been_leased_before(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages(range(3)))
        first, second, third = await consumer.receive(3)
        await consumer.settle([Settlement(second, Release())])
        [again] = await consumer.receive(1)
        assert await ack(consumer, [first, second, third]) == [True, False, True]
        assert await ack(consumer, [again]) == [True]
        assert await server.counts("q") == Counts()


async def test_one_token_twice_is_settled_once(path: Path) -> None:
    async with serving(path) as server, consuming(server) as consumer:
        await server.publish(messages(range(2)))
        first, second = await consumer.receive(2)
        assert await ack(consumer, [first, second, first]) == [True, True, False]
        assert await server.counts("q") == Counts()
