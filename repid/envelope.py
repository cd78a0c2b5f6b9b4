"""What travels: the envelope of a message, its options, and the ids."""

from __future__ import annotations

import enum
import random
import time
from typing import Any

import msgspec

from .process import inherits

TOPIC = "topic"
"""The header that names the actor a message is for."""


class PrioritiesT(enum.IntEnum):
    """How long a message pretends to have been enqueued later than it was, in seconds.

    Messages are claimed in ascending order of `enqueued_at + priority`: HIGH goes first among messages of like
    age, nothing starves (a LOW message overtakes every HIGH one that came ten minutes after it), and each class
    stays first in, first out.
    """

    HIGH = 0
    MEDIUM = 60
    LOW = 600


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What the sender wished for this one message. None: not given, so the actor's own option holds.

    Times are in seconds. `timeout=inf` means no timeout. `result_id` is the message's own id where it is not given.
    """

    priority: PrioritiesT | None = None
    retries: int | None = None
    timeout: float | None = None
    ttl: float | None = None
    delay: float | None = None
    store_result: bool | None = None
    result_id: str | None = None
    result_ttl: float | None = None


NO_OPTIONS = Options()


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One message as it travels. `queue` is the same thing as a channel of the message API.

    `headers` and `parameters` belong to the envelope: whoever builds one passes dicts nobody else will change.
    `parameters` are the server-specific ones; a broker that knows none keeps them.
    """

    id: str
    queue: str
    payload: bytes
    content_type: str | None = None
    headers: dict[str, str] = {}
    reply_to: str | None = None
    options: Options = NO_OPTIONS
    parameters: dict[str, Any] | None = None

    @property
    def topic(self) -> str | None:
        """The `topic` header: the name of the actor this message is for, where there is one."""
        return self.headers.get(TOPIC)

    @property
    def result_id(self) -> str:
        """The id under which its result is stored."""
        return self.options.result_id or self.id

    @property
    def channel(self) -> str:
        """The queue, in the words of the message API."""
        return self.queue


class _Chance(random.Random):
    """The random part of ids, which are no secrets. An object of our own, since nobody else seeds it."""

    def after_fork_in_child(self) -> None:
        """Do not go on with the parent's ids."""
        self.seed()


_chance = _Chance()
inherits(_chance)


# Ids are UUIDs of version 7 (RFC 9562, 5.7 and 6.2 method 3) without their dashes: 48 bits of milliseconds since 1970, the
# version, 12 bits of the fraction of that millisecond (a 4096th of it is 0.24 microseconds), the variant, 62 bits of chance.
# Ids that grow with time keep the indexes of a broker on disk small to write. Nothing relies on their order, which a
# clock that is set back breaks.

_VERSION_AND_VARIANT = 0x7000_8000_0000_0000_0000


def new_id() -> str:
    """A fresh id: a UUID of version 7 as 32 hexadecimal digits. `uuid.UUID(id_)` gives it in its usual form."""
    ms, ns = divmod(time.time_ns(), 1_000_000)
    fraction = ns * 4294 >> 20  # of 4096, nearly: less than that also for 999 999
    return (ms << 80 | fraction << 64 | _chance.getrandbits(62) | _VERSION_AND_VARIANT).to_bytes(16, "big").hex()


def new_ids(count: int) -> list[str]:
    """`count` ids like those of `new_id`, in ascending order, several times faster than one by one."""
    ms, ns = divmod(time.time_ns(), 1_000_000)
    start = ms << 12 | ns * 4294 >> 20
    digits, variant = _chance.randbytes(8 * count).hex(), _chance.choice("89ab")
    return [
        f"{at >> 12:012x}7{at & 4095:03x}{variant}{digits[16 * i : 16 * i + 15]}"
        for i, at in enumerate(range(start, start + count))
    ]
