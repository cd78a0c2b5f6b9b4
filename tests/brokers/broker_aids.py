"""What the tests of all brokers share."""

from __future__ import annotations

from collections.abc import Iterable

from repid.delivery import Delivery
from repid.envelope import Envelope, Options, PrioritiesT
from repid.ports import Consumer


def message(
    id_: str, queue: str = "q", topic: str | None = None, payload: bytes = b"x", **options: float | PrioritiesT
) -> Envelope:
    headers = {} if topic is None else {"topic": topic}
    return Envelope(id_, queue, payload, headers=headers, options=Options(**options))  # type: ignore[arg-type]  # as given


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    return [delivery.envelope.id for delivery in deliveries]


async def now_ready(consumer: Consumer, limit: int = 100) -> list[Delivery]:
    return await consumer.receive(limit, max_wait=0)
