"""What travels: the envelope of a message, its options, and the ids."""

from __future__ import annotations

import enum
import random
import struct
import sys
import time
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec

from .process import inherits

TOPIC = "topic"
"""The header that names the actor a message is for."""


class PrioritiesT(enum.IntEnum):
    """Seconds that are added to the time of enqueueing when messages are ordered.

    Messages are claimed in ascending order of `enqueued_at + priority`: of messages that came at about the same time
    HIGH goes first, nothing starves (a LOW message goes before every HIGH one that came ten minutes after it), and
    each class stays first in, first out.
    """

    HIGH = 0
    MEDIUM = 60
    LOW = 600


DEFAULT_PRIORITY = PrioritiesT.MEDIUM
"""Of a message whose sender gave none."""


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True, gc=False):
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


class Envelope(msgspec.Struct, frozen=True, repr_omit_defaults=True, gc=False):
    """One message as it travels. `queue` is the same thing as a channel of the message API.

    `headers` and `parameters` belong to the envelope: what builds one passes dicts that nothing else will change.
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

    def start_anew(self) -> None:
        """Do not go on with the parent's ids."""
        self.seed()


_chance = _Chance()
inherits(_chance, _Chance.start_anew)


# Ids are UUIDs of version 7 (RFC 9562, 5.7 and 6.2 method 3) without their dashes: 48 bits of milliseconds since 1970,
# the version, 12 bits of the fraction of that millisecond (a 4096th of it is 0.24 microseconds), the variant, 62 bits
# of chance. Ids that grow with time keep the indexes of a broker on disk small to write. Nothing relies on their order,
# which a clock that is set back breaks.
#
# A *tick* is the time in 4096ths of a millisecond: milliseconds and fraction side by side. `_VERSION_GAP` makes room
# for the four bits of the version between the two: times the milliseconds, it is added to the tick.

_TICKS_PER_MS = 4096
_VERSION_GAP = 0xF000
_VERSION = 0x7000
_VARIANT = 8 << 60
_VARIANTS = bytes(0x80 | byte & 0x3F for byte in range(256))
"""What the first byte of the chance becomes: the two bits of the variant stand before it."""

_octets_of = struct.Struct(">QQ").pack


def new_id() -> str:
    """A fresh id: a UUID of version 7 as 32 hexadecimal digits. `uuid.UUID(id_)` gives it in its usual form."""
    tick = time.time_ns() * _TICKS_PER_MS // 1_000_000
    return _octets_of((tick >> 12) * _VERSION_GAP + _VERSION + tick, _VARIANT + _chance.getrandbits(62)).hex()


def new_ids(count: int) -> list[str]:
    """`count` ids like those of `new_id`, each with a tick of its own, in ascending order. They take less than half the
    time.
    """
    tick = time.time_ns() * _TICKS_PER_MS // 1_000_000
    words = array("Q", bytes(16 * count))  # the two halves of each id, in turns
    words[::2] = array("Q", chain.from_iterable(_first_halves(tick, tick + count)))
    if sys.byteorder == "little":
        words.byteswap()
    words[1::2] = array("Q", _chance.randbytes(8 * count))
    octets = bytearray(words)
    octets[8::16] = octets[8::16].translate(_VARIANTS)
    digits = octets.hex()
    return [digits[i : i + 32] for i in range(0, 32 * count, 32)]


def _first_halves(first: int, end: int) -> Iterator[range]:
    """The first halves of ids with these ticks, as numbers: a range for each millisecond."""
    for ms in range(first >> 12, (end >> 12) + 1):
        base = ms * _VERSION_GAP + _VERSION
        yield range(base + max(first, ms << 12), base + min(end, ms + 1 << 12))
