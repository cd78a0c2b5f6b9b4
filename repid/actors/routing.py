"""Which messages an actor takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from ..envelope import Envelope

Predicate: TypeAlias = Callable[[Envelope], bool]


class RoutingStrategy(Protocol):
    """From an actor's name to a predicate over the messages of its channel."""

    def __call__(self, *, actor_name: str) -> Predicate:
        """Called once for each actor. The predicate must be fast and must not change the message."""
        ...


def topic_based_routing_strategy(*, actor_name: str) -> Predicate:
    """The default: takes what has the actor's name in its `topic` header."""
    return lambda envelope: envelope.topic == actor_name


def catch_all_routing_strategy(*, actor_name: str) -> Predicate:  # noqa: ARG001  part of the protocol
    """Takes everything that comes through the channel."""
    return lambda _: True
