"""The keys of browsed messages, as callers hand them in. A text that is no key of ours finds nothing, and is
no error.
"""

from __future__ import annotations

from typing import TypeAlias

Place: TypeAlias = tuple[int, int]
"""Where a message stands among those of its category: its rank or time, and its number."""

_END = 2**63
"""More than what engines count with."""


def to_number(key: str) -> int:
    """The key of a dead message as a number; -1, which no message has, for a text that is no key."""
    number = int(key) if key.isascii() and key.isdecimal() and len(key) < 20 else -1
    return number if number < _END else -1


def to_place(key: str) -> Place | None:
    """Where the message with the key "number@place" stood, or a dead one with its number; None for a text that is no
    key.
    """
    number, _, place = key.partition("@")
    try:
        found = int(place or 0), int(number)
    except ValueError:
        return None
    return found if all(-_END <= part < _END for part in found) else None
