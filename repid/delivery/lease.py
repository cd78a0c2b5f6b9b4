"""One lease of one envelope, and the verdict on it."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from ..envelope import Envelope
from .dispositions import Disposition
from .results import NewResult

Token: TypeAlias = Any
"""What fences a lease: hashable, and opaque to all but the driver that made it."""


class Delivery(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One lease of one envelope to one consumer. Compared and hashed by identity.

    `attempt` counts from 1 and grows with `Retry` only. `lost` counts the leases that ended without a verdict.
    `token` fences: a verdict carrying a token that is no longer the message's own is refused. `unrouted_age` is
    the time since no worker was first found to take it, `ttl_left` the time until it expires unless it is started, both
    in seconds at the moment of the lease; None where it does not apply.
    """

    envelope: Envelope
    attempt: int
    lost: int
    token: Token
    unrouted_age: float | None = None
    ttl_left: float | None = None


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """A verdict on its way to the broker: what to do with the delivery, and what to publish and store in the same step.

    `survived`: a run has ended and its worker lives, so the leases that were lost before are forgiven (see `blame`).
    """

    delivery: Delivery
    disposition: Disposition
    outbox: tuple[Envelope, ...] = ()
    result: NewResult | None = None
    survived: bool = False
