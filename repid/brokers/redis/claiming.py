"""Consumers, and how they sleep and are woken.

Theory. Nobody polls. A claim that finds nothing enters its consumer among the sleepers in the same step, with what it
would take. What makes a message ready wakes, in its own step, as many of the sleepers that would take it as there are
messages. Who was woken may take another message than the one it was woken for; so its next claim wakes others for what
it leaves. A consumer that stops waiting has its entry withdrawn (`stop_waiting`); if it was woken before that, the
others are woken instead. Whether another task of its process waits for news tells nothing of that. `news.SURE_TIME`
bounds what a lost wake-up costs.

A message that is published alone is leased to the sleeper in the publisher's step and sent with the wake-up
(`hand_over` in part_wake.lua), so the claim that follows has its answer here. The token of such a lease begins with the
nonce of the claim that fell asleep. The server remembers the lease in the sleeper's entry until it hears of the
consumer next, by a claim, a withdrawal, a new subscription or the end of one, and takes it back then unless `taken`
names the nonce. So a client that did not hear of the lease, or has other limits now, loses nothing, and what comes late
finds another `nonce` here. A client that dies meanwhile keeps it until the lease ends, as it does when the answer to a
claim is lost.

A client may be frozen, or its event loop blocked, while its connections stand. It gives no signs of life then, so the
next sign of another client has the server take back what it was given (`beat.lua`). So a client takes nothing that it
was given while its own signs may have been late. And in the step in which it takes something it says so, by removing
the entry: in the next step the run may block the loop, and all threads of the process with it. No other claim of the
consumer was sent since that entry was made, or the nonce would be another one, so the entry is the same still. Nobody
waits for the answer: where the server refuses that (too few replicas, a script that takes long), or the link breaks,
the next claim, withdrawal or subscription says it again by `taken`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...ports import ANYTHING, AtMost
from .layout import lane_of, prefix_of

MOST_CLAIMED = 1000
"""Messages that one claim leases."""

NONCE_SIZE = 16
"""Random bytes that begin every token."""

_GIVEN_HEAD = 5
"""Bytes before the lease in what tells a sleeper of what it was given: a letter, and the length of the lease."""


class Subscription(msgspec.Struct):
    """A consumer: what it takes, packed for the scripts, and the messages that it has leased, with their tokens.

    `claims`: how many were made. `is_asleep`: the server may have entered it among the sleepers at the last one, also
    if it has woken it since. `nonce`: what begins the lease that a sleeper may be given; `at_most`: within which
    limits. `cancels`: how many cancellations the driver had heard of when it sent that nonce. `given`: such a lease and
    the record, if it has come. `taken`: the nonce of the last one that was handed out.
    """

    takes: bytes
    fields: list[bytes]
    prefixes: list[bytes]
    held: dict[str, bytes]
    claims: int = 0
    is_asleep: bool = False
    nonce: bytes = b""
    at_most: AtMost = ANYTHING
    cancels: int = 0
    given: tuple[bytes, bytes] | None = None
    taken: bytes = b""

    def forget_given(self) -> None:
        """Take nothing that it was given before: the server puts that back when it hears of the consumer next."""
        self.nonce, self.given = b"", None

    def to_claim(
        self,
        key: bytes,
        limit: int,
        at_most: AtMost,
        lease: int,
        nonce: bytes,
        worker: bytes,
        *,
        waits: bool,
        was_asleep: bool,
    ) -> tuple[Any, ...]:
        """A claim of the consumer with this key, as the script takes it. `lease`: microseconds that leases last.
        `was_asleep`: `is_asleep`, before this claim.
        """
        return (
            key,
            min(limit, MOST_CLAIMED),
            lease,
            nonce,
            at_most.alone,
            at_most.size,
            at_most.first,
            worker,
            [(lane_of(queue, topic), most) for (queue, topic), most in at_most.topics.items()],
            [
                ([prefix_of(queue) if topic is None else lane_of(queue, topic) for queue, topic in members], most)
                for members, most in at_most.groups
            ],
            self.taken,
            waits,
            was_asleep,
        )


def split_given(message: bytes) -> tuple[bytes, bytes]:
    """The lease and the record that a sleeper was told of."""
    end = _GIVEN_HEAD + int.from_bytes(message[1:_GIVEN_HEAD], "big")
    return message[_GIVEN_HEAD:end], message[end:]
